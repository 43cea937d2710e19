"""The network as the rest of this package sees it: ids in, float32 logits at chosen positions out.

Hides what differs between models and versions of transformers: argument names, the form of masks, and where the
output layer sits. Logits are computed only where asked: a hook hands the output layer the chosen positions, so that
whatever a model does to its logits afterwards (caps, scales) still happens.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from pilotlight.runtimes.transformers.slots import Slots

ATTENTION_4D = frozenset({"sdpa", "eager"})


class Network:
    """A loaded causal language model on one device. Every call runs in inference mode."""

    def __init__(self, network: Any, config: Any, device: torch.device, max_model_len: int) -> None:
        self._network = network
        self.device = device
        self.dtype: torch.dtype = network.dtype
        self._additive = getattr(config, "_attn_implementation", "eager") != "sdpa"
        accepted = set(inspect.signature(network.forward).parameters)
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        self._takes_positions = "position_ids" in accepted
        self.plain = self._takes_positions and _attends_fully(config, max_model_len)
        """Whether keys and values may be kept, shared and moved by us (`Slots`); `probe.py` may withdraw it."""
        self._keep: Tensor | None = None
        network.get_output_embeddings().register_forward_pre_hook(self._choose)
        self.weight_bytes = sum(item.numel() * item.element_size() for item in self._tensors())
        self.vocabulary: int = network.get_output_embeddings().weight.shape[0]
        self.layers: int = config.get_text_config(decoder=True).num_hidden_layers

    @torch.inference_mode()
    def logits(
        self,
        ids: Tensor,
        keep: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        slots: Slots | None = None,
    ) -> Tensor:
        """Logits of shape (rows, kept, vocabulary) for ids of shape (rows, columns).

        keep: columns of `ids` per row, shape (rows, kept). mask: None for causal attention, or booleans of shape
        (rows, 1, columns, keys), true where attention may look. With `slots`, keys and values are read from there
        and added.
        """
        arguments: dict[str, Any] = {"use_cache": slots is not None}
        if slots is not None:
            arguments[self._cache_name] = slots.cache
        if positions is not None and self._takes_positions:
            arguments["position_ids"] = positions
        if mask is not None:
            arguments["attention_mask"] = self._as_argument(mask)
        return self._run(ids, keep, arguments).logits

    @torch.inference_mode()
    def logits_own_cache(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the last column (rows, vocabulary) and the model's own cache, for models that are not plain.

        mask: (rows, all columns so far), zero on left padding. cache: None at first, then what was returned.
        """
        arguments: dict[str, Any] = {"use_cache": True, self._cache_name: cache, "attention_mask": mask}
        if self._takes_positions:
            arguments["position_ids"] = positions
        keep = torch.full((ids.shape[0], 1), ids.shape[1] - 1, device=self.device)
        output = self._run(ids, keep, arguments)
        return output.logits[:, 0], output.get(self._cache_name)

    def to_host(self) -> None:
        """Move the weights to pinned host memory, from where they come back fastest."""
        for tensor in self._tensors():
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
            host.copy_(tensor.data)
            tensor.data = host

    def to_device(self) -> None:
        """Undo `to_host`."""
        for tensor in self._tensors():
            tensor.data = tensor.data.to(self.device, non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _tensors(self) -> list[Tensor]:
        return [*self._network.parameters(), *self._network.buffers()]

    def _run(self, ids: Tensor, keep: Tensor, arguments: dict[str, Any]) -> Any:
        whole = keep.shape[1] == ids.shape[1] == 1
        self._keep = None if whole else keep
        try:
            return self._network(input_ids=ids, **arguments)
        finally:
            self._keep = None

    def _choose(self, _module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._keep is None:
            return None
        hidden = arguments[0]
        chosen = self._keep.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        return (hidden.gather(1, chosen), *arguments[1:])

    def _as_argument(self, mask: Tensor) -> Tensor:
        if not self._additive:
            return mask
        blocked = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill(~mask, blocked)


def _attends_fully(config: Any, max_model_len: int) -> bool:
    """Whether every layer keeps plain keys and values and no window or chunk can come into play."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if getattr(config, "_attn_implementation", "eager") not in ATTENTION_4D:
        return False
    try:
        layers = DynamicCache(config=config).layers
    except Exception:  # a config of another make: not known to be plain
        return False
    for layer in layers:
        if type(layer) is DynamicSlidingWindowLayer:
            if max_model_len > int(getattr(layer, "sliding_window", 0)):
                return False
        elif type(layer) is not DynamicLayer:
            return False
    return bool(layers)
