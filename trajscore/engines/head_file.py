"""An output head in a file, or in one for each part of the vocabulary, for whoever reduces two models' hidden states together.

Axes: V vocabulary, W entries of a part, D hidden width.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trajscore.statistics import Head, VocabularyShard


def part_path(path: Path, number: int) -> Path:
    """Where a process writes its part of a head."""
    return path.with_name(f"{path.name}.{number}")


def save_head(head: Head, path: Path) -> None:
    """Write what there is here of a head, without entries beyond the vocabulary; whole or not at all."""
    tensors = {"weight_VD": head.weight_VD, "bias_V": head.bias_V, "absent_V": head.absent_V}
    rows = slice(max(0, head.vocabulary - head.first))
    found = {name: tensor.detach()[rows].cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    temporary = path.with_suffix(".tmp")
    save_file(found, temporary, {"head": json.dumps({"scale": head.scale, "softcap": head.softcap})})
    temporary.replace(path)


@functools.lru_cache(maxsize=2)
def load_head(path: str, device: torch.device, shard: VocabularyShard | None = None, entries: int = 0) -> Head:
    """Read a head onto a device; asked again for the same file, it is the same head.

    Args:
        path: a file with a whole head.
        device: where to.
        shard: of another head; the same part of this one is read, and nothing else of it.
        entries: of that part; those beyond the vocabulary are absent.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        settings, names = json.loads(file.metadata()["head"]), list(file.keys())
        if shard is None:
            return Head(**{name: file.get_tensor(name) for name in names}, **settings)
        vocabulary = file.get_slice("weight_VD").get_shape()[0]
        first = min(shard.number * entries, vocabulary)
        count = min(entries, vocabulary - first)
        tensors = dict[str, Any]()
        for name in names:
            part = file.get_slice(name)
            there = part[first : first + count] if count else file.get_slice(name)[:1][:0]
            tensors[name] = there.new_zeros(entries, *there.shape[1:])
            tensors[name][:count] = there
    if count < entries:
        absent_V = tensors.setdefault("absent_V", torch.zeros(entries, dtype=torch.bool, device=device))
        absent_V[count:] = True
    return Head(**tensors, **settings, shard=dataclasses.replace(shard, vocabulary=vocabulary))


def join_parts(paths: Sequence[Path]) -> Head:
    """The whole head of parts in the order of their entries, on the CPU; each is read into its place."""
    with safe_open(str(paths[0]), framework="pt") as file:
        settings = json.loads(file.metadata()["head"])
    sizes = list[int]()
    whole = dict[str, Any]()
    for path in paths:
        with safe_open(str(path), framework="pt") as file:
            sizes.append(file.get_slice("weight_VD").get_shape()[0])
    vocabulary, first = sum(sizes), 0
    for path, count in zip(paths, sizes, strict=True):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                # Of parts without a mask all entries are there.
                whole.setdefault(name, tensor.new_zeros(vocabulary, *tensor.shape[1:]))[first : first + count] = tensor
        first += count
    return Head(**whole, **settings)
