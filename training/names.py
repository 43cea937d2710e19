"""Invented names, shaped after the kind of thing they name.

Half of what training reads is about places, people and works that do not exist, so that the model learns to
compare names instead of remembering them. Every draw comes from the `random.Random` that the caller passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

_ONSETS = "b br c ch cl d dr f fl g gr h j k kr l m n p pr qu r s sh st t th tr v w y z".split()
_VOWELS = "a e i o u a e i o ai ea ia io ou".split()
_CODAS = ["", "", "", "l", "m", "n", "r", "s", "t", "nd", "rk", "th", "x"]
_ADJECTIVES = "Silent Golden Broken Hidden Distant Crimson Empty Second Northern Patient Bright Last".split()
_NOUNS = "Lantern Harbour Garden Winter Bridge Letter Orchard Window River Clock Shadow Voyage Mirror".split()
_LETTERS = "abcdefghiklmnoprstuvwxyz"
_PREFIXES = "San Port New Addis Saint".split()


def happens(random: Random, share: float) -> bool:
    """True in this share of draws."""
    return random.random() < share


def syllables(random: Random, count: int) -> str:
    """A pronounceable lower-case word of `count` syllables."""
    parts = [random.choice(_ONSETS) + random.choice(_VOWELS) for _ in range(count)]
    return "".join(parts) + random.choice(_CODAS)


def _word(random: Random, low: int = 1, high: int = 3) -> str:
    return syllables(random, random.randint(low, high))


def _place(random: Random) -> str:
    name = _word(random, 2, 3).capitalize()
    return f"{random.choice(_PREFIXES)} {name}" if happens(random, 0.1) else name


def _person(random: Random) -> str:
    names = [_word(random, 1, 2).capitalize(), _word(random, 1, 3).capitalize()]
    if happens(random, 0.15):
        names.insert(1, random.choice(["de", "van", "von", _word(random, 1, 2).capitalize()]))
    return " ".join(names)


def _title(random: Random) -> str:
    noun, other = random.sample(_NOUNS, 2)
    forms = (
        f"The {random.choice(_ADJECTIVES)} {noun}",
        f"{noun} and {other}",
        f"The {noun} of {_word(random, 2, 3).capitalize()}",
        _word(random).capitalize(),
        f"{_word(random).capitalize()} {_word(random).capitalize()}",
    )
    return random.choice(forms)


def invent(random: Random, kind: str) -> str:
    """A new name for a `kind` of thing, as `Relation.key_kind` and `Relation.value_kind` name kinds."""
    if kind == "person":
        return _person(random)
    if kind in {"book", "music"}:
        return _title(random)
    if kind == "element":
        return f"{_word(random, 1, 2)}{random.choice(('ium', 'on', 'ine', 'um'))}"
    if kind == "symbol":
        return f"{random.choice(_LETTERS).upper()}{random.choice(('', *_LETTERS))}"
    if kind == "currency":
        return _word(random, 1, 2)
    return _place(random)
