"""axolotl's own way from an exported folder to tokens, as its training command takes it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets


def load(folder: Path, student: str | None) -> Iterator[tuple[Any, Any]]:
    """Input ids and labels of each row, in order.

    Args:
        folder: with `data.yaml`.
        student: model whose tokenizer is used; axolotl asks for one even where it is not.
    """
    if student is None:
        raise ValueError("axolotl loads a tokenizer even for rows of tokens: give --student MODEL")
    options = yaml.safe_load((folder / "data.yaml").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(folder):
        config = Path(scratch) / "sft.yaml"
        rest = {
            "base_model": student,
            "output_dir": scratch,
            "dataset_prepared_path": f"{scratch}/prepared",
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "learning_rate": 1e-5,
            "shuffle_merged_datasets": False,
        }
        config.write_text(yaml.safe_dump({**options, **rest}), "utf-8")
        rows = load_datasets(cfg=load_cfg(str(config))).train_dataset
        for row in rows:
            targets = [row[name] for name in ("target_token_ids", "target_logprobs", "target_mask") if name in row]
            yield row["input_ids"], row["labels"], *targets
