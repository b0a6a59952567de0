"""A dataset for verl's SFT trainer that takes tokens with masks or weights, and verl's own way from a folder to rows.

The class needs torch and pyarrow only; verl finds it by `data.custom_cls.path=pkg://trajscore.integrations.verl` and
`data.custom_cls.name=TokenMaskSFTDataset`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trajscore.errors import UsageError


class TokenMaskSFTDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Rows of `input_ids` and `loss_mask` as verl's trainer takes them without padding.

    verl's loss is sum(loss_mask * nll) / sum(loss_mask) over a batch, the mask shifted by one there: the mask at index p
    belongs to the token at index p and may be any weight >= 0. That of the first token must be 0: nothing predicts it.

    Args:
        parquet_files: file or files with `input_ids` and `loss_mask`.
        tokenizer: not used.
        config: verl's `data`: `max_length`, `truncation` (`error`, `left` or `right`), `pad_mode`.
        processor: not used.
        max_samples: first rows only; -1 for all.

    Raises:
        UsageError: `pad_mode` is not `no_padding` (verl turns weights into true and false there), a file lacks a column, or
            a row is longer than `max_length` while `truncation` is `error`.
    """

    def __init__(
        self,
        parquet_files: str | Sequence[str],
        tokenizer: Any = None,
        config: Mapping[str, Any] | None = None,
        processor: Any = None,
        max_samples: int = -1,
    ) -> None:
        config = config or {}
        self._limit = int(config.get("max_length", 1024))
        self._truncation = str(config.get("truncation", "error"))
        pad_mode = str(getattr(config.get("pad_mode"), "value", config.get("pad_mode", "no_padding")))
        if pad_mode != "no_padding":
            raise UsageError(
                f"data.pad_mode={pad_mode}: weights would become true and false.", "Set data.pad_mode=no_padding."
            )
        if self._truncation not in ("error", "left", "right"):
            raise UsageError(f"data.truncation={self._truncation}: not known.", "Allowed: error, left, right.")
        paths = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
        table = pa.concat_tables([_read(Path(path)) for path in paths])
        self._rows = table if max_samples < 0 else table.slice(0, max_samples)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._rows.num_rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `position_ids` (int64), `loss_mask` (float32), each [P]."""
        ids, mask = (
            self._rows[name][index].values.to_numpy(zero_copy_only=False) for name in ("input_ids", "loss_mask")
        )
        if len(ids) > self._limit:
            if self._truncation == "error":
                raise UsageError(
                    f"row {index}: {len(ids)} tokens, data.max_length={self._limit}.",
                    f"Set data.max_length={len(ids)} or more.",
                )
            kept = slice(self._limit) if self._truncation == "right" else slice(-self._limit, None)
            ids, mask = ids[kept], mask[kept]
        input_ids = torch.tensor(ids, dtype=torch.int64)
        loss_mask = torch.tensor(mask, dtype=torch.float32)
        # verl rolls the mask of all rows together: a weight here would fall on the last token of the row before.
        loss_mask[:1] = 0
        return {"input_ids": input_ids, "position_ids": torch.arange(len(input_ids)), "loss_mask": loss_mask}


def _read(path: Path) -> pa.Table:
    names = pq.read_schema(path).names
    for name in ("input_ids", "loss_mask"):
        if name not in names:
            raise UsageError(
                f"{path}: has no column {name!r}.", "Give what `trajscore export --to verl` wrote from a mask."
            )
    return pq.read_table(path, columns=["input_ids", "loss_mask"])


def load(folder: Path, student: str | None) -> Iterator[tuple[Any, Any]]:
    """Input ids and loss mask of each row, in order, from the dataset that verl's trainer builds from the overrides.

    Args:
        folder: with `overrides.txt`.
        student: model whose tokenizer is used; rows of tokens need none.
    """
    from hydra import compose, initialize_config_module
    from verl.trainer.sft_trainer import create_sft_dataset
    from verl.utils import hf_tokenizer

    overrides = (folder / "overrides.txt").read_text("utf-8").split()
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("sft_trainer_engine", [f"++{each}" for each in overrides]).data
    tokenizer = None if student is None else hf_tokenizer(student)
    rows = create_sft_dataset(str(folder / config.train_files), config, tokenizer, None)
    for index in range(len(rows)):
        row = rows[index]
        yield row["input_ids"].numpy(), row["loss_mask"].numpy()
