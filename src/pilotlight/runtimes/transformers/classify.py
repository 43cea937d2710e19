"""Which label is the likeliest continuation: log-likelihoods compared, nothing decoded.

A label is tokenised on its own, as a continuation: after a space where the prompt is plain text that does not end in
white space, else as it stands. Its score is the sum (or mean) of its tokens' log-probabilities given the prompt.

Each batch costs one pass over the prompts and one over the labels: the tokens that must be read to score all labels
form a small tree (labels that begin alike share nodes), and every row reads that tree once, with a mask under which a
node sees the prompt and its own ancestors. Models that can't do this (`Network.plain`) get each label after each
prompt as a row of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from pilotlight.runtimes.transformers.network import Network
from pilotlight.runtimes.transformers.reading import padded, read_prompts
from pilotlight.runtimes.transformers.slots import KeysValues, Slots


@dataclass(slots=True)
class LabelTree:
    """Labels as token ids, and the tree of the tokens that precede another one.

    tokens, parents, depths: of each node; a parent is an earlier node, or -1 for the prompt's end.
    steps: per label, (node before the token or -1, the token).
    """

    labels: list[list[int]]
    tokens: list[int] = field(default_factory=list[int])
    parents: list[int] = field(default_factory=list[int])
    depths: list[int] = field(default_factory=list[int])
    steps: list[list[tuple[int, int]]] = field(default_factory=list[list[tuple[int, int]]])

    def __post_init__(self) -> None:
        places: dict[tuple[int, ...], int] = {(): -1}
        for label in self.labels:
            self.steps.append([])
            for depth, token in enumerate(label):
                before = tuple(label[:depth])
                if before not in places:
                    places[before] = len(self.tokens)
                    self.tokens.append(before[-1])
                    self.parents.append(places[before[:-1]])
                    self.depths.append(depth - 1)
                self.steps[-1].append((places[before], token))

    @property
    def longest(self) -> int:
        """Tokens of the longest label."""
        return max(len(label) for label in self.labels)

    def sight(self) -> list[list[bool]]:
        """Which node sees which: itself and its ancestors."""
        rows = [[False] * len(self.tokens) for _ in self.tokens]
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                rows[place] = list(rows[parent])
            rows[place][place] = True
        return rows


def tokenise_labels(tokenizer: Any, labels: Sequence[str], *, spaced: bool) -> list[list[int]]:
    """Each label as a continuation. Raises `ValueError` for one without tokens.

    The label is tokenised behind an anchor, which is then taken off, since tokenizers of the SentencePiece kind
    would put a space of their own before a text that stands alone.
    """
    anchor = "a" if spaced else "\n"
    head: list[int] = tokenizer.encode(anchor, add_special_tokens=False)
    found: list[list[int]] = []
    for label in labels:
        text = f" {label}" if spaced else label
        whole: list[int] = tokenizer.encode(anchor + text, add_special_tokens=False)
        alone = whole[len(head) :] if whole[: len(head)] == head else []
        ids = alone or tokenizer.encode(text, add_special_tokens=False)
        if not ids:
            raise ValueError(f"The label {label!r} has no tokens.")
        found.append(ids)
    return found


@torch.inference_mode()
def score(
    network: Network, prompts: Sequence[list[int]], tree: LabelTree, kept: KeysValues, *, tokens_max: int
) -> Generator[int, None, list[list[float]]]:
    """Summed log-probabilities, one list per prompt with one figure per label. A reader; see `reading`."""
    if not network.plain:
        return (yield from _score_one_by_one(network, prompts, tree))
    reserve = len(tree.tokens) or None
    read = yield from read_prompts(network, prompts, kept, tokens_max=tokens_max, reserve=reserve)
    gained = {-1: _gather(read.logits, tree, -1)}
    if tree.tokens and read.slots is not None:
        lengths = torch.tensor(read.lengths, device=network.device).unsqueeze(1)
        logits = _read_tree(network, tree, read.slots, lengths)
        for node in range(len(tree.tokens)):
            gained[node] = _gather(logits[:, node], tree, node)
    scores = torch.zeros((len(prompts), len(tree.labels)), dtype=torch.float32, device=network.device)
    for node, gain in gained.items():
        scores[:, _labels_after(tree, node)] += gain
    return _listed(scores)


def _read_tree(network: Network, tree: LabelTree, slots: Slots, lengths: Tensor) -> Tensor:
    """Logits after each node, (rows, nodes, vocabulary). lengths: the prompts', shape (rows, 1)."""
    rows, device = lengths.shape[0], network.device
    nodes = len(tree.tokens)
    tokens = torch.tensor(tree.tokens, device=device).expand(rows, nodes)
    positions = lengths + torch.tensor(tree.depths, device=device)
    prompt = torch.arange(slots.columns, device=device) < lengths
    sight = torch.tensor(tree.sight(), device=device)
    mask = torch.cat(
        (prompt[:, None, None, :].expand(rows, 1, nodes, slots.columns), sight.expand(rows, 1, nodes, nodes)), dim=-1
    )
    keep = torch.arange(nodes, device=device).expand(rows, nodes)
    return network.logits(tokens, keep, positions=positions, mask=mask, slots=slots)


def _labels_after(tree: LabelTree, node: int) -> list[int]:
    return [place for place, steps in enumerate(tree.steps) if any(before == node for before, _ in steps)]


def _gather(logits: Tensor, tree: LabelTree, node: int) -> Tensor:
    """Log-probabilities at one node of the next token of each label that passes it."""
    wanted = [token for steps in tree.steps for before, token in steps if before == node]
    logits = logits.float()
    return logits[:, wanted] - logits.logsumexp(dim=-1, keepdim=True)


def _listed(scores: Tensor) -> list[list[float]]:
    return cast("list[list[float]]", scores.tolist())  # pyright: ignore[reportUnknownMemberType]


def _score_one_by_one(
    network: Network, prompts: Sequence[list[int]], tree: LabelTree
) -> Generator[int, None, list[list[float]]]:
    columns: list[Tensor] = []
    for label in tree.labels:
        ids, longest = padded([[*prompt, *label[:-1]] for prompt in prompts], network.device)
        offsets = torch.arange(len(label), device=network.device)
        ends = torch.tensor([[len(prompt) - 1] for prompt in prompts], device=network.device)
        logits = network.logits(ids, ends + offsets).float()
        targets = torch.tensor(label, device=network.device).expand(len(prompts), len(label)).unsqueeze(-1)
        gains = logits.gather(2, targets).squeeze(-1) - logits.logsumexp(dim=-1)
        columns.append(gains.sum(dim=-1))
        yield len(prompts) * longest
    return _listed(torch.stack(columns, dim=-1))
