"""What a model will need before it is loaded: bytes of weights and of what it holds while it runs.

Estimates from the shapes in a model's configuration and from how the engines cut a batch; no weights are read. Kernels,
allocators and quantised weights have overheads and savings of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from trajscore.engines import EngineOptions
from trajscore.engines.checkpoint import auto_class
from trajscore.engines.hf import CPU_TOKENS
from trajscore.engines.pieces import pair_bytes, piece_tokens
from trajscore.errors import UsageError, first_line
from trajscore.rendering.tokenizer import require_model
from trajscore.statistics.blocks import BLOCK, CUDA_BLOCK, CUDA_ROWS, ROWS

_MASKS = 3
"""Float32 tensors of rows x block that a reduction holds: logits, their exponentials, and gathered columns."""


class Footprint:
    """The shapes of a model that decide what it needs, from its configuration alone.

    Args:
        name: hub id or folder.
        revision: branch, tag or commit of a hub model.
        options: how it runs.

    Attributes:
        weight_bytes: of all parameters in the precision they run in.
        head_bytes: of the output head, in the precision it is kept in.
        max_model_len: positions that the model was made for, or None.

    Raises:
        UsageError: it has no configuration, or one that describes no causal language model.
    """

    def __init__(self, name: str, revision: str | None, options: EngineOptions) -> None:
        model, config = _empty(name, revision, options)

        def of(*names: str) -> Any:
            """The first of some settings that is there and not 0."""
            return next(filter(None, (getattr(config, name, None) for name in names)), None)

        self._itemsize, self._layers = _itemsize(config, options), int(config.num_hidden_layers)
        self._heads, self._hidden = int(of("num_attention_heads") or 1), int(config.hidden_size)
        self._key_values = int(of("num_key_value_heads") or self._heads)
        self._head_width = int(of("head_dim") or self._hidden // self._heads)
        self._position_bytes = 2 * self._key_values * self._head_width * self._itemsize
        self._window: int | None = of("sliding_window")
        self._sliding = list(of("layer_types") or []).count("sliding_attention") if self._window else 0
        # All experts of a token together.
        inner = int(of("moe_intermediate_size", "intermediate_size") or 4 * self._hidden)
        self._feed_forward = inner * (of("num_experts_per_tok") or 1)
        # Where there is a soft cap, the engine asks for eager attention too.
        own = getattr(model.config.get_text_config(), "_attn_implementation", None)
        own = "eager" if of("attn_logit_softcapping") else own or "eager"
        self._attention = options.attn_implementation or own
        self._vocabulary = int(config.vocab_size)
        self.head_bytes = self._vocabulary * self._hidden * self._itemsize
        self.weight_bytes = sum(each.numel() for each in model.parameters()) * self._itemsize
        self.max_model_len: int | None = of("max_position_embeddings")

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values of a trajectory."""
        seen = min(tokens, self._window or tokens)
        positions = (self._layers - self._sliding) * tokens + self._sliding * seen
        return self._position_bytes * positions

    def shared_bytes(self, longest: int, options: EngineOptions) -> int:
        """Keys and values of a batch whose rows go on from one prompt: the prompt's, and those of every row with a copy of it.

        A batch has at most twice as many positions as tokens are read at once. Windows save nothing of it.
        """
        together = min(options.max_num_batched_tokens, CPU_TOKENS)
        return self._layers * self._position_bytes * (min(longest, together) + 2 * together)

    def running_bytes(self, longest: int, options: EngineOptions, *, engine: str, other_head: int = 0) -> int:
        """What running trajectories of at most `longest` tokens takes beside the weights, on each device.

        Args:
            longest: tokens of the longest one.
            options: how the model runs.
            engine: `vllm`, which keeps keys and values of all it reads, or `hf`, which does so for what is longer than a batch,
                and on a CPU for a batch of rows that begin alike.
            other_head: bytes of another model's head that is reduced beside its own.
        """
        batch, pairs = options.max_num_batched_tokens, pair_bytes(self._attention, self._heads)
        in_pieces = engine == "hf" and longest > batch
        inner = max((3 * self._heads + 4 * self._key_values) * self._head_width, 3 * self._feed_forward)
        width = (6 * self._hidden + inner) * self._itemsize
        activations = batch * width
        if in_pieces:
            # What every pair takes, and one layer's keys and values repeated for every head; or a batch of shorter ones.
            repeated = 2 * self._heads * self._head_width * self._itemsize * longest
            activations = max(activations, piece_tokens(longest, batch, pairs) * (width + longest * pairs) + repeated)
        elif engine == "hf" and self._attention == "eager":
            activations += max(1, batch // longest) * longest**2 * pairs
        cache = self.cache_bytes(longest) if in_pieces or engine == "vllm" else 0
        if engine == "hf" and _on_cpu(options):
            cache = max(cache, self.shared_bytes(longest, options))
        rows, block = (CUDA_ROWS, CUDA_BLOCK) if torch.cuda.is_available() else (ROWS, BLOCK)
        block = min(block, self._vocabulary)
        head = 4 * rows * (_MASKS * block + 5 * -(-self._vocabulary // block)) + 4 * block * self._hidden
        # Workers that share a model have a part of the activations each, and of both heads.
        return (activations + cache + other_head) // options.tensor_parallel_size + head * (2 if other_head else 1)


def _empty(name: str, revision: str | None, options: EngineOptions) -> tuple[Any, Any]:
    """The model without weights, and the configuration of its text."""
    require_model(name)
    trusted = options.trust_remote_code
    try:
        whole = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trusted)
        with torch.device("meta"):
            model = auto_class(whole).from_config(whole, trust_remote_code=trusted)
    except Exception as error:  # transformers raises many kinds for the same thing: no such model
        raise UsageError(
            f"{name}: cannot be planned for ({first_line(error)}).",
            "Give a hub id or a folder with the config.json of a causal language model.",
        ) from error
    return model, whole.get_text_config()


def _on_cpu(options: EngineOptions) -> bool:
    return options.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())


def _itemsize(config: Any, options: EngineOptions) -> int:
    if options.dtype != "auto":
        return int(getattr(torch, options.dtype).itemsize)
    if _on_cpu(options):
        return 4
    named = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
    return int(named.itemsize if isinstance(named, torch.dtype) else getattr(torch, str(named)).itemsize)
