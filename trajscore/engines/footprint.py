"""What a model will need before it is loaded: bytes of weights, cache and activations, and multiplications per trajectory.

It knows configurations of transformers and how the engines cut a batch; no weights are read. The figures are estimates from
shapes: kernels, allocators and quantised weights have overheads and savings of their own.
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
class MemoryNeed:
    """Bytes that one model needs on its device, or on each device of a tensor parallel group.

    Attributes:
        weights: parameters in the precision they run in.
        cache: keys and values of the longest trajectory, where it is read in pieces.
        activations: hidden states, attention and feed-forward of one forward pass.
        head: one block of logits and what is made of it.
    """

    weights: int
    cache: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.cache + self.activations + self.head


@dataclass(frozen=True)
class Footprint:
    """Shapes of a model that decide what it needs.

    Attributes:
        parameters: all of them.
        backbone: parameters that one token meets in the backbone; of a mixture of experts, those of its share.
        itemsize: bytes of one number.
        layers: layers with attention.
        hidden: width.
        heads: of queries.
        key_values: heads of keys and values.
        head_width: of one head.
        feed_forward: width inside the feed-forward block, all experts of a token together.
        vocabulary: rows of the output head.
        window: tokens that sliding layers see, or None.
        sliding: layers with that window.
        attention: what computes attention in transformers.
        max_model_len: positions that the model was made for, or None.
    """

    parameters: int
    backbone: int
    itemsize: int
    layers: int
    hidden: int
    heads: int
    key_values: int
    head_width: int
    feed_forward: int
    vocabulary: int
    window: int | None
    sliding: int
    attention: str
    max_model_len: int | None

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values of a trajectory."""
        per_layer = 2 * self.key_values * self.head_width * self.itemsize
        seen = min(tokens, self.window or tokens)
        return per_layer * ((self.layers - self.sliding) * tokens + self.sliding * seen)

    def memory(self, longest: int, options: EngineOptions, *, engine: str, pair: bool) -> MemoryNeed:
        """What running trajectories of at most `longest` tokens needs.

        Args:
            longest: tokens of the longest one.
            options: how the model runs.
            engine: `vllm`, which keeps keys and values of all it reads, or `hf`, which does so for what is longer than a batch.
            pair: whether another model's head is reduced beside its own.
        """
        shared, batch = options.tensor_parallel_size, options.max_num_batched_tokens
        in_pieces = engine == "hf" and longest > batch
        pairs = pair_bytes(self.attention, self.heads)
        inner = max((3 * self.heads + 4 * self.key_values) * self.head_width, 3 * self.feed_forward)
        width = (6 * self.hidden + inner) * self.itemsize
        activations = batch * width
        if in_pieces:
            # What every pair takes, and one layer's keys and values repeated for every head; or a batch of shorter ones.
            tokens = piece_tokens(longest, batch, pairs)
            repeated = 2 * self.heads * self.head_width * self.itemsize * longest
            activations = max(activations, tokens * (width + longest * pairs) + repeated)
        elif engine == "hf" and self.attention == "eager":
            activations += max(1, batch // longest) * longest**2 * pairs
        cuda = torch.cuda.is_available()
        rows, block = (CUDA_ROWS, CUDA_BLOCK) if cuda else (ROWS, BLOCK)
        block = min(block, self.vocabulary)
        head = 4 * rows * (_MASKS * block + 5 * -(-self.vocabulary // block)) + 4 * block * self.hidden
        return MemoryNeed(
            weights=self.parameters * self.itemsize // shared,
            cache=self.cache_bytes(longest) // shared if in_pieces or engine == "vllm" else 0,
            activations=activations // shared,
            head=head * (2 if pair else 1),
        )

    def work(self, tokens: int, scored: int, *, products: int = 1) -> float:
        """Floating-point operations of one trajectory: of use in ratios only.

        Args:
            tokens: of the trajectory.
            scored: tokens that meet the output head.
            products: how often they do.
        """
        seen = tokens * min(tokens, self.window) if self.window else tokens**2 / 2
        attended = (self.layers - self.sliding) * tokens**2 / 2 + self.sliding * min(seen, tokens**2 / 2)
        attention = 4 * self.heads * self.head_width * attended
        return 2 * self.backbone * tokens + attention + 2 * self.hidden * self.vocabulary * scored * products


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
    config = whole.get_text_config()
    # Where there is a soft cap, the engine asks for eager attention too.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    own = getattr(model.config.get_text_config(), "_attn_implementation", None)
    attention = options.attn_implementation or ("eager" if capped else own or "eager")
    return _of(model, config, attention, options)


def _of(model: Any, config: Any, attention: str, options: EngineOptions) -> Footprint:
    heads = int(getattr(config, "num_attention_heads", 1))
    hidden = int(config.hidden_size)
    kinds = list(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None)
    per_token = int(getattr(config, "num_experts_per_tok", None) or 1)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    count = int(getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or per_token)
    parameters = sum(p.numel() for p in model.parameters())
    tables = {
        id(module.weight): module.weight.numel()
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
    }
    inner = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None) or 4 * hidden
    return Footprint(
        parameters=parameters,
        backbone=parameters - sum(tables.values()) - experts + experts * per_token // max(1, count),
        itemsize=_itemsize(config, options),
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        heads=heads,
        key_values=int(getattr(config, "num_key_value_heads", None) or heads),
        head_width=int(getattr(config, "head_dim", None) or hidden // heads),
        feed_forward=int(inner) * per_token,
        vocabulary=int(config.vocab_size),
        window=int(window) if window else None,
        sliding=kinds.count("sliding_attention") if window else 0,
        attention=attention,
        max_model_len=getattr(config, "max_position_embeddings", None),
    )


def _itemsize(config: Any, options: EngineOptions) -> int:
    name = options.dtype
    if name == "auto":
        checkpoint = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32
        cpu = options.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        dtype = torch.float32 if cpu else checkpoint
    else:
        dtype = getattr(torch, name)
    return int(dtype.itemsize if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype)).itemsize)
