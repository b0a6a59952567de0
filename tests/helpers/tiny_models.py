"""Tiny models of real architectures with random weights and the tokenizers that ship in data/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.helpers.paths import DATA

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {}),
    "llama": ("Llama", {}),
    "gemma2": (
        "Gemma2",
        {
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 10.0,
            "sliding_window": 16,
            "query_pre_attn_scalar": 32,
        },
    ),
    "gemma3": (
        "Gemma3",
        {"final_logit_softcapping": 5.0, "sliding_window": 16, "query_pre_attn_scalar": 32},
    ),
    "granite": ("Granite", {"logits_scaling": 4.0, "embedding_multiplier": 2.0}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
}
"""Name -> (prefix of the transformers classes, settings that matter for the logits)."""


def make_model(
    folder: Path, architecture: str, *, tied: bool, padding: int = 0, tokenizer: str = "student", **more: Any
) -> Path:
    """Write a random model with the tokenizer of a shipped one; its vocabulary has `padding` more rows than the tokenizer.

    More settings of its configuration may be given; they win over those of the architecture.
    """
    loaded = transformers.AutoTokenizer.from_pretrained(DATA / "models" / tokenizer)
    prefix, settings = ARCHITECTURES[architecture]
    # Gemma 3 reads pictures too; this is the configuration of its text half.
    config = getattr(transformers, f"{prefix}{'Text' if prefix == 'Gemma3' else ''}Config")(
        **{**SHAPE, **settings, **more},
        vocab_size=len(loaded) + padding,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(7)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    with torch.no_grad():
        # Padding rows that would win every comparison, if they counted.
        model.get_output_embeddings().weight[len(loaded) :] *= 50
    model.save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder


def exact_model(folder: Path) -> Any:
    """A model in float64, the oracle of what engines compute.

    Its attention is the plain one: what transformers takes by default ignores the soft cap of Gemma 2's attention.
    """
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    return loaded.eval()
