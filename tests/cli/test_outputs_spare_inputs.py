"""Over every command that writes, from the table of commands: no output touches an input, and nothing of the user's changes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.helpers.paths import DATA
from trajscore.cli.app import app
from trajscore.options.declaration import Options, options_in


def _writing(options: type[Options]) -> Iterator[str]:
    """Names of options that write, of a class and all that are made of it."""
    for each in options.__subclasses__():
        yield from (name for name, declared in options_in(each).items() if declared.option.writes)
        yield from _writing(each)


_WORDS = {"DATA", "SCORES", "FILE", "MODEL", "DIR", "CSV", "ANSWERS", "DIAGNOSIS", "PROFILE"}
_FOLDERS = {"SCORES", "MODEL", "DIR", "DATA"}
_FILES = _WORDS - {"SCORES", "MODEL", "DIR"}
_NEEDED = {
    "mask": ["--rule", "all"],
    "export": ["--to", "trl"],
    "inspect": ["--id", "x"],
    "select": ["--metric", "length"],
}
_BESIDE = {"teacher_adapter": "--teacher", "distilled_adapter": "--distilled"}
"""What an input belongs to."""
_runner = CliRunner()
STUDENT = DATA / "models" / "student"


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    if hasattr(command, "commands"):
        for name, each in command.commands.items():
            yield from _commands(each, (*path, name))
    else:
        yield path, command.params


def _words(parameter: Any) -> set[str]:
    shown = parameter.metavar or parameter.name.upper()
    return set(re.split(r"[^A-Z]+", shown)) & _WORDS


def _cases() -> Iterator[Any]:
    for path, parameters in _commands(typer.main.get_command(app)):
        outputs = [each for each in parameters if each.name in OUTPUTS]
        inputs = [each for each in parameters if each.name not in OUTPUTS and _words(each)]
        for output in outputs:
            for each in inputs:
                yield pytest.param(path, parameters, output, each, id=f"{' '.join(path)}-{output.name}-{each.name}")


_COMMAND = typer.main.get_command(app)  # loads the classes of options
OUTPUTS = frozenset(_writing(Options))
CASES = list(_cases())


def test_the_table_has_the_commands_that_write() -> None:
    assert {"out", "csv", "tidy", "figures", "decisions", "chart", "cache"} <= OUTPUTS
    found = {" ".join(case.values[0]) for case in CASES}
    assert found >= {
        "score", "select", "mask", "export", "report", "trace", "inspect", "skills catalogue", "skills label",
        "skills answer", "skills begin", "skills entropy", "skills pass-rate",
        "skills diagnose", "skills profile", "skills synthesise",
    }  # fmt: skip
    assert len(CASES) > 40


def _suffix(output: Any) -> str:
    named = re.search(r"FILE(\.\w+)", output.metavar or "")
    return named[1] if named else "" if output.metavar == "DIR" else ".jsonl"


def _state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()  # noqa: PTH115
    return found


def _arguments(path: tuple[str, ...], parameters: list[Any], read: Any, given: Path, world: Path) -> list[str]:
    """The command, with `given` for one input and something harmless for whatever else it needs."""
    words = list(path)
    table = read.name == "table"
    for each in parameters:
        value = str(given) if each is read else None
        if value is None and each.required and each.name not in OUTPUTS and each.name != "to":
            value = str(world / "apart") if _words(each) else "x"
        if value is None and each.name == "scores" and not table:
            value = str(world / "apart")
        if value is None:
            continue
        words += [value] if each.param_type_name == "argument" else [each.opts[0], value]
    words += _NEEDED.get(path[-1], [])
    words += [_BESIDE[read.name], str(world / "apart")] if read.name in _BESIDE else []
    names = {each.name for each in parameters}
    if "in_process" in names:
        words += ["--in-process"]
    return words


def _refused(words: list[str], world: Path) -> str:
    before = _state(world)
    result = _runner.invoke(app, words)
    assert result.exit_code == 2, (words, result.output, result.exception)
    assert "Traceback" not in result.stderr
    assert _state(world) == before, words
    return result.stderr


@pytest.mark.parametrize(("path", "parameters", "output", "read"), CASES)
def test_no_output_touches_an_input(
    path: tuple[str, ...], parameters: list[Any], output: Any, read: Any, tmp_path: Path
) -> None:
    suffix, words = _suffix(output), _words(read)
    flag = [output.opts[0]]
    required = [each.opts[0] for each in parameters if each.name == "out" and each.required and each is not output]
    folder = output.metavar == "DIR"

    def refused(given: Path, out: Path) -> None:
        more = [
            word for name in required for word in (name, str(tmp_path / "new" / f"made{_suffix_of_out(parameters)}"))
        ]
        said = _refused([*_arguments(path, parameters, read, given, tmp_path), *flag, str(out), *more], tmp_path)
        assert " reads" in said or "is a folder" in said, said

    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "file").write_text("{}\n")
    if words & _FOLDERS:
        given = tmp_path / f"folder{suffix}"
        given.mkdir()
        (given / f"mine{suffix or '.jsonl'}").write_text("{}\n")
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / f"theirs{suffix or '.jsonl'}").write_text("{}\n")
        (given / f"link{suffix or '.jsonl'}").symlink_to(tmp_path / "real" / f"theirs{suffix or '.jsonl'}")
        (tmp_path / f"alias{suffix}").symlink_to(given)
        refused(given, given)
        refused(given, given / f"new{suffix}")
        refused(given, given / "deep" / f"new{suffix}")
        refused(given, tmp_path / f"alias{suffix}" / f"new{suffix}")
        refused(tmp_path / f"alias{suffix}", given / f"new{suffix}")
        refused(given, tmp_path if folder else tmp_path / "real" / f"theirs{suffix}")
    if words & _FILES:
        given = tmp_path / f"file{suffix or '.jsonl'}"
        given.write_text("{}\n")
        (tmp_path / f"file_alias{suffix}").symlink_to(given)
        if folder:
            return refused(given, tmp_path)
        refused(given, given)
        refused(given, tmp_path / f"file_alias{suffix}")
        refused(tmp_path / f"file_alias{suffix}", given)


def _suffix_of_out(parameters: list[Any]) -> str:
    return next((_suffix(each) for each in parameters if each.name == "out"), "")


def test_the_refusal_is_not_for_everything(tmp_path: Path) -> None:
    """The control: the same commands with an output beside get further, and fail for what they then read."""
    for case in CASES:
        path, parameters, output, read = case.values
        if output.name != "out":
            continue
        given = tmp_path / "given"
        given.mkdir(exist_ok=True)
        words = _arguments(path, parameters, read, given, tmp_path)
        result = _runner.invoke(app, [*words, output.opts[0], str(tmp_path / f"beside{_suffix(output)}")])
        assert " reads" not in result.stderr, result.stderr


@pytest.mark.parametrize("command", ["score", "export", "report"])
def test_a_folder_with_files_of_others(command: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("tokenizer.json", "thesis.txt", "export.json", "why.svg", "figures.json"):
        (out / name).write_text("{}")
    (tmp_path / "in.jsonl").write_text("{}\n")
    words = [command, str(tmp_path / "in.jsonl"), "--figures" if command == "report" else "--out", str(out)]
    words += {"score": ["--student", "x"], "export": ["--to", "trl"]}.get(command, [])
    assert "did not write" in _refused(words, tmp_path)


@pytest.mark.parametrize(
    ("outs", "named"),
    [
        ({"score": "."}, "lie in one another"),
        ({"select": "in.jsonl"}, "in.jsonl"),
        ({"select": "recipe.yaml"}, "the run reads"),
        ({"select": "scores/kept.jsonl"}, "lie in one another"),
        ({"report": "in.jsonl"}, "in.jsonl"),
        ({"report": "kept.jsonl"}, "are both"),
        ({"mask": "scores.recipe.json"}, "the record of score"),
        ({}, ""),
    ],
)
def test_no_step_of_a_recipe_writes_what_another_reads(outs: dict[str, str], named: str, tmp_path: Path) -> None:
    """The last one is the control: what a step makes for the next is no input of the user's."""
    out = {"score": "scores", "select": "kept.jsonl", "mask": "mask.parquet", "report": "r.html", **outs}
    (tmp_path / "in.jsonl").write_text('{"prompt": "p", "response": "x"}\n')
    (tmp_path / "scores.recipe.json").write_text("{}")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"score: {{data: in.jsonl, student: {STUDENT}, out: {out['score']}}}\n"
        f"select: {{metric: [length], out: {out['select']}}}\nmask: {{rule: all, out: {out['mask']}}}\n"
        f"report: {{out: {out['report']}}}\n"
    )
    if named:
        assert named in _refused(["run", str(recipe)], tmp_path)
        assert named in _refused(["run", str(recipe), "--dry-run"], tmp_path)
    else:
        assert _runner.invoke(app, ["run", str(recipe), "--dry-run"]).exit_code == 0


