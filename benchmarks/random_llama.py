"""A Llama of 134.5M random parameters (538 MB in fp32), shaped as SmolLM-135M: for benchmarks of loading.

It comes with the bundled model's tokenizer, whose 1,024 tokens are fewer than the model's 49,152.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY = 576, 30, 9, 3, 1536, 49152


def shape(layers: int) -> dict[str, int]:
    """The settings of its configuration, with so many layers."""
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 2048,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
    }


def write(folder: Path, seed: int = 0) -> Path:
    """Write config, tokenizer and weights."""
    import numpy as np
    from safetensors.numpy import save_file

    from pilotlight.factcheck import bundled

    folder.mkdir(parents=True, exist_ok=True)
    tiny = bundled.model_folder()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, folder / name)
    config = json.loads((tiny / "config.json").read_text()) | shape(LAYERS)
    config |= {"head_dim": HIDDEN // HEADS, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    choice = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return choice.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    kv = KV_HEADS * (HIDDEN // HEADS)
    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN), "model.norm.weight": np.ones(HIDDEN, "f4")}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.input_layernorm.weight": np.ones(HIDDEN, "f4"),
            f"{at}.post_attention_layernorm.weight": np.ones(HIDDEN, "f4"),
            f"{at}.self_attn.q_proj.weight": matrix(HIDDEN, HIDDEN),
            f"{at}.self_attn.k_proj.weight": matrix(kv, HIDDEN),
            f"{at}.self_attn.v_proj.weight": matrix(kv, HIDDEN),
            f"{at}.self_attn.o_proj.weight": matrix(HIDDEN, HIDDEN),
            f"{at}.mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{at}.mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{at}.mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
