"""A trajectory too long for one forward pass, read in pieces: each attends to the keys and values of those before it.

In place of activations of the whole length, memory holds those of one piece and the cache. Only models for which that
gives the same hidden states are read so.
Axes: P positions, D hidden width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor

from trajscore.engines.rotary import depends_on_length

SMALLEST = 256
"""Tokens of the smallest piece; below it memory is not what pieces could save."""

PAIR_BYTES = 2**29
"""Memory that the pairs (token of the piece, token before it) may take: masks, and scores where attention keeps them."""

_PROBE, _PROBE_PIECE = 96, 40
_LOG = logging.getLogger("trajscore")


def piece_tokens(length: int, budget: int, pairs: int) -> int:
    """Tokens of each piece of a trajectory.

    Args:
        length: tokens of the trajectory.
        budget: tokens per forward pass.
        pairs: what `pair_bytes` says of the model.

    >>> piece_tokens(32_768, 8192, 5), piece_tokens(131_072, 8192, 5)
    (3276, 819)
    """
    return min(budget, max(SMALLEST, PAIR_BYTES // (length * pairs)))


def pair_bytes(attention: str | None, heads: int) -> int:
    """Bytes that one pair of tokens takes in one layer.

    With sdpa a boolean mask and its copy as float32; with eager attention three tensors of every head; nothing counts for
    kernels that know by themselves what comes before.
    """
    if attention == "eager":
        return 12 * heads
    return 5 if attention == "sdpa" else 1


@torch.inference_mode()
def hidden_pieces(backbone: Any, ids_P: Tensor, piece: int) -> Iterator[tuple[int, Tensor]]:
    """Hidden states after the final norm: (first position, [piece, D]) for every piece in order.

    Args:
        backbone: a causal model without its head.
        ids_P: int64 token ids on the backbone's device.
        piece: tokens per forward pass.
    """
    cache = transformers.DynamicCache(config=backbone.config.get_text_config())
    for start in range(0, len(ids_P), piece):
        output = backbone(
            input_ids=ids_P[None, start : start + piece], past_key_values=cache, use_cache=True, return_dict=True
        )
        yield start, output.last_hidden_state[0]


@torch.inference_mode()
def reads_in_pieces(backbone: Any, device: torch.device) -> bool:
    """Whether pieces give a model's own hidden states, seen by trying on a few tokens.

    Architectures with states of their own forget them between pieces, and some positions are scaled by the length of the
    whole: those have to be read at once, which is said in the log.
    """
    config = backbone.config.get_text_config()
    reason = "its positions depend on the whole length" if depends_on_length(config) else ""
    if not reason:
        ids_P = torch.linspace(0, config.vocab_size - 1, _PROBE, device=device).long()
        whole_PD = backbone(input_ids=ids_P[None], use_cache=False, return_dict=True).last_hidden_state[0].float()
        try:
            cut_PD = torch.cat([hidden for _, hidden in hidden_pieces(backbone, ids_P, _PROBE_PIECE)]).float()
            error = float((cut_PD - whole_PD).norm() / whole_PD.norm())
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError):
            error = float("inf")  # a model with a cache of its own kind
        if not error <= (1e-3 if backbone.dtype.itemsize >= 4 else 0.1):
            reason = "pieces of a text give it other hidden states"
    if reason:
        _LOG.warning("long trajectories are read whole by %s: %s", type(backbone).__name__, reason)
    return not reason
