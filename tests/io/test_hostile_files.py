"""Files that were made to harm: records that name what is not theirs, JSON without end, devices, packed rows of any size."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trajscore.corpus import jsonfiles, open_corpus
from trajscore.engines.adapters import WEIGHTS, check_adapter
from trajscore.engines.checkpoint import ADAPTER, INDEX, weight_files
from trajscore.errors import DataError, TrajscoreError, UsageError
from trajscore.io.atomic import new_folder
from trajscore.io.ours import as_manifest
from trajscore.io.recorded_folder import RecordedFolder
from trajscore.recipes.reading import read_recipe
from trajscore.scores.lock import LockHolder
from trajscore.skills.catalogue import read_catalogue
from trajscore.skills.commands.annotator import read_json

DEEP = "[" * 200_000


@pytest.mark.parametrize("keep_foreign", [False, True])
@pytest.mark.parametrize("named", ["ABSOLUTE", "link/mine", "../mine/mine", "a\0b", "", ".", 7, ["x"], None])
def test_a_record_of_ours_that_names_files_of_others(named: object, keep_foreign: bool, tmp_path: Path) -> None:
    """Who exports into a folder that somebody sent loses nothing that lies elsewhere."""
    mine = tmp_path / "mine" / "mine"
    mine.parent.mkdir()
    mine.write_text("years of work")
    out = tmp_path / "export"
    out.mkdir()
    (out / "link").symlink_to(mine.parent)
    (out / "old").write_text("ours")
    said = [str(mine) if named == "ABSOLUTE" else named, "link", "old", "export.json"]
    (out / "export.json").write_text(json.dumps({"trajscore": "1", "files": said}))
    recorded = RecordedFolder(out, "export.json", "trajscore export", "--out", keep_foreign)
    with new_folder(out) as made:
        (made / "new").write_text("n")
        recorded.put(made, {})
    assert mine.read_text() == "years of work"
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "new"], "the control: ours are replaced"


def _adapter(folder: Path, text: str) -> None:
    (folder / WEIGHTS).write_bytes(b"")
    (folder / ADAPTER).write_text(text)
    check_adapter(str(folder), "--adapter")


def _index(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    weight_files(folder)


@pytest.mark.parametrize("text", [DEEP, '{"peft_type": ' + DEEP, '{"weight_map": ' + DEEP, "null", "9" * 9999])
@pytest.mark.parametrize("read", [_adapter, _index])
def test_json_that_lies_beside_a_model(read: Callable[[Path, str], None], text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path, text)


@pytest.mark.parametrize("read", [read_recipe, read_catalogue, lambda path: read_json(path, "a profile")])
def test_a_device_that_never_ends(read: Callable[[str], object]) -> None:
    with pytest.raises(TrajscoreError, match="larger than"):
        read("/dev/zero")


def test_a_pipe_under_the_name_of_a_manifest_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    assert as_manifest(tmp_path / "manifest.json") is None


@pytest.mark.parametrize("pid", ["1e999", "-1", "[]", '"x"', "9" * 5000, "1" + "0" * 30])
def test_a_lock_that_says_nonsense(pid: str, tmp_path: Path) -> None:
    whole = {"token": "a", "host": [], "since": {}, "machine": 1, "processes": None, "started": ""}
    (tmp_path / "lock").write_text(json.dumps(whole)[:-1] + f', "pid": {pid}}}')
    holder = LockHolder.of(tmp_path / "lock")
    assert holder is None or (str(holder) and holder.runs in (None, False))


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.json.gz"])
def test_a_packed_row_of_any_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a megabyte holds a gigabyte; what is read of a row ends at a limit."""
    row = b'{"text": "' + b"a" * (4 << 20) + b'"}'
    (tmp_path / name).write_bytes(gzip.compress(row if "l." in name else b"[" + row + b"]", 1))
    assert len(list(open_corpus(tmp_path / name).chunks(1))) == 1
    monkeypatch.setattr(jsonfiles, "LONGEST_ROW", 1 << 20)
    with pytest.raises(DataError, match="line 1: a row of more than 1,048,576 bytes"):
        list(open_corpus(tmp_path / name).chunks(1))
