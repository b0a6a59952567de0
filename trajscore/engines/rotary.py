"""Rotary positions that depend on how long the whole sequence is: which lengths may share a batch.

In a batch padded on the right, transformers takes the padded length for that of every row. With `longrope` the rows then all
get the factors of long texts, or none does; with `dynamic` each row gets the base of the longest, also of one seen earlier.

To add a kind: `_FIXED` where its frequencies never change, else how long a text may be for the first ones, in `_edge`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

_FIXED = {"default", "linear", "llama3", "proportional", "yarn", "mrope"}
"""Kinds whose frequencies are the same whatever the length."""


def length_class(config: Any) -> Callable[[int], int] | None:
    """A number for every length, such that sequences with the same number give the same values together as alone.

    Args:
        config: a model's text configuration.

    Returns:
        None where all lengths may be mixed. A kind of rotary positions that is not known is taken for one that depends on
        the very length.

    >>> from types import SimpleNamespace
    >>> rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    >>> of = length_class(SimpleNamespace(rope_parameters=rope, max_position_embeddings=131072))
    >>> of(10), of(4096), of(4097), of(100_000)
    (0, 0, 1, 1)
    """
    entries = list(_entries(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)))
    varying = [entry for entry in entries if _kind(entry) not in _FIXED]
    if not varying:
        return None
    made_for = int(getattr(config, "max_position_embeddings", 0) or 0)
    edges = sorted({_edge(entry, config, made_for) for entry in varying})
    if all(_kind(entry) == "longrope" for entry in varying):
        return lambda length: sum(length > edge for edge in edges)
    return lambda length: max(length, edges[0])


def longest_alike(config: Any) -> int | None:
    """The longest sequence that is read with the frequencies of short ones; None where none is known to be read otherwise.

    A kind that is not known needs no guess: transformers cannot load it, and so neither engine reads it.

    >>> from types import SimpleNamespace
    >>> rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    >>> longest_alike(SimpleNamespace(rope_parameters=rope, max_position_embeddings=131072))
    4096
    """
    entries = _entries(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    made_for = int(getattr(config, "max_position_embeddings", 0) or 0)
    return min(
        (_edge(entry, config, made_for) for entry in entries if _kind(entry) in ("longrope", "dynamic")), default=None
    )


def depends_on_length(config: Any) -> bool:
    """Whether the frequencies of any layer depend on the length of the whole sequence."""
    return length_class(config) is not None


def forget_lengths(backbone: Any) -> None:
    """Undo what a longer sequence left in the rotary layers of a `dynamic` model."""
    for module in backbone.modules():
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            prefix = name.removesuffix("max_seq_len_cached")
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if original is not None:
                device = getattr(module, f"{prefix}inv_freq").device
                # A copy: later transformers writes the next frequencies into the buffer that it finds.
                module.register_buffer(f"{prefix}inv_freq", original.to(device).clone(), persistent=False)
                setattr(module, name, module.original_max_seq_len)


def _entries(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of rotary positions, one for every kind of layer where these differ."""
    if not isinstance(parameters, Mapping):
        return
    if "rope_type" in parameters or "type" in parameters:
        yield parameters
    for value in parameters.values():
        yield from _entries(value)


def _kind(entry: Mapping[str, Any]) -> str:
    return str(entry.get("rope_type", entry.get("type")))


def _edge(entry: Mapping[str, Any], config: Any, made_for: int) -> int:
    """The longest sequence that is read with the original frequencies."""
    if _kind(entry) == "longrope":
        own = getattr(config, "original_max_position_embeddings", None)
        return int(entry.get("original_max_position_embeddings") or own or made_for)
    return made_for if _kind(entry) == "dynamic" else 0
