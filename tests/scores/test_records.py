"""Parts beyond the first are recorded beside the manifest: readers see the same, kills lose nothing, and cost does not grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from trajscore.errors import DataError
from trajscore.io.atomic import write_whole
from trajscore.scores import Manifest, ScoreFolder, Shard, merge, read_manifest, scan, verify
from trajscore.scores.manifest import records_path

RECORDS = 4
_PARTS = 6 * RECORDS


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trajscore.scores.folder.RECORDS", RECORDS)


class _Crash(BaseException):
    pass


def _manifest(rows: int | None = _PARTS) -> Manifest:
    return Manifest(settings={"model": "m", "part_rows": 1}, environment={}, input_columns=[], rows_in=rows)


def _table(number: int) -> pa.Table:
    return pa.table({"id": [str(number)], "prompt_id": ["p"], "status": ["ok"], "n_tokens": pa.array([2], pa.uint32())})


def _write(folder: ScoreFolder, numbers: Any) -> None:
    for number in numbers:
        folder.write_part(_table(number), number)


def _seen(folder: Path) -> list[str]:
    return scan(folder).collect()["id"].to_list()


def test_readers_see_the_same_while_running_and_after(tmp_path: Path) -> None:
    with ScoreFolder(tmp_path, _manifest()) as folder:
        for number in range(_PARTS):
            folder.write_part(_table(number), number)
            manifest = read_manifest(tmp_path)
            assert manifest.parts == folder.manifest.parts
            assert len(manifest.parts) == number + 1
            assert json.loads((tmp_path / "manifest.json").read_bytes())["totals"]["rows"] > number / 2
        assert records_path(tmp_path / "manifest.json", 0).exists()
        assert _seen(tmp_path) == [str(number) for number in range(_PARTS)]
        assert not [problem for problem in verify(tmp_path).problems if "manifest" in problem]
        folder.finish()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".parquet") == [".lock", "manifest.json"]
    assert json.loads((tmp_path / "manifest.json").read_bytes())["totals"]["rows"] == _PARTS


@pytest.mark.parametrize("stop", [1, 2])
def test_a_kill_at_any_file_operation_around_a_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """Before and after every rename and removal, from the first records to the second join; then the run is taken up."""
    for moment in range(0, 30):
        folder = tmp_path / str(moment)
        first = ScoreFolder(folder, _manifest())
        _write(first, range(2 * RECORDS - 3))
        count = 0

        def crashing(original: Any, moment: int = moment) -> Any:
            def operation(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count > moment and stop == 1:
                    raise _Crash
                result = original(*args, **kwargs)
                if count > moment:
                    raise _Crash
                return result

            return operation

        reached = True
        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "touch"):
                patch.setattr(Path, name, crashing(getattr(Path, name)))
            try:
                _write(first, range(2 * RECORDS - 3, 2 * RECORDS + 2))
                reached = False
            except _Crash:
                pass
        first._lock.release()  # as the end of its process does
        done = read_manifest(folder)
        assert [part.first_row for part in done.parts] == list(range(done.rows))
        assert done.rows >= 2 * RECORDS - 3
        with ScoreFolder(folder, _manifest()) as again:
            assert again.finished_rows >= done.rows
            _write(again, list(again.missing(2 * RECORDS + 5)))
        assert _seen(folder) == [str(number) for number in range(2 * RECORDS + 5)]
        assert not list(folder.glob("*.parts-*"))
        assert not list(folder.glob("*.tmp"))
        if not reached:
            assert moment > 10, "the crashes did not happen"
            return
    raise AssertionError("the run never got through")


def test_records_of_another_run_and_damaged_ones(tmp_path: Path) -> None:
    with ScoreFolder(tmp_path, _manifest()) as folder:
        _write(folder, range(2))
    parts = json.loads((tmp_path / "manifest.json").read_bytes())["parts"]
    path = records_path(tmp_path / "manifest.json", 0)
    write_whole(path, json.dumps({"run": "0" * 16, "parts": [{**parts[1], "first_row": 7}]}).encode())
    assert read_manifest(tmp_path).rows == 2
    for said in (
        "[]",
        "{}",
        '{"run": 1, "parts": [{}]}',
        "{",
        json.dumps({"run": "x", "parts": [{**parts[1], "rows": "1"}]}),
    ):
        path.write_text(said)
        with pytest.raises(DataError, match=r"manifest\.parts-00000\.json: not what trajscore records"):
            read_manifest(tmp_path)
    path.unlink()
    with ScoreFolder(tmp_path, _manifest()) as folder:
        assert folder.finished_rows == 2


def test_a_merge_and_an_overwriting_run_leave_no_records(tmp_path: Path) -> None:
    for index in range(2):
        with ScoreFolder(tmp_path / "s", _manifest(), shard=Shard(index, 2)) as folder:
            _write(folder, list(folder.missing(_PARTS)))
            folder.finish()
            write_whole(records_path(tmp_path / "s" / Shard(index, 2).manifest, 0), b'{"run": "x", "parts": []}')
    assert merge(tmp_path / "s").rows == _PARTS
    assert sorted(path.name for path in (tmp_path / "s").glob("manifest*")) == ["manifest.json"]
    for number in range(2):
        write_whole(records_path(tmp_path / "s" / "manifest.json", number), b'{"run": "x", "parts": []}')
    with ScoreFolder(tmp_path / "s", _manifest(), overwrite=True) as folder:
        assert folder.finished_rows == 0
    assert sorted(path.name for path in (tmp_path / "s").glob("manifest*")) == ["manifest.json"]


def test_what_a_part_costs_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By counts of files, and of bytes beside the parts, not by the clock."""
    written = 0
    real = Path.write_bytes

    def counting(self: Path, data: bytes) -> int:
        nonlocal written
        written += len(data)
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", counting)
    after = {}
    with ScoreFolder(tmp_path, _manifest(None)) as folder:
        for number in range(32 * RECORDS):
            folder.write_part(_table(number), number)
            after[number + 1] = written
        whole = len((tmp_path / "manifest.json").read_bytes()) / (32 * RECORDS)
    # Joins included: each of them writes as much as all before it.
    assert after[32 * RECORDS] < 2.2 * after[16 * RECORDS] < 5 * after[8 * RECORDS]
    assert after[32 * RECORDS] / (32 * RECORDS) < (RECORDS + 2) * whole, "of each part, with its neighbours' records"


