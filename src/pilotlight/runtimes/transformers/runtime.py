"""`ports.Runtime` for models that transformers can load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pilotlight.core.errors import LoadError, PilotlightError
from pilotlight.runtimes.transformers import loading
from pilotlight.runtimes.transformers.prompts import Prompter, RowError
from pilotlight.wire import Context, DeviceSpec, Operation

if TYPE_CHECKING:
    from pilotlight.runtimes.transformers.model import TransformersModel


class TransformersRuntime:
    """Causal language models from safetensors, on one GPU or on CPUs.

    Context options: `dtype`, `max_model_len`, `trust_remote_code`. `share_prefixes` false is for comparisons only.
    """

    name = "transformers"

    def __init__(self, *, share_prefixes: bool = True) -> None:
        self._share_prefixes = share_prefixes

    def preload(self) -> None:
        """See `ports.Runtime`."""
        loading.preload()

    def load(self, context: Context, device: DeviceSpec) -> TransformersModel:
        """See `ports.Runtime`."""
        loading.import_libraries()
        from pilotlight.runtimes.transformers.model import TransformersModel

        loaded = loading.load(context, device)
        try:
            return TransformersModel(context, device, loaded, share_prefixes=self._share_prefixes)
        except PilotlightError:
            raise
        except Exception as error:
            raise LoadError(
                f"{context.name} loaded, but its first request failed: {loading.one_line(error)}"
            ) from error

    def preview(self, context: Context, operation: Operation, payloads: Sequence[Any]) -> list[dict[str, Any]]:
        """See `ports.Runtime`."""
        _, tokenizer, max_model_len = loading.load_tokenizer(context)
        prompts = Prompter(tokenizer, max_model_len).render(operation, payloads)
        return [
            {"error_kind": prompt.kind, "error": prompt.text}
            if isinstance(prompt, RowError)
            else {
                "prompt": tokenizer.decode(prompt.ids) if prompt.text is None or prompt.truncated else prompt.text,
                "prompt_tokens": len(prompt.ids),
                "token_ids": prompt.ids,
            }
            for prompt in prompts
        ]
