"""DistillKit's own way from an exported folder to the rows that its offline teacher gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import load_from_disk
from distillkit.compression import LogprobCompressor
from distillkit.compression.config import DistributionQuantizationConfig


def load(folder: Path) -> Iterator[tuple[Any, Any, Any, Any, Any]]:
    """Ids, attention mask, labels, and ids and values of the teacher's entries of each row, in order.

    Args:
        folder: with `distill.yaml`, which names the data.
    """
    options = yaml.safe_load((folder / "distill.yaml").read_text("utf-8"))
    compressor = LogprobCompressor(
        config=DistributionQuantizationConfig.model_validate(options["teacher"]["logprob_compressor"])
    )
    for row in load_from_disk(str(folder / options["dataset"]["train_dataset"]["disk_path"])):
        tensors = {name: torch.tensor(values) for name, values in row.items()}
        ids, values = compressor.decompress_to_sparse(tensors)
        yield row["input_ids"], row["attention_mask"], row["labels"], ids.numpy(), values.numpy()
