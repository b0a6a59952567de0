"""Nothing that a data set, a manifest, a path or an argument says reaches a terminal as a control character, in any command."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from tests.helpers.mask_files import write_mask
from tests.helpers.paths import ROOT
from tests.helpers.score_tables import random_rows, write_folder
from trajscore.cli import app
from trajscore.display.writer import ERR, OUT, guarded_streams
from trajscore.errors import DataError

HOSTILE = "\x1b]52;c;aGk=\x07\x9b2J\u202e\x08\x7f\x1b[8m"
SHOWN = r"\x1b]52;c;aGk=\x07\x9b2J\u202e\x08\x7f\x1b[8m"
STUDENT = ROOT / "data" / "models" / "student"


def _write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose every name is hostile: scores, a corpus, a mask, a metrics file, a template, files of skills."""
    folder = tmp_path_factory.mktemp("terminal") / f"w{HOSTILE}"
    folder.mkdir()
    rows = random_rows(40, seed=3, teachers=(f"A{HOSTILE}", f"=B{HOSTILE}", None))
    for row in rows:
        row |= {"id": row["id"] + HOSTILE, "prompt_id": row["prompt_id"] + HOSTILE, "extra": json.dumps(HOSTILE)}
        row["messages"] = [{"role": "assistant", "content": HOSTILE, "tool_calls": None}]
        if row["status"] == "ok":
            row |= {"kl_student_teacher": row["student_entropy"], "teacher_sentence_logprob": [-0.5]}
    extra = ("kl_student_teacher", "teacher_sentence_logprob")
    write_folder(folder / f"scores{HOSTILE}", rows, extra=extra)
    shutil.copy(STUDENT / "tokenizer.json", folder / f"scores{HOSTILE}")
    damaged = folder / f"damaged{HOSTILE}"
    shutil.copytree(folder / f"scores{HOSTILE}", damaged)
    manifest = json.loads((damaged / "manifest.json").read_bytes())
    (damaged / manifest["parts"][0]["file"]).write_bytes(b"PAR1\x1b]0;x\x07")
    (damaged / f"part-{HOSTILE}.parquet").write_bytes(b"")
    wrong = folder / f"wrong{HOSTILE}"
    shutil.copytree(damaged, wrong)
    manifest["parts"][0]["file"] = HOSTILE
    (wrong / "manifest.json").write_text(json.dumps({**manifest, "schema_version": HOSTILE, "settings": {HOSTILE: 1}}))
    chat = [{"role": HOSTILE, "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]
    _write(folder / f"corpus{HOSTILE}.jsonl", {"id": HOSTILE, "messages": chat, "teacher": HOSTILE, HOSTILE: HOSTILE})
    _write(folder / f"broken{HOSTILE}.jsonl", HOSTILE)
    turns = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]
    _write(folder / f"chats{HOSTILE}.jsonl", {"id": HOSTILE, "messages": turns, HOSTILE: HOSTILE})
    write_mask(folder / f"mask{HOSTILE}.parquet", [{"id": HOSTILE, "input_ids": [1, 2], "labels": [-100, 2]}])
    name = json.dumps(HOSTILE)
    (folder / f"metrics{HOSTILE}.py").write_text(f"raise ValueError({name})\n")
    (folder / f"template{HOSTILE}.jinja").write_text("{{ raise_exception(messages[0].content) }}")
    question = {"question_id": HOSTILE, "question": HOSTILE, "subject": HOSTILE, "skills": [HOSTILE], "status": HOSTILE}
    _write(folder / f"q{HOSTILE}.jsonl", question)
    found = {"question_id": HOSTILE, "status": "ok", "missing_skills": [HOSTILE], "agreement": 0.5}
    _write(folder / f"diagnosis{HOSTILE}.jsonl", found, {**found, "question_id": "b", "status": HOSTILE})
    (folder / f"skills{HOSTILE}.json").write_text(json.dumps({HOSTILE: [HOSTILE]}))
    return folder


COMMANDS: list[list[str]] = [
    ["select", "scores", "--metric", "rsr", "--per-prompt", "1", "--explain", "ID", "--out", "new.jsonl"],
    ["select", "scores", "--quota", "teacher:HOSTILE=1", "--decisions", "new.csv"],
    ["select", "scores", "--quota", "HOSTILE=0.5"],
    ["select", "scores", "--where", "teacher = 'HOSTILE"],
    ["select", "scores", "--where", "HOSTILE < 3"],
    ["select", "scores", "--where", '"HOSTILE" < 3'],
    ["select", "scores", "--metric", "HOSTILE"],
    ["select", "scores", "--preset", "HOSTILE"],
    ["select", "scores", "--explain", "HOSTILE"],
    ["select", "scores", "--metrics-file", "metricsHOSTILE.py"],
    ["select", "damaged", "--metric", "rsr"],
    ["select", "wrong"],
    ["select", "scores", "--out", "new.HOSTILE"],
    ["report", "scores", "--replicates", "20", "--out", "new.html", "--csv", "newHOSTILE.csv"],
    ["report", "scores", "--performance", "qHOSTILE.jsonl"],
    ["inspect", "scores", "--worst", "2", "--numbers"],
    ["inspect", "scores", "--id", "HOSTILE"],
    ["inspect", "scores", "--worst", "1", "--by", "HOSTILE"],
    ["mask", "scores", "--rule", "all", "--out", "newHOSTILE.parquet"],
    ["mask", "scores", "--rule", "HOSTILE", "--out", "new.parquet"],
    ["trace", "scores", "--out", "newHOSTILE.csv"],
    ["verify", "scores"],
    ["verify", "damaged"],
    ["verify", "wrong"],
    ["verify", "HOSTILE"],
    ["merge", "scores"],
    ["merge", "HOSTILE"],
    ["export", "chatsHOSTILE.jsonl", "--to", "trl", "--out", "newHOSTILE"],
    ["export", "maskHOSTILE.parquet", "--to", "trl", "--out", "new2HOSTILE"],
    ["export", "brokenHOSTILE.jsonl", "--to", "trl", "--out", "new3"],
    ["export", "maskHOSTILE.parquet", "--to", "HOSTILE", "--out", "new3"],
    ["diff", "new.jsonl", "chatsHOSTILE.jsonl"],
    ["doctor", "--student", "HOSTILE"],
    ["doctor", "--student", "STUDENT", "--chat-template", "templateHOSTILE.jinja"],
    ["list", "metrics", "--metrics-file", "metricsHOSTILE.py"],
    ["score", "corpusHOSTILE.jsonl", "--student", "STUDENT", "--out", "newscoresHOSTILE"],
    ["score", "chatsHOSTILE.jsonl", "--student", "STUDENT", "--out", "newscoresHOSTILE", "--dry-run",
     "--calibration-seconds", "0.1"],
    ["score", "chatsHOSTILE.jsonl", "--student", "STUDENT", "--out", "new4", "--chat-template", "templateHOSTILE.jinja"],
    ["score", "brokenHOSTILE.jsonl", "--student", "STUDENT", "--out", "new5"],
    ["score", "HOSTILE", "--student", "HOSTILE", "--out", "HOSTILE"],
    ["slurm", "--shards", "2", "--", "chatsHOSTILE.jsonl", "--student", "HOSTILE", "--out", "HOSTILE"],
    ["skills", "profile", "diagnosisHOSTILE.jsonl", "--out", "newHOSTILE.json"],
    ["skills", "label", "qHOSTILE.jsonl", "--skills", "skillsHOSTILE.json", "--annotator", "HOSTILE", "--out",
     "newHOSTILE.jsonl", "--base-url", "http://127.0.0.1:9/HOSTILE", "--max-retries", "0"],
    ["skills", "label", "qHOSTILE.jsonl", "--skills", "qHOSTILE.jsonl", "--annotator", "m", "--out", "n.jsonl",
     "--base-url", "HOSTILE"],
    ["skills", "diagnose", "qHOSTILE.jsonl", "--skills", "skillsHOSTILE.json", "--annotator", "m", "--out", "n.jsonl"],
    ["skills", "synthesise", "diagnosisHOSTILE.jsonl", "--skill-map", "qHOSTILE.jsonl", "--annotator", "m", "--out", "n.jsonl"],
    ["grade", "chatsHOSTILE.jsonl", "--reference-field", "HOSTILE", "--out", "gHOSTILE.jsonl"],
    ["grade", "chatsHOSTILE.jsonl", "--reference-field", "xHOSTILE", "--out", "g.jsonl"],
    ["run", "HOSTILE"],
    ["run", "brokenHOSTILE.jsonl"],
    ["HOSTILE"],
    ["select", "--HOSTILE"],
    ["select", "scores", "--top", "HOSTILE"],
]  # fmt: skip


def _harmless(text: str) -> bool:
    return all(letter.isprintable() or letter in "\n\t" for letter in text)


@pytest.mark.parametrize("json_too", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_control_character_of_anybody_reaches_the_terminal(
    world: Path, arguments: list[str], json_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    words = [word + HOSTILE if word in ("scores", "damaged", "wrong") else word for word in arguments]
    words = [word.replace("HOSTILE", HOSTILE).replace("STUDENT", str(STUDENT)) for word in words]
    first = next((row for row in random_rows(40, seed=3) if row["status"] == "ok"), {"id": ""})["id"] + HOSTILE
    words = [first if word == "ID" else word for word in words]
    if json_too and words[0] in ("slurm", HOSTILE):
        return
    result = CliRunner().invoke(app, [*words, *(["--json"] if json_too else [])])
    assert result.exit_code in (0, 1, 2, 3)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert _harmless(result.stdout), ascii(result.stdout)
    assert _harmless(result.stderr), ascii(result.stderr)
    assert "Traceback" not in result.stderr
    if json_too and result.exit_code == 0:
        json.loads(result.stdout)


def test_json_reads_back_as_it_was(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    result = CliRunner().invoke(app, ["report", f"scores{HOSTILE}", "--replicates", "20", "--json"])
    assert _harmless(result.stdout)
    assert f"A{HOSTILE}" in set(_texts(json.loads(result.stdout)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(each)


def test_what_is_hostile_is_shown_and_not_left_out(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the strings do get there."""
    monkeypatch.chdir(world)
    for words, stream in ((["verify", f"damaged{HOSTILE}"], "stdout"), (["verify", HOSTILE], "stderr")):
        assert SHOWN[:12] in getattr(CliRunner().invoke(app, words), stream)
    told = CliRunner().invoke(app, ["report", f"scores{HOSTILE}", "--replicates", "20"]).stdout
    assert r"\x1b" in told.replace("\n", "")


def test_csv_cells_are_no_formulas(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    files = ["--csv", "r.csv", "--tidy", "t.csv"]
    assert CliRunner().invoke(app, ["report", f"scores{HOSTILE}", "--replicates", "20", *files]).exit_code == 0
    for table in (pl.read_csv("r.csv", infer_schema=False), pl.read_csv("t.csv", infer_schema=False)):
        names = set(table["teacher"].drop_nulls())
        assert f"'=B{HOSTILE}" in names
        assert not any(name.startswith(("=", "+", "-", "@")) for name in names)
    assert table.filter(quantity="value")["value"].drop_nulls().cast(pl.Float64, strict=False).is_not_null().any()


class _Loud(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, _Loud])
def test_whatever_writes_to_the_streams_is_guarded(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = stream(), stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with guarded_streams():
        print(HOSTILE)
        warnings.showwarning(HOSTILE, UserWarning, HOSTILE, 1)
        sys.excepthook(DataError, DataError(HOSTILE), None)
        logging.getLogger("elsewhere").warning(HOSTILE)
        sys.stderr.writelines([HOSTILE, "\r\n"])
        OUT.line(HOSTILE)
        OUT.json({HOSTILE: HOSTILE})
        ERR.parts([HOSTILE])
    for text in (out.getvalue(), err.getvalue()):
        kept = text.replace("\x1b[8m", "").replace("\r", "") if stream is _Loud else text
        assert _harmless(kept), ascii(kept)
        assert r"\x1b]52" in text
    assert OUT._stream is out


def test_a_real_terminal_gets_colours_of_ours_and_nothing_of_theirs(world: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "trajscore", "report", f"scores{HOSTILE}", "--replicates", "20"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(command, cwd=world, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    data = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # what Linux says at the end of a terminal
            break
        data += block
    assert process.wait() == 0
    os.close(ours)
    text = data.decode()
    assert "\x1b[1m" in text, "the control: it is a terminal, with bold headings"
    assert "\x1b]" not in text
    assert "\x1b[8m" not in text
    assert "\x9b" not in text
    assert "\u202e" not in text
