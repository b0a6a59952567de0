"""Corpora and scores on s3://, against a server of the same protocol on this machine."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import trajscore as ts
from tests.helpers.paths import ROOT
from tests.helpers.warm_commands import warm_program
from trajscore.corpus import open_corpus
from trajscore.errors import DataError, MissingExtraError, TrajscoreError, UsageError
from trajscore.io.paths import as_path, is_url
from trajscore.scores import ScoreFolder

DATA, STUDENT = ROOT / "data" / "trajectories.jsonl", ROOT / "data" / "models" / "student"
OPTIONS: dict[str, Any] = {"engine": "hf", "part_rows": 20, "limit": 100}


@pytest.fixture(scope="module")
def storage() -> Iterator[Any]:
    """The file system of a bucket named `bucket`, reached through the environment as users reach theirs."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}".replace("0.0.0.0", "127.0.0.1"),  # noqa: S104
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }.items():
            patch.setenv(name, value)
        files = fsspec.filesystem("s3")
        files.mkdir("bucket")
        yield files
    server.stop()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scores in a local folder."""
    out = tmp_path_factory.mktemp("local") / "scores"
    ts.score(DATA, STUDENT, out, **OPTIONS)
    return out


def _names_of(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _names(storage: Any, folder: str) -> list[str]:
    storage.invalidate_cache()
    return sorted(name.rsplit("/", 1)[1] for name in storage.ls(folder, detail=False))


def test_input_output_and_resume(storage: Any, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put_file(str(DATA), "bucket/corpus/trajectories.jsonl")
    real = ScoreFolder.write_part
    written: list[Any] = []

    def twice(self: ScoreFolder, *arguments: Any) -> Any:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreFolder, "write_part", twice)
        with pytest.raises(KeyboardInterrupt):
            ts.score("s3://bucket/corpus/trajectories.jsonl", STUDENT, "s3://bucket/scores", **OPTIONS)
    assert ts.read_manifest("s3://bucket/scores").rows == 40
    summary = ts.score("s3://bucket/corpus/trajectories.jsonl", STUDENT, "s3://bucket/scores", **OPTIONS)
    assert (summary.rows, summary.resumed_rows) == (100, 40)
    assert ts.scan("s3://bucket/scores").collect().equals(ts.scan(local).collect())
    assert _names(storage, "bucket/scores") == [".lock", "manifest.json", *_parts(5), "tokenizer.json"]
    manifest = json.loads(storage.cat_file("bucket/scores/manifest.json"))
    assert manifest["parts"] == json.loads((local / "manifest.json").read_text())["parts"], "the same bytes"
    assert ts.verify("s3://bucket/scores").problems == []


def test_what_comes_after_scoring(storage: Any, local: Path, tmp_path: Path) -> None:
    """The readers of scores take a URL where they take a folder."""
    for name in _names_of(local):
        storage.put_file(str(local / name), f"bucket/after/{name}")
    for folder, name in ((local, "here"), ("s3://bucket/after", "there")):
        ts.select(folder, metric="rsr", per_prompt=1, out=tmp_path / f"{name}.jsonl")
        ts.mask(folder, rule="entropy", keep=0.5, out=tmp_path / f"{name}.parquet")
    for suffix in ("jsonl", "parquet"):
        assert (tmp_path / f"here.{suffix}").read_bytes() == (tmp_path / f"there.{suffix}").read_bytes()
    here, there = (ts.report(at).to_dict()["values"] for at in (local, "s3://bucket/after"))
    assert here == there
    name = ts.scan(local).select("id").first().collect().item()
    pages = [tmp_path / "here.html", tmp_path / "there.html"]
    ts.inspect(local, id=name, out=pages[0])
    ts.inspect("s3://bucket/after", id=name, out=pages[1])
    assert pages[0].read_text("utf-8") == pages[1].read_text("utf-8")


def _parts(count: int) -> list[str]:
    return [f"part-{number:05d}.parquet" for number in range(count)]


def test_shards_and_what_is_found_wrong(storage: Any, local: Path) -> None:
    for shard in ("0/2", "1/2"):
        ts.score(DATA, STUDENT, "s3://bucket/shards", shard=shard, **OPTIONS)
    ts.merge("s3://bucket/shards")
    assert ts.scan("s3://bucket/shards").collect().equals(ts.scan(local).collect())
    data = storage.cat_file("bucket/shards/part-00002.parquet")
    storage.pipe_file("bucket/shards/part-00002.parquet", data[:-9])
    assert any("part-00002.parquet" in problem for problem in ts.verify("s3://bucket/shards").problems)
    with pytest.raises(DataError, match=r"part-00002\.parquet: changed"):
        ts.score(DATA, STUDENT, "s3://bucket/shards", **OPTIONS)
    storage.rm_file("bucket/shards/part-00002.parquet")
    ts.score(DATA, STUDENT, "s3://bucket/shards", **OPTIONS)
    assert ts.verify("s3://bucket/shards").problems == []


def test_the_last_writer_holds_the_folder(storage: Any) -> None:
    """Without locks, the process that came first stops before it writes again."""
    ts.score(DATA, STUDENT, "s3://bucket/held", **OPTIONS)
    manifest = ts.read_manifest("s3://bucket/held")
    with ScoreFolder("s3://bucket/held", manifest) as first, ScoreFolder("s3://bucket/held", manifest) as second:
        with pytest.raises(TrajscoreError, match=r"another process .* has begun"):
            first.finish()
        second.finish()


def test_the_corpus_is_the_same_as_a_local_one(storage: Any, tmp_path: Path) -> None:
    """Files, folders and globs, packed and not: rows, order and fingerprint."""
    rows = DATA.read_text("utf-8").splitlines()[:60]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "b.jsonl").write_text("\n".join(rows[:20]), "utf-8")
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[20:40]).encode()))
    pl.DataFrame([json.loads(row) for row in rows[40:]]).write_parquet(tmp_path / "in" / "deep" / "c.parquet")
    (tmp_path / "in" / ".hidden.jsonl").write_text("no json", "utf-8")
    for path in (tmp_path / "in").rglob("*"):
        if path.is_file():
            storage.put_file(str(path), f"bucket/{path.relative_to(tmp_path).as_posix()}")
    storage.invalidate_cache()
    for here, there in (
        (tmp_path / "in", "s3://bucket/in"),
        (f"{tmp_path}/in/*.jsonl*", "s3://bucket/in/*.jsonl*"),
        (f"{tmp_path}/in/**/*.parquet", "s3://bucket/in/**/*.parquet"),
        (tmp_path / "in" / "a.jsonl.gz", "s3://bucket/in/a.jsonl.gz"),
    ):
        ours, theirs = open_corpus(here), open_corpus(there)
        assert ours.fingerprint == theirs.fingerprint
        assert [chunk.table.to_pylist() for chunk in ours.chunks(7)] == [
            chunk.table.to_pylist() for chunk in theirs.chunks(7)
        ]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/none.jsonl", "no such file"),
        ("s3://bucket/none/*.jsonl", "no such file"),
        ("s3://no-such-bucket/x.jsonl", "no such file"),
        ("what://bucket/x.jsonl", "what"),
    ],
)
def test_urls_of_nothing(storage: Any, url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_corpus(url)


def test_selections_and_reports_are_local_files(storage: Any, local: Path, tmp_path: Path) -> None:
    """`Path` makes s3:/bucket of s3://bucket, a folder in this one; the command line hands over such paths."""
    for out in ("s3://bucket/kept.jsonl", Path("s3://bucket/kept.jsonl")):
        with pytest.raises(UsageError, match=r"--out s3:/+bucket/kept.jsonl: must be a local path"):
            ts.select(local, metric="rsr", out=out)
    with pytest.raises(UsageError, match=r"--out s3://bucket/page\.html: must be a local path"):
        ts.report(local, out="s3://bucket/page.html")
    ts.select(local, metric="rsr", top=3, out=tmp_path / "kept.jsonl")
    with pytest.raises(UsageError, match="--out s3://bucket/export: must be a local path"):
        ts.export(tmp_path / "kept.jsonl", to="trl", out="s3://bucket/export")


def test_a_bucket_is_never_made(storage: Any) -> None:
    """A slip of the pen in its name must not open another one, which others may read and somebody pays for."""
    with pytest.raises(TrajscoreError, match=r"s3://buckte/scores: cannot be written \(.*bucket does not exist"):
        ts.score(DATA, STUDENT, "s3://buckte/scores", **OPTIONS)
    storage.invalidate_cache()
    assert "buckte" not in storage.ls("")


def test_storage_that_does_not_answer(storage: Any) -> None:
    """A message, not a traceback; through the command line, whose settings are those of the environment."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_MAX_ATTEMPTS": "1",
    }
    command = [str(warm_program()), "score", str(DATA), "--student", str(STUDENT), "--engine", "hf"]
    done = subprocess.run(
        [*command, "--out", "s3://bucket/away"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert "s3://bucket/away: cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_library_for_urls_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(MissingExtraError, match="s3:// URLs is not installed"):
        as_path("s3://bucket/x")
    assert as_path("local/file") == Path("local/file")
    assert not is_url("local/file")
