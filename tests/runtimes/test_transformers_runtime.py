"""TransformersRuntime: the kit (with forks), loading and its errors, and other families of models."""

# ruff: noqa: E402  (what is imported needs what `importorskip` looks for)

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pilotlight.core.errors import ConfigError, LoadError
from pilotlight.runtimes.transformers import TransformersRuntime
from pilotlight.testing.runtimes import RuntimeCase, check, run_rows
from pilotlight.wire import Operation, Sampling
from tests import tiny

CLASSIFY = Operation(kind="classify", labels=["SUPPORTS", "NOT ENOUGH INFO"])
GENERATE = Operation(kind="generate", sampling=Sampling(temperature=0.0, max_tokens=8, ignore_eos=True))
HEAD = "Answer yes or no. The quick brown fox jumps over the lazy dog. "
ROWS = [{"prompt": HEAD + text} for text in ("Is water wet?", "hello", "x", "Marie Curie was born in Paris.", "0 1")]


def same(one: Any, other: Any) -> bool:
    """Equal, but for rounding in log-probabilities."""
    if "logprobs" not in one:
        return bool(one == other)
    close = one["logprobs"] == pytest.approx(other["logprobs"], abs=2e-4)
    return bool(close and one["label"] == other["label"])


def load(folder: Path, **options: Any) -> Any:
    return TransformersRuntime().load(tiny.context_of(folder, **options), tiny.CPU)


def test_conforms(folder: Path) -> None:
    sampled = Operation(kind="generate", sampling=Sampling(temperature=0.8, top_p=0.9, seed=1, max_tokens=6))
    jobs = [(CLASSIFY, ROWS), (GENERATE, ROWS), (sampled, ROWS[:3])]
    bad = [({}, "bad_row"), ({"prompt": [5] * 600}, "prompt_too_long"), ({"prompt": 4}, "bad_row")]
    check(RuntimeCase(TransformersRuntime, tiny.context_of(folder), jobs, bad=bad, device=tiny.CPU, same=same))


def test_stages_and_memory_are_measured(model: Any) -> None:
    assert set(model.stages) == {"read", "to_device", "warm"}
    assert model.memory_bytes > 100_000
    assert model.wanted >= 16


def test_options_choose_dtype_and_length(folder: Path) -> None:
    live = load(folder, dtype="bfloat16", max_model_len=64)
    assert live._network.dtype is torch.bfloat16
    (outcome,) = run_rows(live, GENERATE, [{"prompt": [5] * 64}])
    assert outcome.error_kind == "prompt_too_long"
    assert load(folder)._network.dtype is torch.float32


@pytest.mark.parametrize("options", [{"dtype": "float3"}, {"max_model_len": 4096}, {"max_model_len": 0}])
def test_options_that_make_no_sense_are_refused(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load(folder, **options)


def test_a_missing_or_broken_folder_is_one_sentence(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(LoadError, match="not there"):
        load(tmp_path / "nowhere")
    with pytest.raises(LoadError, match="can't be read"):
        load(tmp_path)
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(LoadError, match="can't be loaded"):
        load(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path, folder: Path, reference: Any) -> None:
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(LoadError):
        load(tmp_path)


def test_a_missing_library_names_the_extra() -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from pilotlight.core.errors import MissingExtra\n"
        "from pilotlight.runtimes.transformers import TransformersRuntime\n"
        "try:\n    TransformersRuntime().preload()\n"
        "except MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'pilotlight[transformers]'" in done.stdout


def families() -> dict[str, tuple[Any, bool | None]]:
    """Configs of other families, and whether they may share prefixes at this length. None: depends on the version of
    transformers (5.0 makes the masks of some models its own way), and the probe finds out."""
    common = {
        "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.3,
    }  # fmt: skip
    return {
        "qwen2": (transformers.Qwen2Config(**common), True),
        "qwen3": (transformers.Qwen3Config(**common), True),
        "mistral": (transformers.MistralConfig(**common, sliding_window=16), False),
        "mistral-wide": (transformers.MistralConfig(**common, sliding_window=512), True),
        "gemma3": (transformers.Gemma3TextConfig(**common, sliding_window=16), False),
        "gemma2": (transformers.Gemma2Config(**common, sliding_window=16), False),
        "gpt2": (
            transformers.GPT2Config(
                vocab_size=tiny.VOCABULARY, n_positions=512, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
                bos_token_id=0, eos_token_id=1,
            ),
            True,
        ),
        "granite": (transformers.GraniteConfig(**common, logits_scaling=3.0), True),
        "bloom": (transformers.BloomConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, n_layer=2, n_head=4), False),
        "falcon-alibi": (
            transformers.FalconConfig(
                vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True,
                new_decoder_architecture=False, initializer_range=0.3, bos_token_id=0, eos_token_id=1,
            ),
            False,
        ),
        "lfm2": (
            transformers.Lfm2Config(**common, full_attn_idxs=[1], block_multiple_of=32, conv_L_cache=3),
            False,
        ),
        "stablelm": (transformers.StableLmConfig(**common), None),
        "smollm3": (transformers.SmolLM3Config(**common), True),
        "phi3": (transformers.Phi3Config(**common), True),
        "olmo2": (transformers.Olmo2Config(**common), True),
        "gemma": (transformers.GemmaConfig(**common), True),
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(families()))
def test_other_families_agree_with_transformers(tmp_path: Path, name: str) -> None:
    config, plain = families()[name]
    folder = tiny.make_model(tmp_path / "model", config=config)
    live = load(folder)
    live._budget._pass_s = 0.0  # what is shared does not depend on how busy the machine is
    assert plain is None or live._network.plain is plain
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    generated, scored = run_rows(live, GENERATE, ROWS), run_rows(live, CLASSIFY, ROWS)
    for row, text, label in zip(ROWS, generated, scored, strict=True):
        ids = tokenizer(row["prompt"])["input_ids"]
        answer = hf.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=2, eos_token_id=None)[
            0
        ][len(ids) :]
        assert text.result["text"] == tokenizer.decode(answer, skip_special_tokens=True)
        own = tokenizer.encode(" SUPPORTS", add_special_tokens=False)
        with torch.inference_mode():
            logits = hf(input_ids=torch.tensor([ids + own])).logits[0].log_softmax(-1)
        expected = sum(float(logits[len(ids) - 1 + place, token]) for place, token in enumerate(own))
        assert label.result["logprobs"]["SUPPORTS"] == pytest.approx(expected, abs=5e-4)
