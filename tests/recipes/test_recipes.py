"""Recipes: what runs, what is skipped, and that no file, however odd, ends in a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.paths import ROOT
from tests.helpers.score_tables import random_rows, write_folder
from trajscore.cli import app
from trajscore.errors import UsageError
from trajscore.recipes.options import EXAMPLE, STEPS
from trajscore.recipes.reading import read_recipe


def _run(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(app, ["run", *map(str, arguments)], prog_name="trajscore")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def _recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with scores, and a recipe that selects and reports."""
    write_folder(tmp_path / "scores", random_rows(30, seed=5))
    _recipe(
        tmp_path,
        "select:\n  scores: scores\n  metric: rsr\n  top: 5\n  out: kept.jsonl\n"
        "report:\n  scores: scores\n  replicates: 20\n  out: ranking.html\n",
    )
    return tmp_path


def _statuses(path: Path, *arguments: str) -> dict[str, str]:
    result = _run(path, "--json", *arguments)
    assert result.exit_code == 0, result.stderr
    return {step["step"]: step["status"] for step in json.loads(result.stdout)["steps"]}


class TestRunning:
    def test_the_printed_example_runs_on_the_repositorys_data(self, tmp_path: Path) -> None:
        """Whole, over fewer rows; then again, when everything is skipped."""
        (tmp_path / "data").symlink_to(ROOT / "data")
        printed = _run("--print-example")
        assert (printed.exit_code, printed.stdout) == (0, EXAMPLE)
        path = _recipe(tmp_path, printed.stdout.replace("\nselect:", "  limit: 60\n  engine: hf\n\nselect:"))
        assert set(_statuses(path, "--dry-run").values()) == {"would run"}
        assert not (tmp_path / "recipe-output").exists()
        assert _statuses(path) == dict.fromkeys(STEPS, "ran")
        kept = pl.read_parquet(tmp_path / "recipe-output/selected.parquet")
        assert kept["prompt_id"].is_unique().all()
        assert pl.read_parquet(tmp_path / "recipe-output/masked.parquet").height == kept.height
        assert (tmp_path / "recipe-output/trl/README.md").is_file()
        assert (tmp_path / "recipe-output/ranking.html").stat().st_size > 10_000
        assert _statuses(path) == dict.fromkeys(STEPS, "skipped")

    def test_skipped_is_what_is_the_same(self, folder: Path) -> None:
        path = folder / "recipe.yaml"
        assert _statuses(path) == {"select": "ran", "report": "ran"}
        assert len((folder / "kept.jsonl").read_text().splitlines()) == 5
        assert _statuses(path) == {"select": "skipped", "report": "skipped"}
        path.write_text(path.read_text().replace("top: 5", "top: 6"))
        assert _statuses(path, "--dry-run") == {"select": "would run", "report": "would be skipped"}
        assert len((folder / "kept.jsonl").read_text().splitlines()) == 5
        assert _statuses(path) == {"select": "ran", "report": "skipped"}
        assert len((folder / "kept.jsonl").read_text().splitlines()) == 6

    def test_a_changed_or_missing_file_makes_a_step_run(self, folder: Path) -> None:
        path = folder / "recipe.yaml"
        _statuses(path)
        (folder / "kept.jsonl").unlink()
        assert _statuses(path) == {"select": "ran", "report": "skipped"}
        (folder / "kept.jsonl").write_text("{}\n")
        assert _statuses(path) == {"select": "ran", "report": "skipped"}
        write_folder(folder / "other", random_rows(30, seed=6))
        (folder / "scores").rename(folder / "aside")
        (folder / "other").rename(folder / "scores")
        assert _statuses(path) == {"select": "ran", "report": "ran"}
        (folder / "kept.jsonl.recipe.json").write_text("[broken")
        assert _statuses(path) == {"select": "ran", "report": "skipped"}

    def test_paths_begin_at_the_recipe(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "elsewhere").mkdir()
        monkeypatch.chdir(folder / "elsewhere")
        assert _statuses(Path("../recipe.yaml")) == {"select": "ran", "report": "ran"}
        assert (folder / "kept.jsonl").is_file()
        assert list((folder / "elsewhere").iterdir()) == []
        assert Path.cwd() == folder / "elsewhere"

    def test_one_step_alone(self, folder: Path) -> None:
        assert _statuses(folder / "recipe.yaml", "--only", "report") == {"report": "ran"}
        assert not (folder / "kept.jsonl").exists()
        result = _run(folder / "recipe.yaml", "--only", "mask")
        assert result.exit_code == 2
        assert "--only mask" in result.stderr
        assert "It has select, report" in result.stderr

    def test_too_many_refused_rows_end_the_run(self, tmp_path: Path) -> None:
        (tmp_path / "c.jsonl").write_text('{"text": "Some words here."}\n{"nothing": 1}\n')
        student = ROOT / "data/models/student"
        path = _recipe(
            tmp_path,
            f"score:\n  data: c.jsonl\n  student: {student}\n  engine: hf\n  out: scores\nselect:\n  out: kept.jsonl\n",
        )
        for _ in range(2):  # a failed step is not taken for finished
            result = _run(path)
            assert result.exit_code == 3
            assert "score   failed: more rows were refused than max_refused 0.05 allows" in result.stdout
            assert "select  not run: score failed" in result.stdout
            assert not (tmp_path / "kept.jsonl").exists()

    def test_an_error_names_its_step(self, folder: Path) -> None:
        path = folder / "recipe.yaml"
        path.write_text(path.read_text().replace("metric: rsr", "metric: rrs"))
        result = _run(path)
        assert result.exit_code == 2
        assert "error: select: " in result.stderr
        assert "rsr" in result.stderr
        assert not (folder / "ranking.html").exists()

    def test_from_python(self, folder: Path) -> None:
        done = ts.run_recipe(folder / "recipe.yaml", only="select")
        (step,) = done.steps
        assert step.status == "ran"
        assert step.result is not None
        assert step.result["rows_kept"] == 5


