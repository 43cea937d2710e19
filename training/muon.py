"""Muon in fp32: momentum whose matrix is made orthogonal before it is applied.

After Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), which gives the
coefficients of the Newton-Schulz iteration. `torch.optim.Muon` iterates in bfloat16, which processors
without that type emulate slowly; this one stays in fp32 and stacks matrices of equal shape into one product.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalise(stack: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrices, roughly, to a stack of shape (count, rows, columns)."""
    a, b, c = _COEFFICIENTS
    tall = stack.shape[-2] > stack.shape[-1]
    x: torch.Tensor = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For matrices only: step `lr` along the orthogonalised Nesterov momentum."""

    def __init__(
        self, matrices: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0
    ) -> None:
        """Take the matrices to train, a learning rate, how much momentum survives a step, and weight decay."""
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one step; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[torch.nn.Parameter, torch.Tensor]]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append((matrix, matrix.grad))
            for shape, pairs in by_shape.items():
                matrices = [matrix for matrix, _ in pairs]
                gradients = torch.stack([gradient for _, gradient in pairs])
                buffer = self.state[matrices[0]].setdefault("momentum", torch.zeros_like(gradients))
                buffer.lerp_(gradients, 1 - group["momentum"])
                update = orthogonalise(gradients.lerp(buffer, group["momentum"]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for matrix, direction in zip(matrices, update, strict=True):
                    matrix.mul_(1 - group["lr"] * group["decay"]).sub_(direction, alpha=scale)
