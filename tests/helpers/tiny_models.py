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

_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_LINEAR = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_expand": 2}
_SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 16,
    "long_factor": [4.0] * 16,
    "original_max_position_embeddings": 512,
}

MIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3Moe", _EXPERTS),
    "mixtral": ("Mixtral", {**_EXPERTS, "sliding_window": 16}),
    "gpt_oss": ("GptOss", {**_EXPERTS, **_SLIDING}),
    "granite_hybrid": (
        "GraniteMoeHybrid",
        {
            **_EXPERTS,
            **_MAMBA,
            "shared_intermediate_size": 48,
            "layer_types": ["mamba", "attention"],
            "logits_scaling": 4.0,
        },
    ),
}
"""Mixtures of experts, sliding windows and Mamba layers, of which both engines read a tiny one on a CPU."""

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3Next", {**_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 48}),
    "nemotron_h": (
        "NemotronH",
        {
            "layers_block_type": ["mamba", "attention", "mlp"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
            "conv_kernel": 4,
        },
    ),
    "gemma4": (
        "Gemma4",
        {**_SLIDING, "final_logit_softcapping": 5.0, "hidden_size_per_layer_input": 16, "global_head_dim": 32},
    ),
    "phi4": ("Phi3", {"original_max_position_embeddings": 512, "rope_parameters": _LONGROPE, "pad_token_id": 0}),
    "mistral": ("Mistral", {"sliding_window": 16}),
    "lfm2": (
        "Lfm2",
        {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96, "conv_dim": 64, "conv_dim_out": 64},
    ),
    "llama4": ("Llama4", {**_EXPERTS, "num_local_experts": 2, "intermediate_size_mlp": 96}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            "num_key_value_heads": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 32,
            "first_k_dense_replace": 1,
        },
    ),
}
"""Architectures that one engine cannot run here, or not in float32; what vLLM makes of their configuration is looked at."""


def configuration(architecture: str, vocabulary: int, *, tied: bool = False, **more: Any) -> Any:
    """The configuration of a tiny model of any of the tables above; more settings win over those of the architecture."""
    prefix, settings = {**ARCHITECTURES, **MIXED, **OTHERS}[architecture]
    # Gemma and Llama 4 read pictures too; this is the configuration of their text half.
    made = getattr(transformers, f"{prefix}{'Text' if prefix in _SEE else ''}Config")(
        **{**SHAPE, **settings, **more},
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    made.architectures = [f"{prefix}ForCausalLM"]
    return made


_SEE = ("Gemma3", "Gemma4", "Llama4")

_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "depth": 1, "out_hidden_size": 64}
_THIRDS: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
SHELLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "Gemma3",
        {"sliding_window": 16, "query_pre_attn_scalar": 32},
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    ),
    "qwen2_5_vl": ("Qwen2_5_VL", {"rope_parameters": {**_THIRDS, "mrope_section": [4, 6, 6]}}, _VISION),
    "qwen3_vl": (
        "Qwen3VL",
        {"rope_parameters": {**_THIRDS, "mrope_section": [6, 5, 5], "mrope_interleaved": True}},
        {**_VISION, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_5": (
        "Qwen3_5",
        {
            **_LINEAR,
            "rope_parameters": {
                **_THIRDS,
                "partial_rotary_factor": 0.5,
                "mrope_section": [3, 3, 2],
                "mrope_interleaved": True,
            },
        },
        _VISION,
    ),
}
"""Name -> (prefix of the transformers classes, settings of the half that reads text, settings of the half that sees)."""


def make_shell(folder: Path, name: str) -> Path:
    """Write a random model that sees, around one that reads text, with the tokenizer of the shipped student."""
    prefix, text, vision = SHELLS[name]
    loaded = transformers.AutoTokenizer.from_pretrained(DATA / "models" / "student")
    last, tied = len(loaded) - 1, name == "gemma3"
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    own: dict[str, Any] = {each: last - place for place, each in enumerate(ids)}
    if name == "gemma3":
        own = {
            "image_token_index": last,
            "boi_token_index": last - 1,
            "eoi_token_index": last - 2,
            "mm_tokens_per_image": 4,
        }
    sizes = {"vocab_size": len(loaded), "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": tied}
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**SHAPE, **text, **sizes}, vision_config=vision, tie_word_embeddings=tied, **own
    )
    torch.manual_seed(7)
    getattr(transformers, f"{prefix}ForConditionalGeneration")(config).save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder


def make_model(
    folder: Path, architecture: str, *, tied: bool, padding: int = 0, tokenizer: str = "student", **more: Any
) -> Path:
    """Write a random model with the tokenizer of a shipped one; its vocabulary has `padding` more rows than the tokenizer.

    More settings of its configuration may be given; they win over those of the architecture.
    """
    loaded = transformers.AutoTokenizer.from_pretrained(DATA / "models" / tokenizer)
    config = configuration(architecture, len(loaded) + padding, tied=tied, **more)
    torch.manual_seed(7)
    model = getattr(transformers, config.architectures[0])(config)
    with torch.no_grad():
        # Padding rows that would win every comparison, if they counted.
        model.get_output_embeddings().weight[len(loaded) :] *= 50
    model.save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder


def exact_model(folder: Path) -> Any:
    """A model in float64, the oracle of what engines compute.

    Its attention is the plain one: what transformers takes by default ignores the soft cap of Gemma 2's attention. So are its
    experts: the fast ones know no float64.
    """
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    return loaded.eval()


BARE_VOCABULARY = 400
SHORT_LONGROPE = {**_LONGROPE, "original_max_position_embeddings": 64, "factor": 8.0}
"""Long positions begin after 64 tokens."""


def bare_model(kind: str, **settings: Any) -> Any:
    """A causal LM of that kind of transformers' classes, `BARE_VOCABULARY` entries, no tokenizer; always the same weights."""
    torch.manual_seed(5)
    own = {"vocab_size": BARE_VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **own, **settings})
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()