class TestInputs:
    def test_steps_read_what_the_steps_before_them_write(self, tmp_path: Path) -> None:
        steps = read_recipe(_recipe(tmp_path, EXAMPLE)).steps
        found = {name: vars(step) for name, step in steps.items()}
        assert list(found) == list(STEPS)
        assert found["select"]["scores"] == found["report"]["scores"] == "recipe-output/scores"
        assert found["mask"]["selected"] == "recipe-output/selected.parquet"
        assert found["export"]["file"] == "recipe-output/masked.parquet"

    def test_without_a_mask_the_selection_is_exported(self, tmp_path: Path) -> None:
        text = "select: {scores: s, out: kept.jsonl}\nexport: {to: trl, out: trl}\n"
        assert vars(read_recipe(_recipe(tmp_path, text)).steps["export"])["file"] == "kept.jsonl"

    def test_an_input_that_is_named_wins(self, tmp_path: Path) -> None:
        text = "mask: {scores: s, rule: all, out: m.parquet}\nexport: {file: mine.jsonl, to: trl, out: trl}\n"
        assert vars(read_recipe(_recipe(tmp_path, text)).steps["export"])["file"] == "mine.jsonl"

    def test_flags_and_numbers_may_be_spelt_as_on_the_command_line(self, tmp_path: Path) -> None:
        text = "report: {scores: [s, t], metric: rsr, metrics-file: m.py, out: r.html, confidence: '0.5'}\n"
        values = vars(read_recipe(_recipe(tmp_path, text)).steps["report"])
        assert (values["metrics"], values["metrics_file"], values["confidence"]) == (("rsr",), "m.py", 0.5)


