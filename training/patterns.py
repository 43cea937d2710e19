"""How facts are worded: evidence sentences, claims, and claims that training never reads.

A pattern names its key `{k}` and its value `{v}`; `[a|b]` stands for a choice of wordings, so that one line
here is several sentences. Four groups per relation:

- `evidence` and `claims`: what training and the demo read;
- `paraphrases`: claims never trained on, made only of words that trained patterns use;
- `unseen`: claims never trained on, with words in them that no trained pattern has.

`check()` holds the groups apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

_CHOICE = re.compile(r"\[([^\]]*)\]")


@dataclass(frozen=True)
class Patterns:
    """The wordings of one relation, choices already spelt out."""

    evidence: tuple[str, ...]
    claims: tuple[str, ...]
    paraphrases: tuple[str, ...]
    unseen: tuple[str, ...]


def spell_out(pattern: str) -> list[str]:
    """Every sentence that the choices of `pattern` allow, in a fixed order."""
    parts = _CHOICE.split(pattern)
    choices = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def words(patterns: tuple[str, ...]) -> set[str]:
    """The lower-case words of the patterns, without the names."""
    return {word for text in patterns for word in re.findall(r"[a-z]+", re.sub(r"\{.\}", " ", text).lower())}


def check(groups: dict[str, Patterns]) -> None:
    """Raise ValueError unless the held-out claims of each relation are held out as the docstring says."""
    known = set().union(*(words(group.evidence + group.claims) for group in groups.values()))
    for relation, group in groups.items():
        for text in group.paraphrases:
            if text in group.evidence + group.claims or not words((text,)) <= known:
                raise ValueError(f"{relation}: not a fresh wording of known words: {text}")
        for text in group.unseen:
            if words((text,)) <= known:
                raise ValueError(f"{relation}: no new word in: {text}")


def _group(evidence: str, claims: str, paraphrases: str, unseen: str) -> Patterns:
    def read(text: str) -> tuple[str, ...]:
        lines = [line.strip() for line in text.strip().splitlines()]
        return tuple(dict.fromkeys(sentence for line in lines for sentence in spell_out(line)))

    return Patterns(read(evidence), read(claims), read(paraphrases), read(unseen))


PATTERNS: dict[str, Patterns] = {
    "capital": _group(
        evidence="""
            {v} is the capital [city of|of] {k}.
            The capital [|city ]of {k} is [|called |named ]{v}.
            {k} has its capital [in|at] {v}.
            The government of {k} [sits|meets|is seated] in {v}, the capital[| city].
            {k} is a country whose capital is [|called ]{v}.
            {v}, the capital of {k}, is the seat of its government.
            In {k}, the capital [|city ]is {v}.
            {v} [serves|has served] as the capital [|city ]of {k}.
            {k} is [governed|ruled] from its capital, {v}.
            {v} is a city and the capital of the country of {k}.
            """,
        claims="""
            {v} is the capital [city of|of] {k}.
            The capital [|city ]of {k} is [|called |named ]{v}.
            {k} has {v} as its capital[| city].
            {v} serves as the capital [|city ]of {k}.
            {k} is [governed|ruled] from {v}.
            In {k}, {v} is the capital[| city].
            {k}'s capital [|city ]is [|called |named ]{v}.
            The government of {k} [sits|meets] in {v}.
            {v} is the seat of the government of {k}.
            The country of {k} has its capital in {v}.
            """,
        paraphrases="""
            As its capital, {k} has the city of {v}.
            {v} is the city that serves as {k}'s capital.
            The country of {k} is governed from the city of {v}.
            """,
        unseen="""
            {k} chose {v} to be its chief administrative centre.
            Ministers and parliament of {k} work in {v}.
            """,
    ),
    "currency": _group(
        evidence="""
            The currency of {k} is [|called ]the {v}.
            The {v} is the [|official |national ]currency of {k}.
            {k} uses the {v} as its [|official |national ]currency.
            In {k}, [people pay|prices are paid] with the {v}.
            The central bank of {k} issues the {v}.
            {k} is a country whose [money|currency] is the {v}.
            The {v} is the money [used|issued] in {k}.
            Prices in {k} are [given|quoted] in the {v}.
            {k} pays in its own currency, the {v}.
            """,
        claims="""
            The currency of {k} is [|called ]the {v}.
            The {v} is the [|official |national ]currency of {k}.
            {k} uses the {v} as its [|official ]currency.
            {k}'s [|official |national ]currency is the {v}.
            In {k}, people pay with the {v}.
            People in {k} pay in the {v}.
            The money [used|issued] in {k} is the {v}.
            {k} has the {v} as its currency.
            The bank of {k} issues the {v}.
            Prices in {k} are quoted in the {v}.
            """,
        paraphrases="""
            As money, the people of {k} pay with the {v}.
            The {v} is the money that {k} uses.
            The official money of {k} is called the {v}.
            """,
        unseen="""
            Shops across {k} accept coins of the {v}.
            Wages in {k} get settled using the {v}.
            """,
    ),
    "river": _group(
        evidence="""
            {k} [lies|stands|is] on the [|river ]{v}.
            The [|river ]{v} flows through [|the city of ]{k}.
            {k} is a city on the [|river ]{v}.
            The city of {k} was [built|founded] on the [|river ]{v}.
            In {k}, the [river|main river] is the {v}.
            {k} lies on the banks of the [|river ]{v}.
            The {v} is the river that [passes|runs] through {k}.
            The bridges of {k} [cross|span] the {v}.
            {k} is crossed by the [|river ]{v}.
            """,
        claims="""
            {k} [lies|stands|is] on the [|river ]{v}.
            The [|river ]{v} flows through [|the city of ]{k}.
            {k} is a city on the [|river ]{v}.
            {k} was [built|founded] on the [|river ]{v}.
            The river of {k} is [|called ]the {v}.
            {k}'s [river|main river] is the {v}.
            The {v} [passes|runs] through {k}.
            The bridges of {k} [cross|span] the {v}.
            {k} lies on the banks of the {v}.
            {k} is [crossed|passed] by the {v}.
            """,
        paraphrases="""
            The river that flows through {k} is called the {v}.
            On the banks of the {v} stands the city of {k}.
            Through {k} runs the {v}.
            """,
        unseen="""
            Boats sailing past {k} follow the {v}.
            {k} draws drinking water out of the {v}.
            """,
    ),
    "author": _group(
        evidence="""
            {k} is a [book|work|story] [|written ]by {v}.
            {k} was [written|published] by {v}.
            {v} [wrote|published] {k}.
            {v} is the [author|writer] of {k}.
            The [author|writer] of {k} is {v}.
            {v} is [known|famous] as the author of {k}.
            The book {k} is the work of {v}.
            The writer {v} [is known|became famous] for {k}.
            Among the books of {v} is {k}.
            """,
        claims="""
            {k} was [written|published] by {v}.
            {v} [wrote|published] {k}.
            {v} wrote the [book|work|story] {k}.
            {v} is the [author|writer] of {k}.
            The [author|writer] of {k} is {v}.
            {k} is a [book|work|story] by {v}.
            {k} is the work of {v}.
            {k} has {v} as its author.
            The book {k} was written by {v}.
            {k}'s author is {v}.
            """,
        paraphrases="""
            The writer that published {k} is {v}.
            As its author, {k} has {v}.
            Among the works {v} published is {k}.
            """,
        unseen="""
            Readers owe {k} to the pen of {v}.
            {v} finished the manuscript entitled {k}.
            """,
    ),
    "composer": _group(
        evidence="""
            {k} is a [piece|work] of music [|composed |written ]by {v}.
            {k} was composed by {v}.
            {v} composed {k}.
            {v} is the composer of {k}.
            The composer of {k} is {v}.
            {v} is [known|famous] as the composer of {k}.
            The music of {k} is [the work of|by] {v}.
            The composer {v} [is known|became famous] for {k}.
            Among the [works|pieces] of the composer {v} is {k}.
            {v} [wrote|created] the music of {k}.
            """,
        claims="""
            {k} was composed by {v}.
            {v} composed {k}.
            {v} composed the [piece|work] {k}.
            {v} is the composer of {k}.
            The composer of {k} is {v}.
            {k} is a piece of music by {v}.
            The music of {k} is [the work of|by] {v}.
            {k} has {v} as its composer.
            {v} [wrote|created] the music of {k}.
            {k}'s composer is {v}.
            """,
        paraphrases="""
            The composer that created {k} is {v}.
            As its composer, {k} has {v}.
            Among the pieces {v} composed is {k}.
            """,
        unseen="""
            Orchestras play {k}, a score signed {v}.
            {v} devised every melody heard during {k}.
            """,
    ),
    "symbol": _group(
        evidence="""
            {v} is the [|chemical ]symbol [of|for] {k}.
            The [|chemical ]symbol [of|for] {k} is {v}.
            The element {k} has the [|chemical ]symbol {v}.
            {k} is [a chemical|an] element with the symbol {v}.
            Chemists [write|abbreviate] {k} as {v}.
            In the periodic table, {k} is [marked|written] {v}.
            {k} appears in the table as {v}.
            The letters {v} stand for the element {k}.
            {k} is [abbreviated|written] as {v}.
            """,
        claims="""
            {v} is the [|chemical ]symbol [of|for] {k}.
            The [|chemical ]symbol [of|for] {k} is {v}.
            The element {k} has the symbol {v}.
            {k} has {v} as its symbol.
            {k} is [abbreviated|written] as {v}.
            {k}'s [|chemical ]symbol is {v}.
            Chemists [write|abbreviate] {k} as {v}.
            {v} stands for [|the element ]{k}.
            {k} appears in the periodic table as {v}.
            {k} is the element with the symbol {v}.
            """,
        paraphrases="""
            As its symbol, {k} has {v}.
            The element that chemists abbreviate as {v} is {k}.
            In the table, {v} is the symbol for {k}.
            """,
        unseen="""
            Formulas denote {k} through {v}.
            Laboratory labels shorten {k} into {v}.
            """,
    ),
}

check(PATTERNS)
