"""Language models through Hugging Face transformers: `generate` and `classify` rows in batches that form themselves."""

from pilotlight.runtimes.transformers.runtime import TransformersRuntime

__all__ = ["TransformersRuntime"]
