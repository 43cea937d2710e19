"""Whether a model of an unknown family may be handled as plain: tried out, not guessed.

Masks, positions and caches of our own are exact for families that the tests compare with transformers. For any other
(code from the model's folder, positions that come from the mask) both ways are run on a few short prompts while
the model warms up, and ours is used only if the logits agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pilotlight.runtimes.transformers.classify import LabelTree, score
from pilotlight.runtimes.transformers.cohorts import OwnCohort, SlotCohort
from pilotlight.runtimes.transformers.network import Network
from pilotlight.runtimes.transformers.reading import read_block, result_of
from pilotlight.runtimes.transformers.slots import Slots

PROVEN = frozenset({"llama", "qwen2", "qwen3", "mistral", "gpt2", "granite", "smollm3", "phi3", "olmo2", "gemma"})
"""Values of `model_type` that tests compare with transformers."""
TOLERANCE_FLOAT32 = 1e-3
TOLERANCE_HALF = 0.1
"""Greatest difference of logits as a part of their standard deviation."""
LENGTHS = (18, 20, 23, 24)
SHARED_TOKENS = 17
"""The prompts begin alike, for as long as it takes to be shared."""


def agrees(network: Network) -> bool:
    """Whether our way and the model's own give the same logits. Leaves `network.plain` as it was."""
    batch = [
        [(7 * place + (length if place >= SHARED_TOKENS else 0)) % network.vocabulary for place in range(length)]
        for length in LENGTHS
    ]
    tokens = [5 + row for row in range(len(batch))]
    tree = LabelTree([[1, 2, 3], [1, 4]])
    pairs: list[tuple[Tensor, Tensor]] = []
    try:
        slots = Slots(network.layers)
        read_block(network, slots, batch[0][:SHARED_TOKENS])
        for kept in ([], slots.shared(SHARED_TOKENS)):
            mine, first = result_of(SlotCohort.begin(network, batch, kept, tokens_max=1 << 20))
            own, own_first = OwnCohort.begin(network, batch)
            pairs.append((first, own_first))
            pairs.append((mine.decode(tokens), own.decode(tokens)))
            scores = torch.tensor(result_of(score(network, batch, tree, kept, tokens_max=1 << 20)))
            pairs.append((scores, _plainly(network, batch, tree)))
    except Exception:  # whatever it is that our way does not suit: the model's own way is there
        return False
    tolerance = TOLERANCE_FLOAT32 if network.dtype is torch.float32 else TOLERANCE_HALF
    scale = float(pairs[0][1].float().std())
    return all(float((one.float() - two.float()).abs().max()) <= tolerance * scale for one, two in pairs)


def _plainly(network: Network, batch: list[list[int]], tree: LabelTree) -> Tensor:
    plain, network.plain = network.plain, False
    try:
        return torch.tensor(result_of(score(network, batch, tree, [], tokens_max=1 << 20)))
    finally:
        network.plain = plain
