"""Exports for DistillKit with a stored teacher: raw best entries per row, in a folder of `datasets`, padded to one length.

Row i of DistillKit's teacher columns is compared with the student's logits at i, so it describes token i + 1; whether it counts
is read from `labels` at the same place. Both therefore stand one place earlier than in a mask. The probabilities are the
teacher's own over the whole vocabulary, not normalised over the K entries: DistillKit decides what becomes of the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from trajscore.exporters.base import Exporter, Plan, Trained
from trajscore.exporters.soft import nested, no_targets, soft_rows
from trajscore.schema import NO_LOSS

DATA = "data"
_ARROW = "data-00000-of-00001.arrow"
_COLUMNS = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("attention_mask", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.list_(pa.int32()))),
        ("top_values", pa.list_(pa.list_(pa.float32()))),
    ]
)
_CONFIG = """\
model: MODEL
output_path: OUTPUT
sequence_length: {length}
dataset:
  train_dataset:
    disk_path: {data}
  # Rows have one length and are stacked as they are.
  prepacked: true
teacher:
  kind: dataset
  # Needed even for rows that are not compressed.
  logprob_compressor:
    d: {vocabulary}
    k: {k}
    exact_k: {k}
    exact_dtype: float32
    polynomial_terms: []
    residual_bins: []
    delta_encoding: false
# Labels stand where DistillKit reads its mask, one place before their tokens: add no loss that reads them as labels.
loss_functions:
  - function: kl
    weight: 1.0
    temperature: 1.0
    missing_probability_handling: symmetric_uniform
training_args:
  # Otherwise the teacher's columns are dropped.
  remove_unused_columns: false
"""
_LEAST = -1e4
"""Stands for minus infinity, which DistillKit's losses make NaN of."""


class DistillKit(Exporter):
    """DistillKit: ids, a mask and a teacher's best entries, as its offline teacher reads them."""

    name = "distillkit"
    trainer = "DistillKit"
    package = "distillkit"
    forms = ("tokens",)
    soft_targets = "needed"
    meaning = "input_ids, attention_mask, labels, token_ids, top_values (a folder of datasets), from a mask with --soft-targets"

    def write_tokens(self, batches: Iterator[pa.RecordBatch], plan: Plan, folder: Path) -> None:
        """Write `data`, as `Dataset.save_to_disk` does."""
        (folder / DATA).mkdir()
        with pa.ipc.new_stream(folder / DATA / _ARROW, _COLUMNS) as writer:
            for batch in batches:
                writer.write_batch(_packed(batch, plan))
        state: dict[str, Any] = {
            "_data_files": [{"filename": _ARROW}],
            "_fingerprint": hashlib.sha256((folder / DATA / _ARROW).read_bytes()).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (folder / DATA / "state.json").write_bytes(orjson.dumps(state))
        (folder / DATA / "dataset_info.json").write_bytes(orjson.dumps({"citation": "", "description": ""}))

    def settings(self, plan: Plan) -> dict[str, str]:
        """`distill.yaml`, a whole configuration but for the model and where the result goes."""
        values = {"length": plan.longest, "data": DATA, "vocabulary": plan.vocabulary, "k": plan.topk}
        return {"distill.yaml": _CONFIG.format(**values)}

    def command(self, plan: Plan) -> str:
        """DistillKit takes one file."""
        return "sed -i 's/MODEL/your-model/; s/OUTPUT/your-output/' distill.yaml && distillkit distill.yaml"

    def notes(self, plan: Plan) -> list[str]:
        """Padding and probabilities."""
        return [
            f"Every row is padded to {plan.longest} tokens, since DistillKit stacks rows as they are.",
            "`top_values` are ln p over the whole vocabulary: `symmetric_uniform` keeps what the other entries have as one "
            "bucket, `zero` would renormalise over the K entries.",
        ]

    def read_tokens(self, folder: Path) -> Iterator[Trained]:
        """Rows of `data`, without padding and at the tokens they are about."""
        with (folder / DATA / _ARROW).open("rb") as handle, pa.ipc.open_stream(handle) as stream:
            if not stream.schema.equals(_COLUMNS):
                raise ValueError(f"{DATA}: columns are {stream.schema.names}; must be {_COLUMNS.names}")
            for batch in stream:
                for row in batch.to_pylist():
                    yield _row(
                        row["input_ids"], row["attention_mask"], row["labels"], row["token_ids"], row["top_values"]
                    )

    def load(self, folder: Path, plan: Plan, student: str | None) -> Iterator[Trained]:
        """Through `datasets` and DistillKit's offline teacher."""
        from trajscore.integrations.distillkit import load

        return (_row(*row) for row in load(folder))


def _packed(batch: pa.RecordBatch, plan: Plan) -> pa.RecordBatch:
    """Rows padded to one length, mask and teacher one place earlier."""
    length, k = plan.longest, plan.topk
    rows = batch.num_rows
    ids, mask, labels = (np.zeros((rows, length), np.int32) for _ in range(3))
    labels[:] = NO_LOSS
    best = np.tile(np.arange(k, dtype=np.int32), (rows, length, 1))
    values = np.full((rows, length, k), -np.log(k), np.float32)
    for row, targets in enumerate(soft_rows(batch, k)):
        own = batch["input_ids"][row].values.to_numpy(zero_copy_only=False)
        shifted = targets.next()
        n, on_P = len(own), shifted.there_P
        ids[row, :n], mask[row, :n] = own, 1
        labels[row, : n - 1] = batch["labels"][row].values.to_numpy(zero_copy_only=False)[1:]
        best[row, :n][on_P] = shifted.ids_PK[on_P]
        values[row, :n][on_P] = np.maximum(shifted.logprobs_PK[on_P], _LEAST)
    lists = [_lists(each) for each in (ids, mask, labels)]
    entries = [
        _lists(each, nested(each.reshape(-1, k), kind)) for each, kind in ((best, pa.int32()), (values, pa.float32()))
    ]
    return pa.RecordBatch.from_arrays([*lists, *entries], schema=_COLUMNS)


def _lists(values: npt.NDArray[Any], flat: pa.Array | None = None) -> pa.Array:
    """A list of one length per row."""
    rows, length = values.shape[:2]
    ends = pa.array(np.arange(rows + 1, dtype=np.int32) * length)
    return pa.ListArray.from_arrays(ends, pa.array(values.reshape(-1)) if flat is None else flat)


def _row(ids: Any, mask: Any, labels: Any, token_ids: Any, values: Any) -> Trained:
    length = int(np.sum(mask))
    if not np.asarray(mask)[:length].all():
        raise ValueError("attention_mask is not that of a row padded at its end")
    ids_P = np.asarray(ids, np.int64)[:length]
    on_P = np.asarray(labels)[:length] >= 0
    if (np.asarray(labels)[: length - 1][on_P[:-1]] != ids_P[1:][on_P[:-1]]).any() or on_P[-1:].any():
        raise ValueError("a label is neither the next token nor -100")
    targets = no_targets(length, np.asarray(token_ids).shape[1])
    targets.there_P[:] = on_P
    targets.ids_PK[on_P] = np.asarray(token_ids, np.int64)[:length][on_P]
    targets.logprobs_PK[on_P] = np.asarray(values, np.float64)[:length][on_P]
    return Trained(ids_P, np.concatenate([[0.0], on_P[:-1].astype(np.float64)]), targets.previous())
