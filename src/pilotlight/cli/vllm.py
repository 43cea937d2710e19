"""What `vllm run-batch` takes and we have no counterpart for: options that change no answer, and options that would.

The first are taken and said to be idle, so that a command line works as it is; the second are refused by name, unless
they are given vLLM's own default.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Parameter

from pilotlight.core.errors import ConfigError

_SEVERAL = Parameter(consume_multiple=True, negative="")


@Parameter(name="*", show=False)
@dataclass(kw_only=True)
class IdleOptions:
    """Options about speed, memory, places and logs."""

    served_model_name: Annotated[tuple[str, ...] | None, _SEVERAL] = None
    load_format: str | None = None
    download_dir: str | None = None
    output_tmp_dir: str | None = None
    model_impl: str | None = None
    config_format: str | None = None
    tensor_parallel_size: Annotated[int | None, Parameter(name=["--tensor-parallel-size", "-tp"])] = None
    pipeline_parallel_size: Annotated[int | None, Parameter(name=["--pipeline-parallel-size", "-pp"])] = None
    data_parallel_size: Annotated[int | None, Parameter(name=["--data-parallel-size", "-dp"])] = None
    enable_expert_parallel: bool | None = None
    distributed_executor_backend: str | None = None
    max_parallel_loading_workers: int | None = None
    disable_custom_all_reduce: bool | None = None
    gpu_memory_utilization: float | None = None
    num_gpu_blocks_override: int | None = None
    cpu_offload_gb: float | None = None
    block_size: int | None = None
    swap_space: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_partial_prefills: int | None = None
    max_long_partial_prefills: int | None = None
    long_prefill_token_threshold: int | None = None
    max_seq_len_to_capture: int | None = None
    max_logprobs: int | None = None
    num_scheduler_steps: int | None = None
    scheduling_policy: str | None = None
    async_scheduling: bool | None = None
    enforce_eager: bool | None = None
    compilation_config: Annotated[str | None, Parameter(name=["--compilation-config", "-O"])] = None
    enable_prefix_caching: bool | None = None
    prefix_caching_hash_algo: str | None = None
    enable_chunked_prefill: bool | None = None
    disable_log_requests: bool | None = None
    enable_log_requests: bool | None = None
    disable_log_stats: bool | None = None
    max_log_len: int | None = None
    uvicorn_log_level: str | None = None
    otlp_traces_endpoint: str | None = None
    enable_metrics: bool | None = None
    host: str | None = None
    url: str | None = None
    port: int | None = None
    disable_frontend_multiprocessing: bool | None = None

    @property
    def given(self) -> list[str]:
        """Names of those that were given."""
        return [_option(field.name) for field in fields(self) if getattr(self, field.name) is not None]


@Parameter(name="*", show=False)
@dataclass(kw_only=True)
class RefusedOptions:
    """Options that would change answers."""

    quantization: str | None = None
    kv_cache_dtype: str | None = None
    tokenizer: str | None = None
    tokenizer_mode: str | None = None
    tokenizer_revision: str | None = None
    code_revision: str | None = None
    chat_template: str | None = None
    chat_template_content_format: str | None = None
    response_role: str | None = None
    generation_config: str | None = None
    override_generation_config: str | None = None
    hf_overrides: str | None = None
    hf_config_path: str | None = None
    rope_scaling: str | None = None
    rope_theta: float | None = None
    disable_sliding_window: bool | None = None
    enable_lora: bool | None = None
    lora_modules: Annotated[tuple[str, ...] | None, _SEVERAL] = None
    speculative_config: str | None = None
    logits_processors: Annotated[tuple[str, ...] | None, _SEVERAL] = None
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    enable_auto_tool_choice: bool | None = None
    guided_decoding_backend: str | None = None
    structured_outputs_config: str | None = None
    return_tokens_as_token_ids: bool | None = None
    enable_prompt_tokens_details: bool | None = None
    task: str | None = None
    runner: str | None = None
    hf_token: str | None = None

    def check(self) -> None:
        """Raises `ConfigError` for the first that was given and is not vLLM's default."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value is not False and value != _DEFAULTS.get(field.name):
                raise ConfigError(f"{_option(field.name)} is not supported: {REASONS[field.name]}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_DEFAULTS: dict[str, Any] = {
    "kv_cache_dtype": "auto",
    "tokenizer_mode": "auto",
    "chat_template_content_format": "auto",
    "response_role": "assistant",
    "generation_config": "auto",
    "guided_decoding_backend": "auto",
    "task": "generate",
    "runner": "generate",
}

_OWN_TOKENIZER = "the tokenizer in the model's folder is used"
_OWN_CONFIG = "the config.json in the model's folder is used; change it there"
_TEXT_ONLY = "answers are plain text"

REASONS = {
    "quantization": "weights are used as they are in the checkpoint, in the type that --dtype names",
    "kv_cache_dtype": "keys and values are kept in the type of the weights",
    "tokenizer": _OWN_TOKENIZER,
    "tokenizer_mode": _OWN_TOKENIZER,
    "tokenizer_revision": _OWN_TOKENIZER,
    "code_revision": "code comes from the model's own --revision",
    "chat_template": "the model's own chat template is used",
    "chat_template_content_format": "the model's own chat template is used, with contents as they are given",
    "response_role": "answers are the assistant's",
    "generation_config": "the model's own generation_config.json is used; --temperature and its like override it",
    "override_generation_config": "say --temperature and its like",
    "hf_overrides": _OWN_CONFIG,
    "hf_config_path": _OWN_CONFIG,
    "rope_scaling": _OWN_CONFIG,
    "rope_theta": _OWN_CONFIG,
    "disable_sliding_window": _OWN_CONFIG,
    "enable_lora": "adapters are not applied; merge them into the model",
    "lora_modules": "adapters are not applied; merge them into the model",
    "speculative_config": "answers are drawn from the model alone",
    "logits_processors": "only the sampling options change probabilities",
    "reasoning_parser": _TEXT_ONLY,
    "tool_call_parser": _TEXT_ONLY,
    "enable_auto_tool_choice": _TEXT_ONLY,
    "guided_decoding_backend": "answers are not constrained",
    "structured_outputs_config": "answers are not constrained",
    "return_tokens_as_token_ids": _TEXT_ONLY,
    "enable_prompt_tokens_details": "usage has the three counts only",
    "task": "run-batch generates",
    "runner": "run-batch generates",
    "hf_token": "set the environment's HF_TOKEN instead, so that it stays out of the report",
}
"""Why each of `RefusedOptions` is refused."""
