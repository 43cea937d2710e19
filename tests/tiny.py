"""Tiny language models with random weights and a real tokenizer, made on the spot: nothing is downloaded.

The tokenizer is a byte-level BPE with a BOS post-processor and a chat template that writes the BOS itself, as Llama's
does: the arrangement in which a careless runtime doubles it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilotlight.wire import Context, DeviceSpec

CORPUS = [
    "Evidence: The river Elbe flows through Dresden.\nClaim: The Elbe flows through Hamburg.\nVerdict: SUPPORTS",
    "Evidence: Marie Curie was born in Warsaw.\nClaim: Marie Curie was born in Paris.\nVerdict: REFUTES",
    "Answer yes or no. Is water wet? The quick brown fox jumps over the lazy dog. NOT ENOUGH INFO",
    "user system assistant: you are a helpful assistant that says hello to the world 0 1 2 3 4 5 6 7 8 9",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% if shout is defined %}{{ shout }}{% endif %}{% endif %}"
)
VOCABULARY = 384
CPU = DeviceSpec(id="cpu", kind="cpu", type="cpu", memory_bytes=2 << 30, threads=1)


def make_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """A `PreTrainedTokenizerFast` of at most 384 tokens with `<s>`, `</s>` and `<pad>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=1 << 20
    )
    fast.chat_template = chat_template
    return fast


def make_config(**changes: Any) -> Any:
    """A Llama of two layers with grouped queries."""
    from transformers import LlamaConfig

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.3,
    }
    return LlamaConfig(**{**settings, **changes})


def make_model(folder: Path, *, config: Any = None, seed: int = 0, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Write config, weights and tokenizer into `folder`. Weights are wide enough that tokens differ clearly."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config or make_config())
    network.generation_config.eos_token_id = 1
    network.generation_config.do_sample = False
    network.save_pretrained(folder)
    make_tokenizer(chat_template=chat_template).save_pretrained(folder)
    return folder


def context_of(folder: Path, **options: Any) -> Context:
    """A context of the transformers runtime."""
    return Context(runtime="transformers", name="tiny", identity=str(folder), model_path=str(folder), options=options)
