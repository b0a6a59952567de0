"""Score folders that somebody sent: links under our names, pipes, columns and settings of other types."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.helpers.score_tables import trajectory, write_folder
from trajscore.cli import app
from trajscore.engines.served_replies import ReplyFile, ServedReply
from trajscore.errors import DataError, TrajscoreError
from trajscore.io.paths import sha256_of
from trajscore.scores import ScoreFolder, read_manifest, refuse_foreign, verify
from trajscore.scores.lock import LOCK, FolderLock
from trajscore.scores.manifest import records_path
from trajscore.scores.source import open_scores


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "s", [trajectory(row, [1, 2], [1.0, 2.0]) for row in range(8)])


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text("years of work")
    return path


@pytest.mark.parametrize("take_over", [False, True])
@pytest.mark.parametrize("make", [os.symlink, os.link, lambda _, lock: os.mkfifo(lock), lambda _, lock: lock.mkdir()])
def test_a_lock_that_is_another_file(
    make: Callable[[Path, Path], None], take_over: bool, mine: Path, tmp_path: Path
) -> None:
    """Whoever scores into such a folder wrote who holds it over the file that the link points to."""
    (tmp_path / "s").mkdir()
    make(mine, tmp_path / "s" / LOCK)
    with pytest.raises(TrajscoreError, match="link or no regular file"):
        FolderLock(tmp_path / "s", take_over=take_over)
    assert mine.read_text() == "years of work"


def test_a_lock_that_points_to_nothing_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / LOCK).symlink_to(tmp_path / "new")
    with pytest.raises(TrajscoreError, match="link"):
        FolderLock(tmp_path / "s")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "part-00002.parquet"])
def test_what_is_written_into_a_folder_stays_in_it(name: str, folder: Path, mine: Path) -> None:
    """A run that continues; of `manifest.json` the link leads to a copy, as stores of large files lay theirs out."""
    manifest = read_manifest(folder)
    if name == "manifest.json":
        (folder / name).rename(mine)
    before = mine.read_bytes()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(mine)
    with ScoreFolder(folder, manifest) as scores:
        scores.keep_tokenizer("{}")
        scores.write_part(pq.read_table(folder / "part-00000.parquet"))
        scores.finish()
    assert mine.read_bytes() == before
    assert not (folder / name).is_symlink()


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_replies_of_a_server_behind_a_link(make: Callable[[Path, Path], None], mine: Path, tmp_path: Path) -> None:
    make(mine, tmp_path / "replies")
    file = ReplyFile(tmp_path / "replies")
    file.put(b"k" * 32, ServedReply(np.ones(1, np.float32), np.ones((1, 1), np.int32), np.ones((1, 1), np.float32)))
    file.close()
    assert mine.read_text() == "years of work"
    assert b"k" * 32 in ReplyFile(tmp_path / "replies"), "the control: it is kept"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.name)])
def test_records_that_are_no_files(make: Callable[[Path], None], folder: Path) -> None:
    """A pipe was waited for, without end."""
    make(records_path(folder / "manifest.json", 0))
    with pytest.raises(DataError, match="no regular file"):
        read_manifest(folder)


@pytest.mark.parametrize("command", [["inspect", "--id", "x"], ["select"], ["verify"], ["merge"]])
@pytest.mark.parametrize("kind", ["file", "missing", "long", "loop"])
def test_what_is_no_folder(command: list[str], kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("L" * 300 if kind == "long" else kind)
    if kind == "file":
        path.write_bytes(b"PAR1")
    elif kind == "loop":
        path.symlink_to(path)
    done = CliRunner().invoke(app, [command[0], str(path), *command[1:]])
    assert done.exit_code in (1, 2), done.exception
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("student", [10**30, None, ["x"], True])
def test_verify_and_odd_settings(student: object, folder: Path) -> None:
    said = json.loads((folder / "manifest.json").read_text())
    said["settings"]["student"] = student
    (folder / "manifest.json").write_text(json.dumps(said))
    assert not verify(folder).sound


@pytest.mark.parametrize("value", [[], "x", 1, {"a": ["x"]}, {"a": None}])
def test_renamed_columns_of_other_types(value: object, folder: Path) -> None:
    said = json.loads((folder / "manifest.json").read_text())
    said["settings"]["renamed_columns"] = value
    (folder / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match="not a manifest"):
        open_scores(folder)


def test_a_manifest_whose_parts_have_lists_for_names(folder: Path) -> None:
    said = json.loads((folder / "manifest.json").read_text())
    said["parts"][0]["file"] = ["part-00000.parquet"]
    (folder / "manifest.json").write_text(json.dumps(said))
    refuse_foreign(folder, overwrite=True)  # the parts say themselves that they are ours
    done = CliRunner().invoke(app, ["verify", str(folder)])
    assert done.exit_code == 1
    assert "error: " in done.stderr


_STRUCTS = pa.array([{"a": 1}] * 4)
_LISTS = pa.array([[{"a": 1}]] * 4)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        *(
            (name, values)
            for name in ("student_rank", "positions", "n_tokens", "status", "id")
            for values in (_STRUCTS, _LISTS)
        ),
        ("sentence", pa.array([["a"]] * 4)),
        ("status", pa.array([1] * 4)),
        ("n_tokens", pa.array(["many"] * 4)),
    ],
)
def test_verify_names_columns_of_other_types(column: str, values: pa.Array, folder: Path) -> None:
    """They are no table of numbers, which ended it in a traceback."""
    table = pq.read_table(folder / "part-00000.parquet")
    _put(folder, table.set_column(table.schema.names.index(column), column, values))
    problems = verify(folder).problems
    assert any(f"part-00000.parquet, {column}: is " in each for each in problems), problems


def test_verify_names_columns_that_are_there_twice(folder: Path) -> None:
    table = pq.read_table(folder / "part-00000.parquet")
    _put(folder, table.append_column("id", table["id"]))
    assert "part-00000.parquet, id: several columns have this name" in verify(folder).problems


def _put(folder: Path, table: pa.Table) -> None:
    """A part in the place of the first, entered as the manifest enters it."""
    path = folder / "part-00000.parquet"
    pq.write_table(table, path)
    said = orjson.loads((folder / "manifest.json").read_bytes())
    said["parts"][0] |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_bytes(orjson.dumps(said))
