"""`trajscore score` as a stranger uses and abuses it: exit code, message, and what is left on disk. Never a traceback."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import trajscore as ts
import trajscore.progress
from tests.helpers.paths import MODELS
from tests.helpers.stopped_runs import HANGS
from tests.helpers.warm_commands import warm_program
from trajscore.cli import app
from trajscore.scores import ScoreFolder

STUDENT = MODELS / "student"
TRAJSCORE = [sys.executable, "-m", "trajscore"]

Make = Callable[[Path], Path]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Outcome:
    """What a stranger sees, and the folder that was asked for."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def statuses(self) -> list[str]:
        return ts.scan(self.folder).collect()["status"].to_list()


def _score(data: Path | str, folder: Path, *options: str | Path, student: Path | str = STUDENT) -> Outcome:
    arguments = ["score", str(data), "--student", str(student), "--out", str(folder), *map(str, options)]
    result = CliRunner().invoke(app, arguments, prog_name="trajscore")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return Outcome(result.exit_code, result.stdout, result.stderr, folder)


def _chat(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **columns}


def _write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return _write(
        tmp_path / "corpus.jsonl", *(_chat(f"question {n}", f"Answer {n}. Done.", id=str(n)) for n in range(5))
    )


def _student(folder: Path, *without: str, **files: bytes) -> Path:
    """A copy of the student that lacks some files and has others replaced (`config__json=b"..."`)."""
    shutil.copytree(STUDENT, folder)
    for name in without:
        (folder / name).unlink()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def _wrong_usage(outcome: Outcome, *words: str) -> None:
    """Exit code 2, every word in the message, nothing on stdout, nothing written."""
    assert outcome.code == 2, outcome
    for word in words:
        assert word in outcome.err
    assert outcome.out == ""
    assert not outcome.folder.exists()


class TestRows:
    def test_what_cannot_be_scored_stays_with_its_reason(self, tmp_path: Path) -> None:
        rows = [
            _chat("q", "", id="empty"),
            _chat("q", "7", id="one token"),
            _chat("q", " \n\t ", id="blank"),
            {"id": "oracle", "messages": [{"role": "oracle", "content": "x"}, {"role": "assistant", "content": "y"}]},
            _chat("q", "7", id="one token"),
            {"id": "lost", "foo": 1},
            {"id": "character", "text": "a"},
        ]
        result = _score(_write(tmp_path / "c.jsonl", *rows), tmp_path / "s")
        assert result.code == 3
        statuses = result.statuses
        assert statuses[0] == "empty_response"
        assert statuses[1] == "ok"
        assert statuses[3:] == ["unknown_role", "duplicate_id", "no_known_layout", "empty_response"]
        assert (
            f"{len(rows)} rows = {statuses.count('ok')} scored + {len(rows) - statuses.count('ok')} refused"
            in result.out
        )
        assert "--max-refused 0.05" in result.err
        for words in ("row 0, id 'empty'", "row 3, id 'oracle'", "'oracle'", "row 4, id 'one token'"):
            assert words in result.err
        frame = ts.scan(result.folder).filter(pl.col("status") != "ok").collect()
        assert frame["status_detail"].null_count() == 0
        assert frame["student_surprisal"].null_count() == frame.height

    def test_names_of_columns_do_nothing_to_the_summary_or_the_terminal(self, tmp_path: Path) -> None:
        rows = [_chat("q", "a", row=7), {"id": "bad", "\x1b[2J": 1, "x": 2}, {"id": "half", "text": "\ud800"}]
        result = _score(_write(tmp_path / "c.jsonl", *rows), tmp_path / "s")
        assert result.statuses == ["ok", "no_known_layout", "not_storable"]
        assert "row 1, id 'bad'" in result.err
        assert "row 2, id 'half': A string holds \\ud800" in result.err
        assert "\\x1b[2J" in result.err
        assert "\x1b" not in result.err

    def test_exit_code_3_begins_above_the_share(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "c.jsonl", _chat("q", "a"), _chat("r", "b"), _chat("s", "c"), _chat("t", ""))
        assert _score(path, tmp_path / "s", "--max-refused", "0.25").code == 0
        result = _score(path, tmp_path / "s", "--max-refused", "0.24")
        assert result.code == 3
        assert "1 of 4 rows" in result.err
        _wrong_usage(_score(path, tmp_path / "x", "--max-refused", "5"), "--max-refused 5.0", "between 0 and 1")


