"""LLaMA-Factory's own way from an exported folder to tokens, as its training command takes it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer


def load(folder: Path, student: str | None) -> Iterator[tuple[Any, Any]]:
    """Input ids and labels of each row, in order.

    Args:
        folder: with `sft.yaml`.
        student: model whose tokenizer is used; rows of tokens need none.
    """
    options = yaml.safe_load((folder / "sft.yaml").read_text("utf-8"))
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.chdir(folder),
    ):
        given = {**options, "model_name_or_path": student or "none", "output_dir": scratch, "report_to": "none"}
        model, data, training, _, _ = get_train_args({**given, "use_cpu": True, "cache_dir": scratch})
        if student is None:
            rows = get_dataset(None, model, data, training, stage="sft", tokenizer=None)["train_dataset"]
        else:
            loaded = load_tokenizer(model)
            template = get_template_and_fix_tokenizer(loaded["tokenizer"], data)
            rows = get_dataset(template, model, data, training, stage="sft", **loaded)["train_dataset"]
        for row in rows:
            yield row["input_ids"], row["labels"]
