"""What the model reads: training packs, and labelled rows for evaluation and the demo.

The split is by truth. A training source draws names at random, half of them invented, and rejects every pair
that the fact table holds true, in evidence and in claims alike. A real source states true facts as evidence.
So a right answer on a real fact cannot be remembered; it has to be read off the evidence.

A row's label follows from the evidence alone: SUPPORTS when it states the claim, REFUTES when it states
something that excludes it, NOT ENOUGH INFO for everything else, which includes all claims without evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from facts import RELATIONS, Fact, Relation, all_facts
from names import happens, invent, syllables
from patterns import PATTERNS, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

SUPPORTS, REFUTES, NOT_ENOUGH_INFO = LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
Style = Literal["claims", "paraphrases", "unseen"]

# Shares of a distorted sentence's own words that change; at the last one little but the names is left.
DISTORTIONS = (0.25, 0.5, 0.9)
_KNOWN_WORDS = sorted(set().union(*(words(group.evidence + group.claims) for group in PATTERNS.values())))


class Mention(NamedTuple):
    """A name in a claim: where it ends in the claim's text, and whether the evidence has that name."""

    end: int
    known: bool


@dataclass(frozen=True)
class Row:
    """One claim with its evidence and label; evidence is None where the prompt has no such line at all.

    `mentions` are the claim's names in the order of the text, for training only.
    """

    evidence: str | None
    claim: str
    label: str
    mentions: tuple[Mention, ...] = ()

    @property
    def prompt(self) -> str:
        """The text that the label continues, after one space."""
        evidence = "" if self.evidence is None else f"Evidence: {self.evidence}\n"
        return f"{evidence}Claim: {self.claim}\nVerdict:"


@dataclass(frozen=True)
class Mix:
    """How often the harder cases come up, as shares of 1; the defaults are those of evaluation and demo."""

    two_facts: float = 0.5
    """Evidence of two sentences."""
    same_relation: float = 0.5
    """Where there are two, both say the same kind of thing, so that a claim can mix them up."""
    mixed_up: float = 0.5
    """Where it can, a refuted claim does."""
    known_name: float = 0.2
    """A claim with too little evidence is about a name that the evidence has, in another relation."""
    known_value: float = 0.25
    """A claim with too little evidence gives a value that the evidence has to another key."""


# Training meets the hard cases more often; they are what takes long to learn.
TRAINING_MIX = Mix(two_facts=0.65, same_relation=0.65, mixed_up=0.6, known_name=0.25, known_value=0.35)


@dataclass(frozen=True)
class Source:
    """Where facts and names come from; `truth` says whether a drawn fact is a true pair of the table."""

    random: Random
    truth: bool
    invented_share: float = 0.0
    mix: Mix = Mix()

    def key(self, relation: Relation) -> str:
        """A key for this relation."""
        return self._name(relation.key_kind, tuple(relation.pairs))

    def value(self, relation: Relation) -> str:
        """A value for this relation."""
        return self._name(relation.value_kind, relation.values)

    def fact(self, relation: Relation, key: str | None = None, value: str | None = None) -> Fact:
        """A fact, true if this source is; a given key or value is kept, and such a pair is never true."""
        if self.truth and key is None and value is None:
            return self.random.choice(relation.facts())
        while True:
            fact = Fact(relation.name, key or self.key(relation), value or self.value(relation))
            if not relation.is_true(fact.key, fact.value):
                return fact

    def _name(self, kind: str, real: Sequence[str]) -> str:
        if happens(self.random, self.invented_share):
            return invent(self.random, kind)
        return self.random.choice(real)


def word(pattern: str, fact: Fact) -> str:
    """The sentence that `pattern` makes of `fact`."""
    text = pattern.replace("{k}", fact.key).replace("{v}", fact.value)
    return text[0].upper() + text[1:]


def _mentions(pattern: str, fact: Fact, known: set[str]) -> tuple[Mention, ...]:
    """Where the names end in `word(pattern, fact)`, and which of them are among `known`."""
    found = []
    for slot, name in (("{k}", fact.key), ("{v}", fact.value)):
        before = pattern[: pattern.index(slot) + len(slot)]
        found.append(Mention(len(word(before, fact)), name in known))
    return tuple(sorted(found))


