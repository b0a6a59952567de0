"""Sequences that begin alike, as answers to one prompt do: the prefix is read once, and each goes on from its keys and values.

Only models for which that gives the same hidden states are read so; that is tried on a few tokens.
Axes: B sequences of a batch, P positions, D hidden width.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from trajscore.engines.rotary import depends_on_length
from trajscore.rendering.tokens import TokenSequence

SHORTEST = 32
"""Tokens of the shortest prefix that is read apart: a pass over fewer costs more by token than it saves."""

SHARE = 0.25
"""Of the tokens of those that begin alike, what sharing has to save: batches of one prefix are smaller, so dearer by token."""

FEWEST = 512
"""Tokens that sharing has to save altogether, as trying a model takes some too."""

_PROBE, _PROBE_PREFIX = (64, 96), 40


@dataclass(frozen=True)
class Prefix:
    """A prefix and the sequences that begin with it.

    Attributes:
        length: its tokens; all states that predict scored tokens come after it.
        members: numbers of the sequences, longest first.
    """

    length: int
    members: list[int]


def shared_prefixes(sequences: Sequence[TokenSequence]) -> list[Prefix]:
    """What is worth reading once; empty where hardly anything is.

    Two sequences share what lies before their first predicting state or nothing at all.
    """
    alike: dict[bytes, list[int]] = defaultdict(list)
    for number, sequence in enumerate(sequences):
        if len(sequence.positions_N) and (length := int(sequence.positions_N[0]) - 1) >= SHORTEST:
            alike[sequence.input_ids_P[:length].tobytes()].append(number)
    found, saved = list[Prefix](), 0
    for members in alike.values():
        length = int(sequences[members[0]].positions_N[0]) - 1
        saves = length * (len(members) - 1)
        if saves >= SHARE * sum(len(sequences[number].input_ids_P) for number in members):
            found.append(Prefix(length, sorted(members, key=lambda number: -len(sequences[number].input_ids_P))))
            saved += saves
    return found if saved >= FEWEST else []


@torch.inference_mode()
def read_prefix(backbone: Any, ids_P: Tensor) -> Any:
    """Keys and values of a prefix, for `read_on`."""
    cache = transformers.DynamicCache(config=backbone.config.get_text_config())
    backbone(input_ids=ids_P[None], past_key_values=cache, use_cache=True, return_dict=True)
    return cache


@torch.inference_mode()
def read_on(backbone: Any, cache: Any, ids_BP: Tensor) -> Tensor:
    """Hidden states after the final norm, [B, P, D], of sequences that follow one prefix; the prefix's cache stays as it is."""
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(len(ids_BP))
    output = backbone(input_ids=ids_BP, past_key_values=own, use_cache=True, return_dict=True)
    hidden_BPD: Tensor = output.last_hidden_state
    return hidden_BPD


@torch.inference_mode()
def can_share(backbone: Any, device: torch.device) -> bool:
    """Whether sequences that go on from a shared prefix get the states that they have when read whole, seen on two."""
    config = backbone.config.get_text_config()
    if depends_on_length(config):
        return False
    short, long = _PROBE
    ids_2P = torch.linspace(0, config.vocab_size - 1, 2 * long, device=device).long().reshape(2, long)
    ids_2P[1, :_PROBE_PREFIX] = ids_2P[0, :_PROBE_PREFIX]
    try:
        cache = read_prefix(backbone, ids_2P[0, :_PROBE_PREFIX])
        shared_2PD = read_on(backbone, cache, ids_2P[:, _PROBE_PREFIX:])
        for row, length in enumerate((long, short)):
            whole_PD = backbone(input_ids=ids_2P[row : row + 1, :length], use_cache=False).last_hidden_state[0]
            whole_PD = whole_PD[_PROBE_PREFIX:].float()
            error = (shared_2PD[row, : len(whole_PD)].float() - whole_PD).norm() / whole_PD.norm()
            if not error <= (1e-4 if backbone.dtype.itemsize >= 4 else 0.05):
                return False
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError, RuntimeError):
        return False  # a model with a cache of its own kind
    return True
