"""What a model will need before it is loaded: bytes of weights and of what it holds while it runs.

Estimates from the shapes in a model's configuration and from how the engines cut a batch; no weights are read. Kernels,
allocators and quantised weights have overheads and savings of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from trajscore.engines import EngineOptions
from trajscore.engines.pieces import pair_bytes, piece_tokens
from trajscore.errors import UsageError, first_line
from trajscore.rendering.tokenizer import require_model
from trajscore.statistics.blocks import BLOCK, CUDA_BLOCK, CUDA_ROWS, ROWS

_MASKS = 3
"""Float32 tensors of rows x block that a reduction holds: logits, their exponentials, and gathered columns."""


@dataclass(frozen=True)
class Footprint:
    """Shapes of a model that decide what it needs.

    Attributes:
        weight_bytes: of all parameters in the precision they run in; `itemsize` bytes each.
        layers: with attention; `sliding` of them see `window` tokens, if there is one.
        hidden: width; `feed_forward` inside that block, all experts of a token together.
        heads: of queries, `key_values` of keys and values, each `head_width` wide.
        vocabulary: rows of the output head.
        attention: what computes attention in transformers.
        max_model_len: positions that the model was made for, or None.
    """

    weight_bytes: int
    itemsize: int
    layers: int
    sliding: int
    window: int | None
    hidden: int
    feed_forward: int
    heads: int
    key_values: int
    head_width: int
    vocabulary: int
    attention: str
    max_model_len: int | None

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values of a trajectory."""
        seen = min(tokens, self.window or tokens)
        positions = (self.layers - self.sliding) * tokens + self.sliding * seen
        return 2 * self.key_values * self.head_width * self.itemsize * positions

    @property
    def head_bytes(self) -> int:
        """The output head, in the precision it is kept in."""
        return self.vocabulary * self.hidden * self.itemsize

    def running_bytes(self, longest: int, options: EngineOptions, *, engine: str, other_head: int = 0) -> int:
        """What running trajectories of at most `longest` tokens takes beside the weights, on each device.

        Args:
            longest: tokens of the longest one.
            options: how the model runs.
            engine: `vllm`, which keeps keys and values of all it reads, or `hf`, which does so for what is longer than a batch.
            other_head: bytes of another model's head that is reduced beside its own.
        """
        batch, pairs = options.max_num_batched_tokens, pair_bytes(self.attention, self.heads)
        in_pieces = engine == "hf" and longest > batch
        inner = max((3 * self.heads + 4 * self.key_values) * self.head_width, 3 * self.feed_forward)
        width = (6 * self.hidden + inner) * self.itemsize
        activations = batch * width
        if in_pieces:
            # What every pair takes, and one layer's keys and values repeated for every head; or a batch of shorter ones.
            repeated = 2 * self.heads * self.head_width * self.itemsize * longest
            activations = max(activations, piece_tokens(longest, batch, pairs) * (width + longest * pairs) + repeated)
        elif engine == "hf" and self.attention == "eager":
            activations += max(1, batch // longest) * longest**2 * pairs
        cache = self.cache_bytes(longest) if in_pieces or engine == "vllm" else 0
        rows, block = (CUDA_ROWS, CUDA_BLOCK) if torch.cuda.is_available() else (ROWS, BLOCK)
        block = min(block, self.vocabulary)
        head = 4 * rows * (_MASKS * block + 5 * -(-self.vocabulary // block)) + 4 * block * self.hidden
        return (activations + cache) // options.tensor_parallel_size + head * (2 if other_head else 1) + other_head


def footprint(name: str, revision: str | None, options: EngineOptions) -> Footprint:
    """The footprint of a model, from its configuration alone.

    Raises:
        UsageError: it has no configuration, or one that describes no causal language model.
    """
    require_model(name)
    try:
        whole = transformers.AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=options.trust_remote_code
        )
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(whole, trust_remote_code=options.trust_remote_code)
    except Exception as error:  # transformers raises many kinds for the same thing: no such model
        raise UsageError(
            f"{name}: cannot be planned for ({first_line(error)}).",
            "Give a hub id or a folder with the config.json of a causal language model.",
        ) from error
    return _of(model, whole.get_text_config(), options)


def _of(model: Any, config: Any, options: EngineOptions) -> Footprint:
    def of(*names: str) -> Any:
        """The first of some settings that is there and not 0."""
        return next(filter(None, (getattr(config, name, None) for name in names)), None)

    heads, hidden, window = int(of("num_attention_heads") or 1), int(config.hidden_size), of("sliding_window")
    itemsize = _itemsize(config, options)
    # Where there is a soft cap, the engine asks for eager attention too.
    own = getattr(model.config.get_text_config(), "_attn_implementation", None)
    return Footprint(
        weight_bytes=sum(p.numel() for p in model.parameters()) * itemsize,
        itemsize=itemsize,
        layers=int(config.num_hidden_layers),
        sliding=list(of("layer_types") or []).count("sliding_attention") if window else 0,
        window=int(window) if window else None,
        hidden=hidden,
        feed_forward=int(of("moe_intermediate_size", "intermediate_size") or 4 * hidden)
        * (of("num_experts_per_tok") or 1),
        heads=heads,
        key_values=int(of("num_key_value_heads") or heads),
        head_width=int(of("head_dim") or hidden // heads),
        vocabulary=int(config.vocab_size),
        attention=options.attn_implementation or ("eager" if of("attn_logit_softcapping") else own or "eager"),
        max_model_len=of("max_position_embeddings"),
    )


def _itemsize(config: Any, options: EngineOptions) -> int:
    if options.dtype != "auto":
        return int(getattr(torch, options.dtype).itemsize)
    if options.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        return 4
    named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    return int(named.itemsize if isinstance(named, torch.dtype) else getattr(torch, str(named)).itemsize)