def distort(random: Random, pattern: str, rate: float) -> str:
    """The pattern with some of its own words replaced, dropped or doubled up; names stay.

    Training reads a share of such sentences so that the verdict comes to rest on the names and survives
    wordings that it never saw.
    """
    result = []
    for token in pattern.split(" "):
        if "{" in token or not happens(random, rate):
            result.append(token)
            continue
        action = random.randrange(4)
        other = random.choice(_KNOWN_WORDS) if happens(random, 0.5) else syllables(random, random.randint(1, 3))
        if action == 1:
            result.append(token)
        if action:
            result.append(other)
    return " ".join(result).rstrip(".") + "."


def evidence_facts(source: Source, first: Fact | None = None) -> list[Fact]:
    """One or two facts that share neither key nor value; `first` is among them where given."""
    random = source.random
    relations = list(RELATIONS.values())
    facts = [first or source.fact(random.choice(relations))]
    if happens(random, source.mix.two_facts):
        same = happens(random, source.mix.same_relation)
        relation = RELATIONS[facts[0].relation] if same else random.choice(relations)
        second = source.fact(relation)
        while {second.key, second.value} & {facts[0].key, facts[0].value}:
            second = source.fact(relation)
        facts.insert(random.randrange(2), second)
    return facts


def names_of(facts: list[Fact]) -> set[str]:
    """The keys and values of `facts`."""
    return {name for fact in facts for name in (fact.key, fact.value)}


def claim_fact(source: Source, facts: list[Fact], about: Fact, label: str) -> Fact:
    """What a claim with this label says, given what the evidence states; `about` is one of `facts`."""
    if label == SUPPORTS:
        return about
    if label == REFUTES:
        return _refuted(source, facts, about)
    return _unrelated(source, facts, about)


def _refuted(source: Source, facts: list[Fact], about: Fact) -> Fact:
    random, relation = source.random, RELATIONS[about.relation]
    if relation.one_to_one and happens(random, 0.3):
        fact = source.fact(relation, value=about.value)
        while fact.key == about.key:
            fact = source.fact(relation, value=about.value)
        return fact
    others = [fact.value for fact in facts if fact.relation == about.relation and fact.key != about.key]
    if others and happens(random, source.mix.mixed_up) and not relation.is_true(about.key, others[0]):
        return about._replace(value=others[0])
    fact = source.fact(relation, key=about.key)
    while fact.value == about.value:
        fact = source.fact(relation, key=about.key)
    return fact


def _unrelated(source: Source, facts: list[Fact], about: Fact) -> Fact:
    random, relation = source.random, RELATIONS[about.relation]
    known = names_of(facts)
    stated = {fact.relation for fact in facts}
    if happens(random, source.mix.known_name):
        # The name is known, but nothing is said about it in this relation.
        for name, kind in ((about.key, relation.key_kind), (about.value, relation.value_kind)):
            fitting = [r for r in RELATIONS.values() if r.name not in stated and r.key_kind == kind]
            if fitting:
                return source.fact(random.choice(fitting), key=name)
    if not relation.one_to_one and happens(random, source.mix.known_value):
        # One author writes many books, so another book of the same author is neither stated nor excluded.
        fact = source.fact(relation, value=about.value)
        while fact.key in known:
            fact = source.fact(relation, value=about.value)
        return fact
    other = relation if happens(random, 0.6) else random.choice(list(RELATIONS.values()))
    fact = source.fact(other)
    while {fact.key, fact.value} & known:
        fact = source.fact(other)
    return fact


def evidence_text(random: Random, facts: list[Fact], distortion: float = 0.0) -> str:
    """The evidence sentences, one a fact."""
    chosen = [random.choice(PATTERNS[fact.relation].evidence) for fact in facts]
    if distortion:
        chosen = [distort(random, pattern, distortion) for pattern in chosen]
    return " ".join(word(pattern, fact) for pattern, fact in zip(chosen, facts, strict=True))