def test_what_a_part_costs_on_remote_storage_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """By requests and by bytes sent, each sixteen parts counted; an object store's requests are these calls one by one."""
    pytest.importorskip("upath")
    from fsspec.implementations.memory import MemoryFileSystem

    counted = [0, 0]

    def counting(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted[0] += 1
            return real(*args, **kwargs)

        return call

    def sending(self: Any, local: str, *args: Any, **kwargs: Any) -> Any:
        counted[1] += Path(local).stat().st_size
        return put(self, local, *args, **kwargs)

    put = MemoryFileSystem.put_file
    for name in ("_open", "info", "ls", "rm_file", "cat_file", "pipe_file"):
        monkeypatch.setattr(MemoryFileSystem, name, counting(getattr(MemoryFileSystem, name)))
    monkeypatch.setattr(MemoryFileSystem, "put_file", counting(sending))
    found = []
    with ScoreFolder("memory://bucket/what-a-part-costs", _manifest(None)) as folder:
        counted[:] = [0, 0]
        for number in range(24 * RECORDS):
            folder.write_part(_table(number), number)
            if (number + 1) % (4 * RECORDS) == 0:
                found.append(tuple(counted))
                counted[:] = [0, 0]
    assert found[1][0] > 4 * RECORDS, "nothing was counted"
    assert found[1][1] > 4 * RECORDS * 500
    assert found[-1][0] <= 1.2 * found[1][0], found
    assert found[-1][1] <= 1.2 * found[1][1], found
    assert read_manifest("memory://bucket/what-a-part-costs").rows == 24 * RECORDS
