"""From a model folder to a network on a device, with the time of each stage.

Only safetensors are read, and no code from the model's folder runs unless the context's options say so. Runs in a
replica, after the fork: it is the first to compute, so it sets the number of threads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pilotlight.core.errors import ConfigError, LoadError, MissingExtra
from pilotlight.wire import Context, DeviceSpec

DEFAULT_MODEL_LEN = 2048
MODEL_LEN_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
COMMON_MODELS = ("llama", "qwen2", "qwen3", "gemma3", "mistral", "phi3", "smollm3", "gpt2")
COMPUTE_CAPABILITY_BF16 = 8


@dataclass(slots=True)
class Loaded:
    """A network in evaluation mode on `device`, its tokenizer, its limits and the seconds of each stage."""

    network: Any
    tokenizer: Any
    config: Any
    device: Any
    max_model_len: int
    stages: dict[str, float] = field(default_factory=dict[str, float])


def import_libraries() -> tuple[Any, Any]:
    """The two libraries, torch first. Raises `MissingExtra`."""
    try:
        import torch
        import transformers
    except ImportError as error:
        text = f"{error.name or 'A library'} is not installed: pip install 'pilotlight[transformers]'"
        raise MissingExtra(text) from error
    return torch, transformers


def preload() -> None:
    """Import what replicas need, so that a fork has it. Computes nothing and starts no thread."""
    import importlib

    torch, transformers = import_libraries()
    torch.set_num_threads(1)
    _quiet(transformers)
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)
    for name in COMMON_MODELS:
        for module in ("configuration", "modeling"):
            try:
                importlib.import_module(f"transformers.models.{name}.{module}_{name}")
            except ImportError:
                continue
    importlib.import_module("pilotlight.runtimes.transformers.model")


def load_tokenizer(context: Context) -> tuple[Any, Any, int]:
    """Config, tokenizer and `max_model_len` of a context. Raises `LoadError`."""
    _, transformers = import_libraries()
    _quiet(transformers)
    path = _folder(context)
    arguments = _arguments(context)
    try:
        config = transformers.AutoConfig.from_pretrained(path, **arguments)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **arguments)
    except Exception as error:
        raise LoadError(f"The config or tokenizer of {context.name} can't be read: {_said(context, error)}") from error
    return config, tokenizer, _max_model_len(context, config)


def load(context: Context, device: DeviceSpec) -> Loaded:
    """Read the weights and move them to the device. Raises `LoadError`, `MissingExtra`, `ConfigError`."""
    torch, transformers = import_libraries()
    torch.set_num_threads(max(1, device.threads))
    start_s = time.monotonic()
    config, tokenizer, max_model_len = load_tokenizer(context)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LoadError(f"{context.name} was meant for {device.kind}, but torch sees no GPU here.")
    target = torch.device("cuda:0" if device.type == "cuda" else "cpu")
    dtype = choose_dtype(context.options.get("dtype", "auto"), config, device)
    try:
        network = transformers.AutoModelForCausalLM.from_pretrained(
            _folder(context),
            config=config,
            dtype=dtype,
            use_safetensors=True,
            **_attention(config),
            **_arguments(context),
        )
        network.eval()
        read_s = time.monotonic()
        network.to(target)
        if target.type == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        raise LoadError(f"{context.name} can't be loaded: {_said(context, error)}") from error
    if network.get_output_embeddings() is None:
        raise LoadError(f"{context.name} is no causal language model: it has no output layer over tokens.")
    stages = {"read": read_s - start_s, "to_device": time.monotonic() - read_s}
    return Loaded(network, tokenizer, network.config, target, max_model_len, stages)


def choose_dtype(wish: object, config: Any, device: DeviceSpec) -> Any:
    """`auto`: float32 on CPUs; on GPUs the config's own, with bfloat16 becoming float16 where the chip lacks it."""
    import torch

    names = {
        "float32": torch.float32,
        "fp32": torch.float32,
        "float16": torch.float16,
        "half": torch.float16,
        "fp16": torch.float16,
        "bfloat16": torch.bfloat16,
        "bf16": torch.bfloat16,
    }
    if wish not in (None, "auto"):
        if str(wish) not in names:
            raise ConfigError(f"The dtype {wish} is not known; use auto, float32, float16 or bfloat16.")
        return names[str(wish)]
    if device.type == "cpu":
        return torch.float32
    own = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    own = names.get(own, torch.float32) if isinstance(own, str) else own
    if own is torch.bfloat16 and torch.cuda.get_device_capability(0)[0] < COMPUTE_CAPABILITY_BF16:
        return torch.float16
    return own


def eos_ids(loaded: Loaded) -> frozenset[int]:
    """Every id that ends a text: of the generation config and the config; of the tokenizer where neither says."""
    found: set[int] = set()
    ids: Any
    generation_config = getattr(loaded.network, "generation_config", None)
    for holder in (generation_config, loaded.config, loaded.config.get_text_config(decoder=True)):
        ids = getattr(holder, "eos_token_id", None)
        found.update(cast("list[int]", ids) if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    if not found and loaded.tokenizer.eos_token_id is not None:
        found.add(loaded.tokenizer.eos_token_id)
    return frozenset(found)


def _folder(context: Context) -> str:
    if not context.model_path or not Path(context.model_path).is_dir():
        raise LoadError(f"The model folder of {context.name} is not there.")
    return context.model_path


def _arguments(context: Context) -> dict[str, Any]:
    trusted = bool(context.options.get("trust_remote_code", False))
    return {"local_files_only": True, "trust_remote_code": trusted}


def _attention(config: Any) -> dict[str, Any]:
    """SDPA, but for models whose attention it can't express (a cap on attention logits)."""
    text_config = config.get_text_config(decoder=True)
    capped = getattr(text_config, "attn_logit_softcapping", None) is not None
    return {"attn_implementation": "eager"} if capped else {}


def _max_model_len(context: Context, config: Any) -> int:
    wish = context.options.get("max_model_len")
    text_config = config.get_text_config(decoder=True)
    own = next((value for key in MODEL_LEN_KEYS if isinstance(value := getattr(text_config, key, None), int)), None)
    if wish is None:
        return own or DEFAULT_MODEL_LEN
    if int(wish) < 1 or (own is not None and int(wish) > own):
        raise ConfigError(f"max_model_len {wish} does not fit {context.name}, which takes {own} tokens.")
    return int(wish)


def _quiet(transformers: Any) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _said(context: Context, error: BaseException) -> str:
    """A library's words, with the model's name where they have the folder that it was loaded from this time."""
    text = one_line(error)
    return text.replace(context.model_path, context.name) if context.model_path else text


def one_line(error: BaseException) -> str:
    """An exception of a library as one line of bearable length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"
