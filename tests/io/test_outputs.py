"""Outputs spare inputs: what is refused, by real paths, before anything is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trajscore.errors import UsageError
from trajscore.io.outputs import spare_inputs


@pytest.fixture
def world(tmp_path: Path) -> Path:
    (tmp_path / "corpus" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("corpus/a.jsonl", "corpus/deep/b.jsonl", "elsewhere/c.jsonl", "single.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "corpus" / "link.jsonl").symlink_to(tmp_path / "elsewhere" / "c.jsonl")
    (tmp_path / "other").symlink_to(tmp_path / "corpus")
    (tmp_path / "file_link").symlink_to(tmp_path / "single.jsonl")
    os.link(tmp_path / "single.jsonl", tmp_path / "hard.jsonl")
    return tmp_path


@pytest.mark.parametrize(
    ("out", "read", "said"),
    [
        ("single.jsonl", "single.jsonl", "is what DATA reads"),
        ("elsewhere/../single.jsonl", "single.jsonl", "is what DATA reads"),
        ("file_link", "single.jsonl", "is what DATA reads"),
        ("single.jsonl", "file_link", "is what DATA reads"),
        ("hard.jsonl", "single.jsonl", "is what DATA reads"),
        ("corpus", "corpus", "is what DATA reads"),
        ("corpus/new/scores", "corpus", "lies in"),
        ("other/new", "corpus", "lies in"),
        ("corpus/new", "other", "lies in"),
        ("elsewhere/c.jsonl", "corpus", "is what DATA reads"),
        ("elsewhere", "corpus", "holds"),
        (".", "corpus/a.jsonl", "holds"),
        ("corpus", "corpus/*.jsonl", "holds"),
        ("corpus/deep/new", "corpus/**/*.jsonl", "lies in"),
    ],
)
def test_what_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch, out: str, read: str, said: str) -> None:
    monkeypatch.chdir(world)
    for output, data in ((out, read), (world / out, read), (out, [Path("elsewhere") / "none", str(world / read)])):
        with pytest.raises(UsageError, match=said):
            spare_inputs({"--out": output}, {"DATA": data}, ["--out"])


@pytest.mark.parametrize(
    ("out", "read"),
    [
        ("new", "corpus"),
        ("corpus-2/new", "corpus"),
        ("new", "some/hub-id"),
        ("new", "single.jsonl"),
        ("corpus/new", "corpus/*.jsonl"),
        ("s3://bucket/scores", "s3://bucket/scores-old"),
        ("s3://bucket/scores", "corpus"),
        ("new", None),
    ],
)
def test_what_is_allowed(world: Path, monkeypatch: pytest.MonkeyPatch, out: str, read: str | None) -> None:
    monkeypatch.chdir(world)
    spare_inputs({"--out": out, "--csv": None}, {"DATA": read, "SCORES": object()}, ["--out"])


def test_urls(world: Path) -> None:
    for out, read, said in (
        ("s3://b/x/", "s3://b/x", "is what"),
        ("s3://b/x/y", "s3://b/x", "lies in"),
        ("s3://b/x", "s3://b/x/y.jsonl", "holds"),
    ):
        with pytest.raises(UsageError, match=said):
            spare_inputs({"--out": out}, {"DATA": read}, ["--out"])


def test_outputs_of_one_run_and_what_is_no_file(world: Path) -> None:
    with pytest.raises(UsageError, match="--out and --csv are both"):
        spare_inputs({"--out": world / "x", "--csv": world / "corpus" / ".." / "x"}, {})
    with pytest.raises(UsageError, match="lie in one another"):
        spare_inputs({"--out": world / "x", "--csv": world / "x" / "y"}, {}, ["--out"])
    with pytest.raises(UsageError, match="is a folder"):
        spare_inputs({"--out": world / "corpus"}, {})
    os.mkfifo(world / "pipe")
    with pytest.raises(UsageError, match="no regular file"):
        spare_inputs({"--out": world / "pipe"}, {})
