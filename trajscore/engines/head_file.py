"""An output head in a file, for a worker that reduces two models' hidden states together."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trajscore.statistics import Head


def save_head(head: Head, path: Path) -> None:
    """Write a head, whole or not at all."""
    tensors = {"weight_VD": head.weight_VD, "bias_V": head.bias_V, "absent_V": head.absent_V}
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    temporary = path.with_suffix(".tmp")
    save_file(found, temporary, {"head": json.dumps({"scale": head.scale, "softcap": head.softcap})})
    temporary.replace(path)


@functools.lru_cache(maxsize=2)
def load_head(path: str, device: torch.device) -> Head:
    """Read a head onto a device; asked again for the same file, it is the same head."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return Head(**tensors, **json.loads(file.metadata()["head"]))
