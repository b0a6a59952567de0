"""Options declared once: what a class says is what the command line, Python, mypy and the manifest see."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import typer.main
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.paths import ROOT
from trajscore.cli import app
from trajscore.cli.app import Commands
from trajscore.cli.parameters import takes
from trajscore.errors import UsageError
from trajscore.exporters.options import ExportOptions
from trajscore.masking.options import MaskOptions
from trajscore.options import Options, argument, describe, keywords_of, option, options_in
from trajscore.options.values import json_object, key_values
from trajscore.ranking.options import ReportOptions
from trajscore.recipes.options import RunOptions
from trajscore.scoring.options import MergeOptions, PlanOptions, ScoreOptions, SlurmOptions, VerifyOptions
from trajscore.selection.options import DiffOptions, SelectOptions
from trajscore.skills.options import (
    AnswerOptions,
    BeginOptions,
    CatalogueOptions,
    DiagnoseOptions,
    EntropyOptions,
    GradeOptions,
    LabelOptions,
    PassRateOptions,
    ProfileOptions,
    SynthesiseOptions,
)
from trajscore.viewing.options import DoctorOptions, InspectOptions, TraceOptions

COMMANDS: dict[str, type[Options]] = {
    "score": PlanOptions,
    "select": SelectOptions,
    "diff": DiffOptions,
    "grade": GradeOptions,
    "mask": MaskOptions,
    "export": ExportOptions,
    "report": ReportOptions,
    "inspect": InspectOptions,
    "trace": TraceOptions,
    "doctor": DoctorOptions,
    "run": RunOptions,
    "merge": MergeOptions,
    "verify": VerifyOptions,
    "slurm": SlurmOptions,
    "skills catalogue": CatalogueOptions,
    "skills label": LabelOptions,
    "skills answer": AnswerOptions,
    "skills begin": BeginOptions,
    "skills pass-rate": PassRateOptions,
    "skills entropy": EntropyOptions,
    "skills diagnose": DiagnoseOptions,
    "skills profile": ProfileOptions,
    "skills synthesise": SynthesiseOptions,
}


class Base(Options):
    """A group."""

    seed: int = option(default=0, panel="Output", metavar="N", help="Seed.")


class Cut(Base):
    """Options of a command that cuts."""

    data: Sequence[str] = argument(kw_only=False, metavar="DATA", help="What to cut.")
    how: Literal["fine", "coarse"] = option(default="fine", panel="Data", help="How it is cut.")
    rows: int = option(default=500, panel="Data", unit="rows", at_least=1, help="Rows to a piece.")
    share: float | None = option(default=None, panel="Data", above=0, at_most=1, otherwise="all", help="What is kept.")
    names: Sequence[str] = option(default=(), panel="Data", flag="--name", metavar="NAME", help="A name.")
    sharp: bool = option(default=True, panel="Data", help="Whether it is sharp.")
    request: Mapping[str, Any] = option(
        default_factory=dict, panel="Data", typed=str, metavar="JSON", parse=json_object, help="More."
    )
    pairs: Mapping[str, Any] = option(
        default_factory=dict, panel="Data", flag="--pair", typed=list[str], parse=key_values, help="Pairs."
    )
    watcher: object = option(default=None, python_only=True, help="It watches.", harmless="it watches")

    def check_values(self) -> None:
        """What goes together."""
        if self.how == "coarse" and not self.sharp:
            raise UsageError("--how coarse needs --sharp.")


@keywords_of(Cut)
def cut(options: Cut) -> Cut:
    """Cut things.

    Returns:
        What it was told.
    """
    return options


def _by_command_line(*arguments: str) -> Cut:
    seen: list[Cut] = []
    small = Commands()

    @small.command()
    @takes(Cut)
    def command(options: Cut) -> None:
        """Cut things."""
        seen.append(options)

    result = CliRunner().invoke(small, list(arguments), standalone_mode=False)
    if result.exception:
        raise result.exception
    return seen[0]


def test_the_command_line_and_python_make_the_same_object() -> None:
    typed = _by_command_line(
        "a", "b", "--how", "coarse", "--rows", "7", "--share", "0.5", "--name", "x", "--name", "y", "--request", '{"k": 1}',
        "--pair", "p-q=2", "--seed", "3",
    )  # fmt: skip
    made = cut(
        ["a", "b"], how="coarse", rows=7, share=0.5, names=["x", "y"], request={"k": 1}, pairs={"p_q": 2}, seed=3
    )
    assert typed == made
    assert typed.names == ("x", "y")
    assert _by_command_line("a") == cut("a") == cut(data=["a"])
    assert not _by_command_line("a", "--no-sharp").sharp


@pytest.mark.parametrize(
    ("arguments", "keywords", "words"),
    [
        (["--rows", "0"], {"rows": 0}, "--rows 0: must be at least 1"),
        (["--share", "1.5"], {"share": 1.5}, "--share 1.5: must be above 0 and at most 1"),
        (["--share", "nan"], {"share": float("nan")}, "--share nan"),
        (["--rows", "many"], {"rows": "many"}, "--rows many: a whole number is needed"),
        (["--share", "half"], {"share": "half"}, "--share half: a number is needed"),
        (["--how", "rough"], {"how": "rough"}, "--how rough: not known"),
        (["--how", "coarse", "--no-sharp"], {"how": "coarse", "sharp": False}, "--how coarse needs --sharp"),
        (["--request", "[1]"], {"request": "[1]"}, "--request [1]: a JSON object"),
        (["--pair", "x"], {"pairs": "x"}, "--pair x: not of the form KEY=VALUE"),
    ],
)
def test_both_refuse_alike(arguments: list[str], keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as typed:
        _by_command_line("a", *arguments)
    with pytest.raises(UsageError) as called:
        cut("a", **keywords)
    assert typed.value.problem == called.value.problem
    assert words in typed.value.problem


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"rows": "7"}, "--rows 7: a whole number is needed"),
        ({"rows": True}, "--rows True: a whole number is needed"),
        ({"rows": 7.5}, "--rows 7.5: a whole number is needed"),
        ({"share": "half"}, "--share half: a number is needed"),
        ({"names": ["x", 3]}, "--name 3: text"),
        ({"sharp": "yes"}, "--sharp yes: true or false is needed"),
    ],
)
def test_a_value_of_another_type_is_named(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        cut("a", **keywords)
    assert words in caught.value.problem


def test_an_unknown_keyword_is_both_errors_and_names_the_nearest() -> None:
    for kind in (UsageError, TypeError):
        with pytest.raises(kind, match=r"cut\(\) has no option 'rowz'") as caught:
            cut("a", rowz=3)  # type: ignore[call-arg]
        assert "rows" in str(caught.value)
    with pytest.raises(UsageError, match="data"):
        cut()  # type: ignore[call-arg]


def test_types_are_known_to_mypy() -> None:
    """`make lint` fails where one of these errors is none: an ignore that is not needed is an error itself."""
    kept: Cut = cut("a", rows=3, how="coarse")
    assert kept.rows == 3
    for wrong in (
        lambda: cut("a", rows="3"),  # type: ignore[arg-type]
        lambda: cut("a", how="rough"),  # type: ignore[arg-type]
        lambda: ts.score("a", "m", "o", part_rows="many"),  # type: ignore[arg-type]
        lambda: ts.score("a", "m", "o", turns="first"),  # type: ignore[arg-type]
        lambda: ts.select("a", per_prompt=0.5),  # type: ignore[arg-type]
        lambda: ts.select("a", perprompt=1),  # type: ignore[call-arg]
        lambda: ts.mask("a", keep="half"),  # type: ignore[arg-type]
        lambda: ts.report("a", replicate=3),  # type: ignore[call-arg]
    ):
        with pytest.raises(UsageError):
            wrong()


@pytest.mark.slow
def test_mypy_sees_the_signature(tmp_path: Path) -> None:
    code = "import trajscore as ts\nreveal_type(ts.score)\nts.score('a', 'm')\nts.select('s', top=1, topp=2)\n"
    (tmp_path / "user.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(tmp_path / "user.py")]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout
    assert "student: str | pathlib.Path, out: str | pathlib.Path, *" in said
    assert "dtype: Literal['auto'] | Literal['float32']" in said
    assert 'Missing positional argument "out"' in said
    assert 'Unexpected keyword argument "topp"' in said


def test_notebooks_see_signature_and_arguments() -> None:
    signature = inspect.signature(cut)
    assert next(iter(signature.parameters)) == "data"
    assert signature.parameters["rows"].default == 500
    assert signature.parameters["rows"].kind is inspect.Parameter.KEYWORD_ONLY
    assert signature.return_annotation == "Cut"
    text = inspect.getdoc(cut) or ""
    assert (
        text.index("Args:\n") < text.index("    rows: Rows to a piece. Default: 500 rows.\n") < text.index("Returns:")
    )
    for function in (
        ts.score,
        ts.score_plan,
        ts.select,
        ts.mask,
        ts.export,
        ts.report,
        ts.inspect,
        ts.trace,
        ts.doctor,
    ):
        parameters = inspect.signature(function).parameters.values()
        assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters)
        assert "Args:" in (function.__doc__ or "")


def test_objects_are_frozen_and_replaced_ones_are_checked() -> None:
    made = Cut("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rows = 3  # type: ignore[misc]
    assert made.replaced(rows=3).rows == 3
    with pytest.raises(UsageError, match="--rows 0"):
        made.replaced(rows=0)
    assert made.part(Base) == {"seed": 0}


def test_recorded_is_all_but_the_harmless() -> None:
    assert Cut("a", share=0.5).recorded() == {
        "data": ["a"], "how": "fine", "rows": 500, "share": 0.5, "names": [], "sharp": True, "request": {}, "pairs": {},
        "seed": 0,
    }  # fmt: skip


def test_descriptions_have_what_a_reference_needs() -> None:
    rows = {each.name: each for each in describe(Cut)}
    assert rows["names"].flag == "--name"
    assert rows["names"].repeatable
    assert (rows["rows"].default, rows["rows"].unit, rows["rows"].metavar) == ("500 rows", "rows", "ROWS")
    assert rows["how"].choices == ("fine", "coarse")
    assert (rows["data"].flag, rows["data"].required) == ("DATA", True)
    assert rows["watcher"].flag == ""


@pytest.mark.parametrize("name", COMMANDS)
class TestEveryCommand:
    def test_says_of_each_option_what_it_is(self, name: str) -> None:
        for each in options_in(COMMANDS[name]).values():
            assert each.option.help[-1] in ".;)", each.name
            assert "efault:" not in each.option.help, "the default is appended"
            assert each.required or each.default_text, each.name
            recorded = each.option.recorded_by or each.option.recorded_as
            assert not (recorded and (each.option.harmless or each.option.writes)), each.name

    def test_help_shows_every_option_and_cuts_nothing(self, name: str) -> None:
        for columns in (80, 40):
            shown = CliRunner().invoke(app, [*name.split(), "-h"], env={"COLUMNS": str(columns), "NO_COLOR": "1"})
            assert shown.exit_code == 0
            assert "…" not in shown.stdout
            words = "".join(shown.stdout.replace("│", " ").split())
            for each in options_in(COMMANDS[name]).values():
                if not (each.option.python_only or each.option.hidden):
                    assert "".join(each.flag.split()) in words
                    assert "".join(each.help.split()) in words
            if columns == 80:
                assert max(map(len, shown.stdout.splitlines())) <= 80

    def test_names_of_python_and_command_line_are_one(self, name: str) -> None:
        for each in options_in(COMMANDS[name]).values():
            if not each.option.positional and each.option.flag is None:
                assert each.flag == f"--{each.name.replace('_', '-')}"


def test_the_engineers_way_takes_twelve_options_of_the_first_screen() -> None:
    """Raw rows of several teachers to a file that is trained on, as the quickstart has it; 80 columns and 30 lines a screen."""
    page = Path(__file__).parents[2] / "docs" / "guides" / "quickstart.md"
    block = page.read_text("utf-8").split("to a file that is trained on\n")[1].split("```bash\n")[1].split("```")[0]
    count = 0
    for line in block.splitlines():
        _, command, *words = line.split()
        shown = (
            CliRunner().invoke(app, [command, "-h"], env={"COLUMNS": "80", "NO_COLOR": "1"}).output.splitlines()[:30]
        )
        named = [word for word in words if word.startswith("--")]
        count += len(named)
        for flag in named:
            assert any(text.startswith(f"\u2502 {flag} ") for text in shown), (command, flag)
    assert 8 < count <= 12


def test_no_command_is_without_a_class() -> None:
    """Those of `list` take no options but --json and --metrics-file."""
    root: Any = typer.main.get_command(app)
    names = [name for name in root.commands if name not in ("list", "skills")]
    names += [f"skills {name}" for name in root.commands["skills"].commands]
    assert sorted(names) == sorted(COMMANDS)
    for name, options in COMMANDS.items():
        command = root.commands["skills"].commands[name[7:]] if name.startswith("skills ") else root.commands[name]
        own = {each.name for each in command.params}
        declared = {each.name for each in options_in(options).values() if not each.option.python_only}
        assert declared <= own
        assert own - declared <= {"as_json", "dry_run", "numbers", "print_example", "help"}


def test_what_score_records_is_in_its_manifest(tmp_path: Path) -> None:
    """Every option is recorded by itself, or where it says that it is, or harmless; a change of one changes the manifest."""
    (tmp_path / "c.jsonl").write_text('{"text": "Some words. And more of them."}\n')
    student, out = ROOT / "data/models/student", tmp_path / "s"
    ts.score(tmp_path / "c.jsonl", student, out, engine="hf", teacher=ROOT / "data/models/teacher")
    recorded = ts.read_manifest(out).settings
    for name, each in options_in(ScoreOptions).items():
        if not each.option.changes_numbers:
            assert each.option.harmless or each.option.writes
            continue
        place: Any = recorded
        path = each.option.recorded_by or each.option.recorded_as or name
        for step in path.split("."):
            if each.option.recorded_by and path.startswith("student.") and step not in place:
                assert name in OTHER_ENGINES, f"{name}: no {path} in the manifest"
                break
            assert step in place, f"{name}: no {path} in the manifest"
            place = place[step]
    changes: dict[str, Any] = {"limit": 1, "id_field": "text", "unconditional": True, "storage": "float16"}
    for name, value in changes.items():
        changed: dict[str, Any] = {"teacher": ROOT / "data/models/teacher", name: value}
        with pytest.raises(UsageError, match="settings"):
            ts.score(tmp_path / "c.jsonl", student, out, engine="hf", **changed)


OTHER_ENGINES = frozenset(
    {"quantization", "engine_args", "tensor_parallel_size", "base_url", "served_model", "server_topk"}
)
"""Options of engines that did not run here, which record them: see `describe` of vLLM's and of the server's."""


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom trajscore.cli import app\n"
        "for words in (['-h'], ['score', '-h'], ['select', '-h']):\n"
        "    try: app(words, standalone_mode=False)\n    except SystemExit: pass\n"
        "print(sorted({'numpy', 'polars', 'pyarrow', 'torch', 'jinja2', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_shells_complete() -> None:
    def completed(words: str) -> str:
        env = {
            "_TRAJSCORE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        return CliRunner().invoke(app, [], prog_name="trajscore", env=env).stdout

    assert "--per-prompt" in completed("trajscore select --per")
    assert "truncate" in completed("trajscore score --on-overlong tr")
    assert "select" in completed("trajscore sel")
    assert "rsr_filtered" in completed("trajscore select --metric rsr_")
    assert "rsr-correct" in completed("trajscore select --preset rsr")
    assert "soft_or" in completed("trajscore mask --rule soft")
    assert "llamafactory" in completed("trajscore export --to lla")