def _not_utf8(path: Path) -> Path:
    path.write_bytes(json.dumps(_chat("q", "a")).encode() + b'\n{"text": "caf\xe9"}\n')
    return path


def _broken_line(path: Path) -> Path:
    path.write_text(json.dumps(_chat("q", "a")) + "\n{broken\n")
    return path


def _broken_parquet(path: Path) -> Path:
    path = path.with_suffix(".parquet")
    path.write_bytes(b"PAR1 nope")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_broken_line, "line 2: not valid JSON"),
        (_not_utf8, "line 2: byte 0xe9 at column"),
        (_broken_parquet, "as Parquet"),
    ],
)
def test_a_broken_file_fails_before_anything_is_written(make: Make, words: str, tmp_path: Path) -> None:
    path = make(tmp_path / "c.jsonl")
    result = _score(path, tmp_path / "s")
    assert result.code == 1
    assert str(path) in result.err
    assert words in result.err
    assert "hint: " in result.err
    assert not result.folder.exists()


def _empty(path: Path) -> Path:
    path.write_text("\n\n")
    return path


def _empty_folder(path: Path) -> Path:
    path.with_suffix("").mkdir()
    return path.with_suffix("")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_empty, "no rows"),
        (_empty_folder, "holds no supported file"),
        (lambda path: path.parent / "*.parquet", "nothing supported matches"),
        (lambda path: path.parent / "missing.jsonl", "no such file"),
        (lambda path: _write(path.with_suffix(".xlsx"), 1), ".jsonl"),
        (lambda path: _write(path, {"foo": 1, "bar": 2}), "Columns found: foo, bar"),
    ],
    ids=["empty", "empty folder", "glob", "missing", "suffix", "no layout"],
)
def test_data_that_is_no_corpus(make: Make, words: str, tmp_path: Path) -> None:
    _wrong_usage(_score(make(tmp_path / "c.jsonl"), tmp_path / "s"), words, "hint: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--messages-field", "nope"], ["--messages-field nope", "Columns found: "]),
        (["--id-field", "nope"], ["--id-field nope", "Columns found"]),
        (["--teacher-field", "nope"], ["--teacher-field nope", "Columns found"]),
        (["--chat-template-kwargs", "{bad"], ["--chat-template-kwargs {bad", "not JSON", "Example"]),
        (["--chat-template-kwargs", "[1]"], ["--chat-template-kwargs [1]", "object", "Example"]),
        (["--engine", "vlm"], ["--engine vlm", "auto, vllm, hf"]),
        (["--device", "gpu"], ["--device gpu", "Allowed: auto, cpu"]),
        (["--device", "meta"], ["--device meta", "Allowed: auto, cpu"]),
        (["--device", "cpu:x"], ["--device cpu:x", "Allowed: auto, cpu"]),
        (["--dtype", "int8"], ["--dtype", "int8", "float32"]),
        (["--attn-implementation", "nope"], ["--attn-implementation nope"]),
        (["--max-model-len", "9999999"], ["--max-model-len 9999999", "32768"]),
        (["--max-model-len", "0"], ["--max-model-len 0", "at least 1"]),
        (["--max-num-batched-tokens", "0"], ["--max-num-batched-tokens 0", "at least 1"]),
        (["--part-rows", "0"], ["--part-rows 0", "at least 1"]),
        (["--part-rows", "many"], ["--part-rows", "whole number"]),
        (["--limit", "0"], ["--limit 0", "at least 1"]),
        (["--extra", "entropy"], ["--extra entropy", "collision"]),
        (["--turns", "first"], ["--turns", "first", "last"]),
        (["--maxmodellen", "7"], ["--maxmodellen", "--max-model-len"]),
        (["--max-refused", "nan"], ["--max-refused nan"]),
        (["--revision"], ["--revision"]),
    ],
    ids=" ".join,
)
def test_wrong_options_write_nothing(options: list[str], words: list[str], corpus: Path, tmp_path: Path) -> None:
    _wrong_usage(_score(corpus, tmp_path / "s", *options), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_device_that_is_not_here(device: str, corpus: Path, tmp_path: Path) -> None:
    _wrong_usage(_score(corpus, tmp_path / "s", "--device", device), f"--device {device}: not usable here", "cpu")


class TestModels:
    def test_no_such_model(self, corpus: Path, tmp_path: Path) -> None:
        _wrong_usage(
            _score(corpus, tmp_path / "s", student=tmp_path / "no"), str(tmp_path / "no"), "no such folder", "hub id"
        )
        _wrong_usage(_score(corpus, tmp_path / "s", student=corpus), str(corpus), "a file, not a model")
        empty = tmp_path / "empty"
        empty.mkdir()
        _wrong_usage(_score(corpus, tmp_path / "s", student=empty), str(empty), "config.json")

    @pytest.mark.parametrize(
        ("without", "files", "words"),
        [
            (["model.safetensors"], {}, ".safetensors"),
            ([], {"config__json": b"{broken"}, "config.json"),
            ([], {"config__json": b"{}"}, "model_type"),
            ([], {"model__safetensors": (STUDENT / "model.safetensors").read_bytes()[:5000]}, "incomplete"),
            ([], {"model__safetensors": b""}, "header"),
            ([], {"tokenizer__json": b"{broken"}, "tokenizer cannot be loaded"),
        ],
        ids=["no weights", "broken config", "empty config", "truncated", "empty weights", "broken tokenizer"],
    )
    def test_broken_model(
        self, without: list[str], files: dict[str, bytes], words: str, corpus: Path, tmp_path: Path
    ) -> None:
        model = _student(tmp_path / "model", *without, **files)
        _wrong_usage(_score(corpus, tmp_path / "s", student=model), str(model), words, "hint: ")

    def test_a_model_without_tokenizer_files_has_no_tokenizer(self, corpus: Path, tmp_path: Path) -> None:
        """transformers makes an empty tokenizer then, under which every response is empty."""
        model = _student(tmp_path / "model", "tokenizer.json", "tokenizer_config.json")
        _wrong_usage(_score(corpus, tmp_path / "s", student=model), str(model), "tokenizer")

    @pytest.mark.parametrize("reshape", [False, True], ids=["missing", "reshaped"])
    def test_weights_that_transformers_would_make_up(self, reshape: bool, corpus: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        model = _student(tmp_path / "model")
        weights = load_file(model / "model.safetensors")
        name = next(name for name in weights if "mlp.down_proj" in name)
        weight = weights.pop(name)
        if reshape:
            weights[name] = weight[:-1].clone()
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        _wrong_usage(_score(corpus, tmp_path / "s", student=model), str(model), name if not reshape else "")

    def test_no_chat_template(self, corpus: Path, tmp_path: Path) -> None:
        model = _student(tmp_path / "model", "chat_template.jinja")
        _wrong_usage(_score(corpus, tmp_path / "s", student=model), str(model), "no chat template", "--chat-template")
        template = STUDENT / "chat_template.jinja"
        assert _score(corpus, tmp_path / "s", "--chat-template", template, student=model).code == 0
        assert _score(corpus, tmp_path / "t", "--chat-template", STUDENT, student=model).code == 0
        texts = _write(tmp_path / "texts.jsonl", {"text": "Needs no template."})
        assert _score(texts, tmp_path / "u", student=model).code == 0

    def test_hub_ids_while_offline(self, corpus: Path, tmp_path: Path) -> None:
        """In a process of its own, whose environment has HF_HUB_OFFLINE before huggingface_hub is imported and reads it."""
        for arguments, name in (
            (["nobody/no-such-data", "--student", str(STUDENT)], "nobody/no-such-data"),
            ([str(corpus), "--student", "nobody/no-such-model"], "nobody/no-such-model"),
        ):
            result = _process([*arguments, "--out", str(tmp_path / "s")], timeout=HANGS)
            assert result.returncode == 2, result.stderr
            assert f"error: {name}: " in result.stderr
            assert "hint: " in result.stderr
            assert "Traceback" not in result.stderr
        assert not (tmp_path / "s").exists()


class TestChatTemplates:
    def test_missing_file(self, corpus: Path, tmp_path: Path) -> None:
        _wrong_usage(
            _score(corpus, tmp_path / "s", "--chat-template", tmp_path / "no.jinja"), str(tmp_path / "no.jinja")
        )

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"{% for m in messages %}{{ m.content }", "not valid Jinja"),
            (b"\xff\xe9", "utf-8"),
        ],
        ids=["broken", "not UTF-8"],
    )
    def test_unusable_file(self, content: bytes, words: str, corpus: Path, tmp_path: Path) -> None:
        template = tmp_path / "t.jinja"
        template.write_bytes(content)
        _wrong_usage(_score(corpus, tmp_path / "s", "--chat-template", template), str(template), words)

    def test_a_template_that_refuses_every_row(self, corpus: Path, tmp_path: Path) -> None:
        template = tmp_path / "t.jinja"
        template.write_text("{{ raise_exception('only tools, please') }}")
        result = _score(corpus, tmp_path / "s", "--chat-template", template)
        assert result.code == 3
        assert set(result.statuses) == {"template_error"}
        assert "only tools, please" in result.err


