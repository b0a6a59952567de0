"""What a score folder must hold, whatever happened to its writers. It opens files itself and asks trajscore only to verify."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import trajscore as ts

_STAGES_OF_FILES = (
    (r"\.part-\d+\.parquet\..*\.tmp", "writing a part"),
    (r"\.manifest.*\.json\..*\.tmp", "entering a part"),
    (r"\.tokenizer\.json\..*\.tmp", "writing the tokenizer"),
)


@dataclass(frozen=True)
class Look:
    """A folder at one moment.

    Attributes:
        stage: where its writer was.
        finished: finished parts, name -> SHA-256, over all manifests.
        waiting: whole files of parts that no manifest names.
    """

    stage: str
    finished: dict[str, str]
    waiting: set[str]


def manifests(folder: Path) -> list[dict[str, Any]]:
    """What its manifests say, one or those of shards. Half a manifest fails here."""
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("manifest*.json"))]


def look(folder: Path, open_files: str = "") -> Look:
    """See where a writer stands, by its folder and the files that it has open."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    said = manifests(folder)
    finished = {part["file"]: part["sha256"] for each in said for part in each["parts"]}
    waiting = {name for name in names if re.fullmatch(r"part-\d+\.parquet", name)} - finished.keys()
    stage = next((stage for pattern, stage in _STAGES_OF_FILES for name in names if re.fullmatch(pattern, name)), None)
    if stage is None and not said:
        stage = _before_the_manifest(open_files)
    if stage is None and waiting:
        stage = "between part and manifest"
    if stage is None and all(each["complete"] for each in said):
        stage = "finishing"
    if stage is None and any(name.startswith(".hidden-states") for name in names):
        stage = "hidden states waiting"
    return Look(stage or "scoring", finished, waiting)


def _before_the_manifest(open_files: str) -> str:
    if "model.safetensors" in open_files:
        return "loading"
    return "surveying" if ".jsonl" in open_files else "starting"


def check_parts(folder: Path, before: Look | None = None) -> Look:
    """Check that every part that a manifest names is whole, and that none which was finished before is lost."""
    now = look(folder)
    for name, checksum in now.finished.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum, f"{folder / name} is not whole"
    if before is not None:
        lost = before.finished.items() - now.finished.items()
        assert not lost, f"{folder}: finished parts were lost: {sorted(lost)}"
    return now


def check_same(folder: Path, undisturbed: Path, exact: bool = True, leaves: bool = False) -> None:
    """Check that a folder holds what an undisturbed run gave, says the same of it, and holds nothing else.

    Args:
        folder: after all faults.
        undisturbed: the scores of one run.
        exact: whether every number must be the same to the last bit. Where a run puts the rows of several parts into one
            batch, a run that was interrupted makes other batches, whose floating-point noise is another: see `_close`.
        leaves: whether temporary files of killed writers may be there: without locks they stay for a day.
    """
    ours, theirs = (pl.read_parquet(sorted(each.glob("part-*.parquet"))) for each in (folder, undisturbed))
    assert ours.schema == theirs.schema
    for name in ours.columns:
        same = ours[name].equals(theirs[name]) or (not exact and _close(ours[name], theirs[name]))
        assert same, f"{folder}: {name} differs"
    said = [manifests(each)[0] for each in (folder, undisturbed)]
    for each in said:
        del each["environment"]
        for part in each["parts"] if not exact else ():
            del part["sha256"], part["bytes"]
    assert said[0] == said[1], f"{folder}: the manifest says something else"
    assert said[0]["complete"]
    left = {path.name for path in folder.iterdir()} - {path.name for path in undisturbed.iterdir()}
    left -= {name for name in left if leaves and name.startswith(".") and name.endswith(".tmp")}
    assert not left, f"{folder}: left behind: {sorted(left)}"
    found = ts.verify(folder)
    assert not found.problems, found.problems
    assert not found.notes, found.notes


def _close(ours: pl.Series, theirs: pl.Series) -> bool:
    """Numbers within 1e-4; of ranks, which near ties move by whole numbers, one in a thousand may be another."""
    if not isinstance(ours.dtype, pl.List) or not ours.list.len().equals(theirs.list.len()):
        return False
    left, right = (each.explode().drop_nulls().to_numpy().astype(float) for each in (ours, theirs))
    if ours.name.endswith("_rank"):
        return bool((left != right).mean() <= 1e-3)
    return (
        ours.dtype == pl.List(pl.Float32) and left.shape == right.shape and np.allclose(left, right, rtol=0, atol=1e-4)
    )