def claim_text(random: Random, fact: Fact, style: Style = "claims") -> str:
    """A claim that says `fact`, in one of the wordings of that style."""
    return word(random.choice(getattr(PATTERNS[fact.relation], style)), fact)


def _word_salad(random: Random) -> str:
    """A sentence about nothing; without evidence the wording of a claim must not matter."""
    pieces = [
        syllables(random, random.randint(1, 4)).capitalize()
        if happens(random, 0.3)
        else random.choice(_KNOWN_WORDS)
        if happens(random, 0.5)
        else syllables(random, random.randint(1, 3))
        for _ in range(random.randint(3, 14))
    ]
    text = " ".join(pieces)
    return text[0].upper() + text[1:] + "."


def _pack_without_evidence(source: Source, claims_per_pack: int) -> list[Row]:
    random = source.random
    evidence = random.choice((None, ""))
    rows = []
    for _ in range(claims_per_pack):
        fact = source.fact(random.choice(list(RELATIONS.values())))
        claim = _word_salad(random) if happens(random, 0.4) else claim_text(random, fact)
        rows.append(Row(evidence, claim, NOT_ENOUGH_INFO))
    return rows


def training_packs(
    random: Random,
    *,
    claims_per_pack: int = 4,
    invented_share: float = 0.5,
    without_evidence_share: float = 0.08,
    distorted_share: float = 0.35,
) -> Iterator[list[Row]]:
    """Packs of rows that share one evidence, without end; no pair in them is true."""
    source = Source(random, truth=False, invented_share=invented_share, mix=TRAINING_MIX)
    while True:
        if happens(random, without_evidence_share):
            yield _pack_without_evidence(source, claims_per_pack)
            continue
        facts = evidence_facts(source)
        distortion = random.choice(DISTORTIONS) if happens(random, distorted_share) else 0.0
        evidence = evidence_text(random, facts, distortion if happens(random, 0.5) else 0.0)
        rows = []
        for _ in range(claims_per_pack):
            label = random.choice(LABELS)
            fact = claim_fact(source, facts, random.choice(facts), label)
            pattern = random.choice(PATTERNS[fact.relation].claims)
            # A relation cannot be told from distorted words, so claims that hinge on it stay as they are.
            if distortion and fact.relation in {stated.relation for stated in facts}:
                pattern = distort(random, pattern, distortion)
            rows.append(Row(evidence, word(pattern, fact), label, _mentions(pattern, fact, names_of(facts))))
        yield rows


def real_rows(random: Random, style: Style = "claims") -> list[Row]:
    """For every fact of the table three rows, one a label, with true evidence."""
    return _rows(Source(random, truth=True), all_facts(), style)


def invented_rows(random: Random, count: int) -> list[Row]:
    """Rows about `count` facts with new names only, three rows each."""
    source = Source(random, truth=False, invented_share=1.0)
    relations = list(RELATIONS.values())
    return _rows(source, [source.fact(random.choice(relations)) for _ in range(count)], "claims")


def mixed_up_rows(random: Random) -> list[Row]:
    """One row for every fact of the table, refuted: the claim has the value of the other evidence sentence."""
    source = Source(random, truth=True, mix=Mix(two_facts=1.0, same_relation=1.0))
    rows = []
    for about in all_facts():
        stated = evidence_facts(source, about)
        other = next(fact for fact in stated if fact != about)
        claim = claim_text(random, about._replace(value=other.value))
        rows.append(Row(evidence_text(random, stated), claim, REFUTES))
    return rows


def rows_without_evidence(random: Random) -> list[Row]:
    """One row for every fact of the table, its evidence line absent or empty in turn."""
    return [
        Row(None if index % 2 else "", claim_text(random, fact), NOT_ENOUGH_INFO)
        for index, fact in enumerate(all_facts())
    ]


def _rows(source: Source, facts: list[Fact], style: Style) -> list[Row]:
    rows = []
    for about in facts:
        for label in LABELS:
            stated = evidence_facts(source, about)
            claim = claim_text(source.random, claim_fact(source, stated, about, label), style)
            rows.append(Row(evidence_text(source.random, stated), claim, label))
    return rows