DEEP = "a: " + "[" * 3000 + "]" * 3000
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nselect: *b\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no step"]),
        ("- a\n", ["line 1", "no mapping"]),
        ("selct:\n  top: 1\n", ["line 1", "no step 'selct'", "select"]),
        ("select:\n  scores: s\n  tpo: 1\n", ["line 3", "select has no option 'tpo'", "top"]),
        ("select:\n  scores: s\n  top: many\n", ["line 3", "select, top", "many: a whole number is needed"]),
        ("select:\n  scores: s\n  top: 0\n", ["line 3", "0: must be at least 1"]),
        ("select:\n  scores: s\n  top: 1\n  top: 2\n", ["line 4", "'top' stands in line 3 already"]),
        ("select:\n  per-prompt: 1\n  per_prompt: 2\n", ["line 3", "'per_prompt' twice"]),
        ("select: {scores: s}\nselect: {scores: t}\n", ["line 2", "'select' stands in line 1"]),
        ("select:\n  out: k.jsonl\n", ["line 1, select", "no scores", "no step score before it"]),
        ("select:\n  scores: s\n", ["line 1, select: writes nothing", "out: FILE"]),
        ("select:\n  scores: s\n  out: k.jsonl\n  where: no\n", ["line 4", "False: text is needed"]),
        ("select:\n  scores: s\n  out: k.jsonl\n  where: 2024-01-01\n", ["line 4", "text is needed"]),
        ("select:\n  scores: 7\n  out: k.jsonl\n", ["line 2", "is no text"]),
        ("select:\n  scores: {a: b}\n  out: k.jsonl\n", ["line 2", "is no text"]),
        ("select:\n  ? [a, b]\n  : 1\n", ["line 2", "a key that is no name"]),
        (
            "mask:\n  scores: s\n  rule: all\n  scope: world\n  out: m.parquet\n",
            ["line 4", "world: not known", "trajectory"],
        ),
        ("score:\n  data: a\n  student: m\n  out: s\n  engine_args: {a: 1, a: 2}\n", ["line 5", "'a' stands"]),
        ("score:\n  data: a\n  student: m\n  out: s\n  seed:\n", ["line 5", "no option 'seed'"]),
        ("score:\n  data: a\n  student: m\n  out: s\n  part_rows:\n", ["line 5", "no value"]),
        (
            "score:\n  data: a\n  student: m\n  out: s\n  shard: 0/2\n  ray: auto\n",
            ["line 1, score", "--shard and --ray"],
        ),
        ("select:\n  scores: s\n  out: k.jsonl\n  seed: 1%s\n" % ("0" * 30), ["line 4", "must fit into 64 bits"]),
        ('select:\n  scores: s\n  out: k.jsonl\n  where: "\\ud800"\n', ["line 4", "no text"]),
        ('select:\n  scores: "s\\0"\n  out: k.jsonl\n', ["line 2", "no text"]),
        ("select: [1\n", ["line 2", "not YAML"]),
        ("a: b: c\n", ["line 1", "not YAML"]),
        ("select: {}\n---\nselect: {}\n", ["not YAML"]),
        ("select:\n\tscores: s\n", ["line 2", "not YAML"]),
        (BOMB, ["line 1", "anchors and aliases"]),
        ("select: !!python/object/apply:os.system ['true']\n", ["line 1", "tag"]),
        (DEEP, ["more than 12 levels"]),
        ("select: \x00\n", ["not YAML"]),
    ],
    ids=range(32),
)
def test_what_is_wrong_is_said_with_its_line(text: str, words: list[str], tmp_path: Path) -> None:
    path = _recipe(tmp_path, text)
    result = _run(path)
    assert result.exit_code == 2, result.output
    assert f"error: {path}" in result.stderr
    for word in words:
        assert word in result.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["recipe.yaml"]


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (2**20 + 1))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00select")
    for path, words in ((large, "larger than 1,048,576 bytes"), (binary, "not UTF-8"), (tmp_path, "cannot be read")):
        result = _run(path)
        assert result.exit_code == 2
        assert words in result.stderr
    missing = _run(tmp_path / "no.yaml")
    assert missing.exit_code == 2
    assert "--print-example" in missing.stderr


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from(["scores", "metric", "top", "out", "where", "keep", "rule", "seed", "quota", "nope"])


@settings(max_examples=60, deadline=None)
@given(steps=st.dictionaries(st.sampled_from([*STEPS, "x"]), st.dictionaries(_NAMES, _VALUES, max_size=4) | _VALUES))
def test_any_values_are_options_or_an_error(steps: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = _recipe(tmp_path_factory.mktemp("r"), yaml.safe_dump(steps, allow_unicode=True))
    try:
        found = read_recipe(path).steps
    except UsageError as error:
        found, problem = {}, error.problem
    else:
        problem = str(path)
    assert set(found) <= set(STEPS)
    assert str(path) in problem


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="abc:[]{}-#&*!|>'\"\n\t ?,%@`\\0", max_size=60))
def test_any_text_is_a_recipe_or_an_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = _recipe(tmp_path_factory.mktemp("r"), text)
    with pytest.raises(UsageError):
        read_recipe(path)
