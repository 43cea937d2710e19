"""Packs of rows as tensors: one evidence, then several claims that cannot see each other.

A pack holds the tokens of its evidence once and those of each claim after it. Position numbers restart at
every claim and the attention mask hides the other claims, so a packed claim computes exactly what the same
prompt computes on its own, and training sees what inference sees. The first claim of a pack has its whole
label spelt out; the others stop at the label's first token, which decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from corpus import SUPPORTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

    from corpus import Row

IGNORED = -100
_UNASKED = float("nan")


@dataclass(frozen=True)
class Batch:
    """Tensors of shape (packs, tokens); `mask` is (packs, 1, tokens, tokens), true where attention may look.

    `targets` holds the next token where a label is to be predicted and IGNORED elsewhere. The last three ask
    intermediate questions, 1.0 for yes, 0.0 for no, NaN where nothing is asked: does the evidence have this
    claim token (`token_known`), the name that ends here (`name_known`), both names in one fact (`stated`)?
    `claims` counts the claims in all packs.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    token_known: torch.Tensor
    name_known: torch.Tensor
    stated: torch.Tensor
    claims: int


@dataclass
class _Pack:
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    token_known: list[float] = field(default_factory=list)
    name_known: list[float] = field(default_factory=list)
    stated: list[float] = field(default_factory=list)

    def extend(self, tokens: list[int], first_position: int, segment: int) -> None:
        """Append tokens that nothing is asked about yet."""
        count = len(tokens)
        self.tokens += tokens
        self.positions += range(first_position, first_position + count)
        self.segments += [segment] * count
        self.targets += [IGNORED] * count
        for answers in (self.token_known, self.name_known, self.stated):
            answers.extend([_UNASKED] * count)


def label_tokens(tokenizer: PreTrainedTokenizerFast, label: str) -> list[int]:
    """The tokens that a prompt is continued with, without the end of text."""
    tokens: list[int] = tokenizer.encode(f" {label}", add_special_tokens=False)
    return tokens


def _pack(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> _Pack:
    evidence = rows[0].evidence
    shared = tokenizer.encode("" if evidence is None else f"Evidence: {evidence}".rstrip())
    pack = _Pack()
    pack.extend(shared, 0, 0)
    for segment, row in enumerate(rows, start=1):
        encoded = tokenizer(row.prompt, return_offsets_mapping=True)
        prompt, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
        assert prompt[: len(shared)] == shared, "an evidence's last token must not reach into the claim"
        label = [*label_tokens(tokenizer, row.label), tokenizer.eos_token_id]
        spelt = label if segment == 1 else label[:1]
        # Where the claim begins in the pack, less where it begins in its own prompt.
        shift = len(pack.tokens) - len(shared)
        pack.extend(prompt[len(shared) :] + spelt[:-1], len(shared), segment)
        verdict = shift + len(prompt) - 1
        pack.targets[verdict : verdict + len(spelt)] = spelt
        for place in range(len(shared), len(prompt)):
            pack.token_known[shift + place] = float(prompt[place] in shared)
        claim_start = row.prompt.index("Claim: ") + len("Claim: ")
        for mention in row.mentions:
            last = shift + ends.index(claim_start + mention.end)
            pack.name_known[last] = float(mention.known)
            # The order of mentions leaves this to the later name, which alone can see both.
            if mention is row.mentions[-1]:
                pack.stated[last] = float(row.label == SUPPORTS)
    return pack


def make_batch(tokenizer: PreTrainedTokenizerFast, packs: Sequence[Sequence[Row]]) -> Batch:
    """Tensors for these packs, padded at the right to the longest of them."""
    packed = [_pack(tokenizer, rows) for rows in packs]
    length = max(len(pack.tokens) for pack in packed)

    def padded(name: str, filler: float) -> torch.Tensor:
        lists = [getattr(pack, name) for pack in packed]
        return torch.tensor([values + [filler] * (length - len(values)) for values in lists])

    segments = padded("segments", -1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    own, others = segments.unsqueeze(2), segments.unsqueeze(1)
    return Batch(
        tokens=padded("tokens", tokenizer.pad_token_id),
        positions=padded("positions", 0),
        mask=(causal & ((own == others) | (others == 0))).unsqueeze(1),
        targets=padded("targets", IGNORED),
        token_known=padded("token_known", _UNASKED),
        name_known=padded("name_known", _UNASKED),
        stated=padded("stated", _UNASKED),
        claims=sum(len(rows) for rows in packs),
    )