class TestFolders:
    @pytest.mark.parametrize("below", ["", "scores"], ids=["file", "below a file"])
    def test_out_is_a_file(self, below: str, corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        result = _score(corpus, tmp_path / "file" / below)
        assert result.code == 2
        assert f"{tmp_path / 'file'} is a file, not a folder" in result.err
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.skipif(sys.platform != "linux", reason="/proc")
    def test_out_cannot_be_written(self, corpus: Path) -> None:
        result = _score(corpus, Path("/proc/scores"))
        assert result.code == 1
        assert "/proc/scores: cannot be written" in result.err
        assert "hint: " in result.err

    def test_a_disk_that_fills_up_keeps_finished_parts(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = pq.write_table
        written: list[int] = []

        def full(*args: Any, **kwargs: Any) -> None:
            if len(written) == 2:
                raise OSError(28, "No space left on device")
            written.append(1)
            write(*args, **kwargs)

        monkeypatch.setattr(pq, "write_table", full)
        result = _score(corpus, tmp_path / "s", "--part-rows", "1")
        assert result.code == 1
        assert "No space left on device" in result.err
        assert "finished parts are kept" in result.err
        assert ts.read_manifest(tmp_path / "s").rows == 2
        monkeypatch.undo()
        result = _score(corpus, tmp_path / "s", "--part-rows", "1", "--json")
        assert json.loads(result.out)["resumed_rows"] == 2
        assert ts.scan(tmp_path / "s").collect()["id"].to_list() == ["0", "1", "2", "3", "4"]

    def test_other_settings_are_refused_and_overwrite_starts_anew(self, corpus: Path, tmp_path: Path) -> None:
        assert _score(corpus, tmp_path / "s").code == 0
        before = _content(tmp_path / "s")
        result = _score(corpus, tmp_path / "s", "--part-rows", "2", "--turns", "last")
        assert result.code == 2
        for words in ("part_rows: was 500, now 2", "rendering.turns: was 'all', now 'last'", "--overwrite"):
            assert words in result.err
        assert _content(tmp_path / "s") == before
        assert _score(corpus, tmp_path / "s", "--part-rows", "2", "--turns", "last", "--overwrite").code == 0
        assert len(ts.read_manifest(tmp_path / "s").parts) == 3

    def test_a_finished_folder_is_not_scored_again(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert _score(corpus, tmp_path / "s", "--part-rows", "2").code == 0
        parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*.parquet")}

        def never(*_: object) -> None:
            raise AssertionError("scored again")

        monkeypatch.setattr(ScoreFolder, "write_part", never)
        result = _score(corpus, tmp_path / "s", "--part-rows", "2", "--json")
        assert result.code == 0
        assert json.loads(result.out)["resumed_rows"] == 5
        assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*.parquet")} == parts

    def test_overwrite_deletes_nothing_that_is_not_ours(self, corpus: Path, tmp_path: Path) -> None:
        folder = tmp_path / "s"
        folder.mkdir()
        for name in ("part-00000.parquet", "manifest.json"):
            if name.endswith("json"):
                (folder / name).write_text('{"files": []}')
            else:
                pl.DataFrame({"text": ["somebody's corpus"]}).write_parquet(folder / name)
            before = _content(folder)
            for options in ([], ["--overwrite"]):
                result = _score(corpus, folder, *options)
                assert result.code in (1, 2)
                assert str(folder) in result.err
                assert {k: v for k, v in _content(folder).items() if k != ".lock"} == before
            (folder / ".lock").unlink(missing_ok=True)
            (folder / name).unlink()
        (folder / "notes.txt").write_text("mine")
        refused = _score(corpus, folder)
        assert refused.code == 2
        assert "notes.txt" in refused.err
        assert "--keep-foreign" in refused.err
        assert _content(folder) == {"notes.txt": b"mine"}
        for options in (["--keep-foreign"], [], ["--overwrite", "--keep-foreign"]):
            assert _score(corpus, folder, *options).code == 0
            assert (folder / "notes.txt").read_text() == "mine"
        assert _score(corpus, folder, "--overwrite").code == 2
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "tokenizer.json").write_text("theirs")
        for options in ([], ["--overwrite"], ["--keep-foreign"]):
            assert _score(corpus, tmp_path / "model", *options).code == 2
            assert (tmp_path / "model" / "tokenizer.json").read_text() == "theirs"

    def test_interruption_keeps_what_is_done(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = ScoreFolder.write_part
        seen: list[int] = []

        def stopping(*args: Any) -> Any:
            seen.append(1)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(ScoreFolder, "write_part", stopping)
        result = _score(corpus, tmp_path / "s", "--part-rows", "1")
        assert result.code == 130
        assert result.err.endswith("interrupted\n")
        assert ts.read_manifest(tmp_path / "s").rows == 2


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestOutput:
    def test_json_is_one_object_and_warnings_go_to_stderr(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "c.jsonl", _chat("q", "a", id="1"), _chat("q", "", id="2"))
        result = _process(
            [str(path), "--student", str(STUDENT), "--out", str(tmp_path / "s"), "--split", "test", "--json"]
        )
        assert result.returncode == 3
        summary = json.loads(result.stdout)
        assert summary["rows"] == 2 == summary["scored"] + sum(summary["refused"].values())
        assert summary["too_many_refused"] is True
        assert summary["first_refused"]["empty_response"].startswith("row 1, id '2': ")
        assert result.stdout.startswith("{")
        assert result.stdout.endswith("}\n")
        assert "--split" in result.stderr
        assert "1 of 2 rows were refused" in result.stderr
        assert "\x1b" not in result.stdout + result.stderr

    def test_errors_leave_stdout_empty_with_json(self, corpus: Path, tmp_path: Path) -> None:
        _wrong_usage(_score(corpus, tmp_path / "s", "--limit", "0", "--json"), "--limit 0")

    def test_progress_is_plain_lines_on_stderr(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        every_time = functools.partial(trajscore.progress.ProgressLine, every=0.0)
        monkeypatch.setattr(trajscore.progress, "ProgressLine", every_time)
        result = _score(corpus, tmp_path / "s", "--part-rows", "2")
        lines = [line for line in result.err.splitlines() if " of 5 rows, " in line]
        assert lines[0].startswith("1 of 5 rows, ")
        assert lines[-1].startswith("5 of 5 rows, ")
        assert "tokens/s" in lines[0]
        assert "left" in lines[0]
        assert "\r" not in result.err
        assert "\x1b" not in result.err
        assert result.out.count("\n") == 1

    @pytest.mark.parametrize(("term", "rewritten"), [("xterm", True), ("dumb", False)])
    def test_progress_is_rewritten_on_a_terminal(
        self, term: str, rewritten: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("TERM", term)
        ticks = iter(range(0, 1000, 10))
        monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
        stream = Terminal()
        with trajscore.progress.ProgressLine(stream) as line:
            line.start(10, 0)
            line.advance(5, 100)
        assert ("\r" in stream.getvalue()) is rewritten
        assert ("\x1b" in stream.getvalue()) is rewritten
        assert "5 of 10 rows" in stream.getvalue()

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
    def test_no_color(self, corpus: Path, tmp_path: Path) -> None:
        """A real terminal: colour by default, none with NO_COLOR."""
        command = [str(corpus), "--student", str(STUDENT), "--out", str(tmp_path / "s"), "--split", "test"]
        assert "\x1b[3" in _on_terminal(command, {})
        assert "\x1b[3" not in _on_terminal(command, {"NO_COLOR": "1"})

    def test_a_reader_that_leaves(self, corpus: Path, tmp_path: Path) -> None:
        read, write = os.pipe()
        os.close(read)
        result = subprocess.run(
            [str(warm_program()), "score", str(corpus), "--student", str(STUDENT), "--out", str(tmp_path / "s"), "--json"],
            stdout=write, stderr=subprocess.PIPE, text=True, timeout=HANGS, check=False,
        )  # fmt: skip
        os.close(write)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert ts.read_manifest(tmp_path / "s").complete


def _process(arguments: list[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [str(warm_program()), "score", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def _on_terminal(arguments: list[str], environment: dict[str, str]) -> str:
    """stderr of a run whose stderr is a terminal."""
    import pty

    ours, theirs = pty.openpty()
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
    process = subprocess.Popen(
        [*TRAJSCORE, "score", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**clean, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end was closed
            break
        if not block:
            break
        seen += block
    os.close(ours)
    assert process.wait(timeout=HANGS) == 0, seen
    return seen.decode()
