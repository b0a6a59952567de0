"""The score folder: what a kill at any moment leaves, what a second start accepts, and what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trajscore.errors import DataError, TrajscoreError, UsageError
from trajscore.io.atomic import unfinished_name
from trajscore.io.paths import sha256_of
from trajscore.schema import SCHEMA_VERSION
from trajscore.scores import Manifest, ScoreFolder, Shard, differences, merge, read_manifest, scan, verify


def _manifest(**settings: Any) -> Manifest:
    return Manifest(
        settings={"model": "m", "part_rows": 3, **settings}, environment={"torch": "1"}, input_columns=["q"]
    )


def _table(first: int, rows: int = 3) -> pa.Table:
    status = ["ok" if (first + i) % 2 == 0 else "too_long" for i in range(rows)]
    tokens = [5 if s == "ok" else None for s in status]
    return pa.table(
        {"id": [str(first + i) for i in range(rows)], "status": status, "n_tokens": pa.array(tokens, pa.uint32())}
    )


def _write_all(folder: Path, total: int = 12) -> None:
    with ScoreFolder(folder, _manifest()) as scores:
        for first in range(scores.finished_rows, total, 3):
            scores.write_part(_table(first))
        scores.finish()


def test_a_whole_run(tmp_path: Path) -> None:
    _write_all(tmp_path / "deep" / "s")
    manifest = read_manifest(tmp_path / "deep" / "s")
    assert manifest.complete
    assert manifest.rows_in == manifest.rows == 12
    assert manifest.refused == {"too_long": 6}
    assert manifest.tokens == 30
    raw = json.loads((tmp_path / "deep" / "s" / "manifest.json").read_text())
    assert raw["totals"] == {
        "rows": 12, "scored": 6, "refused": 6, "refused_by_reason": {"too_long": 6}, "tokens": 30, "copied": 0,
    }  # fmt: skip
    first = tmp_path / "deep" / "s" / raw["parts"][0]["file"]
    assert raw["parts"][0]["sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()
    assert scan(tmp_path / "deep" / "s").collect()["id"].to_list() == [str(i) for i in range(12)]
    assert b"trajscore.position_convention" in pq.read_schema(first).metadata


class _Crash(BaseException):
    pass


def test_a_kill_at_any_file_operation_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop before and after every rename, every time, until the run gets through; then everything is there once."""
    operations = ["replace", "unlink", "write_bytes"]
    crashed = 0
    for moment in range(100):
        folder = tmp_path / "s"
        count = 0

        def patched(name: str, original: Any, stop: int = moment) -> Any:
            def operation(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count > 2 * stop:  # a dead process does not tidy up either
                    raise _Crash
                result = original(*args, **kwargs)
                count += 1
                if count > 2 * stop + 1:
                    raise _Crash
                return result

            return operation

        with monkeypatch.context() as patch:
            for name in operations:
                patch.setattr(Path, name, patched(name, getattr(Path, name)))
            try:
                _write_all(folder)
            except _Crash:
                crashed += 1
                if (folder / "manifest.json").exists():
                    done = read_manifest(folder)
                    ids = [i for p in done.parts for i in pl.read_parquet(folder / p.file)["id"].to_list()]
                    assert ids == [str(i) for i in range(done.rows)]
                continue
        break
    assert crashed >= 8, "the crashes did not happen"
    assert scan(tmp_path / "s").collect()["id"].to_list() == [str(i) for i in range(12)]
    assert read_manifest(tmp_path / "s").complete
    assert not list((tmp_path / "s").glob("*.tmp"))


def test_a_kill_at_any_file_operation_of_a_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the moment, the next merge ends with the same folder, and nothing of the shards is left."""
    for moment in range(20):
        folder = tmp_path / str(moment)
        for index in range(2):
            with ScoreFolder(folder, dataclasses.replace(_manifest(), rows_in=12), shard=Shard(index, 2)) as scores:
                for number in scores.missing(12):
                    scores.write_part(_table(3 * number), number)
                scores.finish()
        count = 0

        def crashing(original: Any, stop: int = moment) -> Any:
            def operation(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count > stop:
                    raise _Crash
                return original(*args, **kwargs)

            return operation

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "write_bytes"):
                patch.setattr(Path, name, crashing(getattr(Path, name)))
            try:
                merge(folder)
                assert moment == 6, "write, rename, and two files for each shard"
                break
            except _Crash:
                pass
        assert merge(folder).complete
        assert scan(folder).collect()["id"].to_list() == [str(i) for i in range(12)]
        left = {path.name for path in folder.iterdir() if not path.name.startswith("part-")}
        assert left == {".lock", "manifest.json"}


def test_a_part_renamed_but_not_entered_is_adopted(tmp_path: Path) -> None:
    with ScoreFolder(tmp_path, _manifest()) as scores:
        scores.write_part(_table(0))
        before = (tmp_path / "manifest.json").read_bytes()
        scores.write_part(_table(3))
    (tmp_path / "manifest.json").write_bytes(before)
    with ScoreFolder(tmp_path, _manifest()) as scores:
        assert scores.finished_rows == 6
        assert read_manifest(tmp_path).parts[1].first_row == 3


def test_a_foreign_or_torn_part_is_not_adopted(tmp_path: Path) -> None:
    with ScoreFolder(tmp_path, _manifest()) as scores:
        scores.write_part(_table(0))
    pq.write_table(_table(3), tmp_path / "part-00001.parquet")
    with ScoreFolder(tmp_path, _manifest()) as scores:
        assert scores.finished_rows == 3
    (tmp_path / "part-00001.parquet").write_bytes(b"PAR1 torn")
    with ScoreFolder(tmp_path, _manifest()) as scores:
        assert scores.finished_rows == 3
        scores.write_part(_table(3))
    assert scan(tmp_path).collect().height == 6


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    _write_all(tmp_path)
    with pytest.raises(UsageError, match="model: was 'm', now 'n'") as caught:
        ScoreFolder(tmp_path, _manifest(model="n"))
    assert "--overwrite" in caught.value.hint
    with ScoreFolder(tmp_path, dataclasses.replace(_manifest(), environment={"torch": "2"})) as scores:
        assert scores.finished_rows == 12
    with ScoreFolder(tmp_path, _manifest(model="n"), overwrite=True) as scores:
        assert scores.finished_rows == 0
        assert not list(tmp_path.glob("part-*"))


def test_differences_of_nested_settings() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c: was 2, now 3",
        "d: was None, now 4",
    ]


def test_a_missing_part_is_written_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write_all(tmp_path)
    (tmp_path / "part-00002.parquet").unlink()
    with ScoreFolder(tmp_path, _manifest()) as scores:
        assert not scores.manifest.complete
        assert list(scores.missing(12)) == [2]
        scores.write_part(_table(6), 2)
        scores.finish()
    assert "part-00002.parquet is missing" in caplog.text
    assert scan(tmp_path).collect()["id"].to_list() == [str(i) for i in range(12)]


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_part_is_noticed_on_resuming(tmp_path: Path, damage: str) -> None:
    _write_all(tmp_path)
    part = tmp_path / "part-00002.parquet"
    data = bytearray(part.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    else:
        part.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"part-00002\.parquet"):
        ScoreFolder(tmp_path, _manifest())


def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    with ScoreFolder(tmp_path, _manifest()):
        code = (
            "import sys; from trajscore.scores import ScoreFolder, Manifest\n"
            "from trajscore.errors import TrajscoreError\n"
            "try: ScoreFolder(sys.argv[1], Manifest({'model': 'm', 'part_rows': 3}, {}, ['q']))\n"
            "except TrajscoreError as error: print(error); sys.exit(7)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "another process" in done.stdout
    _write_all(tmp_path)


def test_folders_that_are_not_ours(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scores here"):
        read_manifest(tmp_path)
    (tmp_path / "data.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"Parquet files but no manifest\.json"):
        ScoreFolder(tmp_path, _manifest())
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrajscoreError, match="cannot be written"):
        ScoreFolder(tmp_path / "file" / "sub", _manifest())
    for text in ("", "[]", "{}", json.dumps({"schema_version": SCHEMA_VERSION})):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match="not a manifest"):
            read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 99, "parts": []}')
    with pytest.raises(UsageError, match="schema version 99"):
        read_manifest(tmp_path)


def test_a_part_of_another_size_is_not_read(tmp_path: Path) -> None:
    _write_all(tmp_path)
    part = tmp_path / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"part-00001\.parquet: changed since it was written") as caught:
        scan(tmp_path)
    assert "trajscore verify" in caught.value.hint


def test_verify_compares_what_a_manifest_says_of_itself(tmp_path: Path) -> None:
    _write_all(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    path = tmp_path / "manifest.json"
    whole = path.read_text()
    assert not any("manifest.json" in problem for problem in verify(tmp_path).problems)
    for old, new, key in (('"scored": 6', '"scored": 7', "totals"), (read_manifest(tmp_path).run, "0" * 16, "run")):
        path.write_text(whole.replace(old, new))
        assert any(problem.startswith(f"manifest.json, {key}") for problem in verify(tmp_path).problems)


def test_scanning_several_folders_and_unfinished_ones(tmp_path: Path) -> None:
    _write_all(tmp_path / "a", 3)
    _write_all(tmp_path / "b", 6)
    assert scan([tmp_path / "a", tmp_path / "b"]).collect().height == 9
    with ScoreFolder(tmp_path / "c", _manifest()):
        pass
    with pytest.raises(UsageError, match="no finished part"):
        scan(tmp_path / "c")
    (tmp_path / "a" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match="missing"):
        scan(tmp_path / "a")


def test_shards_that_continue_do_not_wait_for_the_checksums_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one shard reads its finished parts, another one starts, and keeps the tokenizer; a third kind is still refused."""
    for index in range(2):
        with ScoreFolder(tmp_path, dataclasses.replace(_manifest(), rows_in=12), shard=Shard(index, 2)) as scores:
            for number in scores.missing(12):
                scores.write_part(_table(3 * number), number)
            scores.finish()
    others: list[Path] = []

    def slow(path: Path) -> str:
        if not others:
            others.append(path)
            with ScoreFolder(tmp_path, _manifest(), shard=Shard(1, 2)) as other:
                assert other.finished_rows == 6
                other.keep_tokenizer("{}")
            with pytest.raises(UsageError, match="begun with --shard I/2"):
                ScoreFolder(tmp_path, _manifest(), shard=Shard(0, 3))
        return sha256_of(path)

    monkeypatch.setattr("trajscore.scores.folder._START_SECONDS", 0.2)
    monkeypatch.setattr("trajscore.scores.folder.sha256_of", slow)
    with ScoreFolder(tmp_path, _manifest(), shard=Shard(0, 2)) as scores:
        assert scores.finished_rows == 6
    assert others
    assert merge(tmp_path).rows == 12


def test_a_shard_that_starts_leaves_alone_what_its_neighbour_is_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neighbour starts between the writing of the tokenizer under another name and its renaming."""
    real = Path.replace

    def beside(self: Path, target: Any) -> Any:
        if self.name.startswith(".tokenizer.json"):
            monkeypatch.setattr(Path, "replace", real)
            ScoreFolder(tmp_path, _manifest(), shard=Shard(1, 2)).close()
        return real(self, target)

    unfinished_name(tmp_path / "tokenizer.json").write_text("left by a kill")
    with ScoreFolder(tmp_path, dataclasses.replace(_manifest(), rows_in=6), shard=Shard(0, 2)) as scores:
        monkeypatch.setattr(Path, "replace", beside)
        scores.keep_tokenizer("{}")
        scores.write_part(_table(0), 0)
        scores.finish()
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
    with ScoreFolder(tmp_path, dataclasses.replace(_manifest(), rows_in=6), shard=Shard(1, 2)) as scores:
        scores.write_part(_table(3), 1)
        scores.finish()
    merge(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_shards_that_lost_a_part_are_not_merged(tmp_path: Path) -> None:
    corpus = dataclasses.replace(_manifest(), rows_in=12)
    for index in range(2):
        with ScoreFolder(tmp_path, corpus, shard=Shard(index, 2)) as scores:
            for number in scores.missing(12):
                scores.write_part(_table(3 * number), number)
            scores.finish()
    (tmp_path / "part-00003.parquet").unlink()
    with pytest.raises(TrajscoreError, match=r"part-00003\.parquet is missing") as caught:
        merge(tmp_path)
    assert "shards 1/2:" in caught.value.hint
    with ScoreFolder(tmp_path, corpus, shard=Shard(1, 2)) as scores:
        assert list(scores.missing(12)) == [3]
        scores.write_part(_table(9), 3)
        scores.finish()
    assert merge(tmp_path).rows == 12