def test_the_card_and_the_cache_that_nobody_named_spare_inputs_too(tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl.calls.jsonl").write_text('{"prompt": "p", "response": "x"}\n')
    (tmp_path / "README.md").write_text("mine")
    words = [str(tmp_path / "kept.jsonl.calls.jsonl"), "--out", str(tmp_path / "kept.jsonl")]
    said = _refused(["skills", "label", *words, "--annotator", "x", "--skills", "y", "--in-process"], tmp_path)
    assert "--cache" in said
    assert "reads" in said
    words = [
        "select",
        str(tmp_path / "scores"),
        "--metric",
        "length",
        "--card",
        "--decisions",
        str(tmp_path / "README.md"),
    ]
    assert "--card" in _refused([*words, "--out", str(tmp_path / "new.jsonl")], tmp_path)


def test_a_dry_run_writes_no_cache(tmp_path: Path) -> None:
    """No output, no lock, no cache, whether named or not."""
    (tmp_path / "in.jsonl").write_text('{"id": "1", "question": "2+2?", "solution": "4"}\n')
    (tmp_path / "skills.json").write_text('{"maths": ["adding"]}')
    before = _state(tmp_path)
    dry = {
        "skills catalogue": ["--annotator", "x", "--base-url", "http://localhost:1"],
        "skills label": [
            "--annotator",
            "x",
            "--base-url",
            "http://localhost:1",
            "--skills",
            str(tmp_path / "skills.json"),
        ],
    }
    for command, more in dry.items():
        out = str(tmp_path / ("made.json" if command == "skills catalogue" else "made.jsonl"))
        for cache in ([], ["--cache", str(tmp_path / "calls.jsonl")]):
            words = [*command.split(), str(tmp_path / "in.jsonl"), "--out", out, "--dry-run", *more, *cache]
            result = _runner.invoke(app, words)
            assert result.exit_code == 0, result.output
            assert _state(tmp_path) == before, command
