"""The commands `select`, `report` and `list`: exit codes, purity of stdout, width, markup, and what is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.helpers.score_tables import random_rows, trajectory, with_every_column, write_folder
from tests.helpers.stopped_runs import HANGS
from trajscore import __version__
from trajscore.cli import app
from trajscore.masking.presets import MASK_PRESETS
from trajscore.metrics import METRICS
from trajscore.selection.presets import PRESETS

runner = CliRunner()
MARKUP = "[bold]x[/nope] \x1b[2J"


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    rows = random_rows(60, seed=9, teachers=["A", MARKUP, "a-teacher-with/a-very-long-name-of-its-own-v1.5"])
    return write_folder(tmp_path / "scores", with_every_column(rows))


def _run(*arguments: str | Path) -> Any:
    return runner.invoke(app, [str(argument) for argument in arguments], prog_name="trajscore")


def test_select_writes_and_prints_the_accounting(scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.jsonl"
    result = _run("select", scores, "--metric", "rsr", "--metric", "length", "--per-prompt", "1", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "60 rows in = " in result.stdout
    assert "the prompt has better ones" in result.stdout
    assert len(out.read_text().splitlines()) > 5


def test_select_json_is_one_object_and_nothing_else(scores: Path, tmp_path: Path) -> None:
    decisions = tmp_path / "d.csv"
    result = _run("select", scores, "--where", "rsr < 0", "--decisions", decisions, "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["rows_in"] == 60 == summary["rows_kept"] + summary["rows_dropped"]
    assert summary["options"]["metrics"] == ["rsr"]
    assert summary["out"] is None
    assert "no row was kept" in result.stderr


def test_all_options_reach_the_function(scores: Path) -> None:
    flags = ["--fraction", "0.5", "--where", "n_tokens > 1", "--prefer", "correct", "--seed", "5"]
    flags += ["--metric", "surprisal:2", "--metric", "length:-1", "--combine", "zscore", "--combine-within", "prompt"]
    flags += ["--quota", "teacher=0.9", "--weight", "softmax", "--weight-within", "prompt", "--temperature", "0.5"]
    result = _run("select", scores, "--per-prompt", "3", *flags, "--weight-column", "rate", "--json")
    assert result.exit_code == 0, result.stderr
    options = json.loads(result.stdout)["options"]
    assert options == {
        "metrics": ["surprisal", "length"],
        "metric_weights": [2.0, -1.0],
        "combine": "zscore",
        "combine_within": "prompt",
        "per_prompt": 3,
        "top": None,
        "fraction": 0.5,
        "max_tokens": None,
        "quotas": [{"column": "teacher", "value": None, "limit": 0.9, "text": "teacher=0.9"}],
        "where": "n_tokens > 1",
        "prefer": "correct",
        "order": None,
        "weight": "softmax",
        "weight_within": "prompt",
        "temperature": 0.5,
        "weight_column": "rate",
        "seed": 5,
        "preset": None,
        "stat": None,
    }
    ordered = json.loads(_run("select", scores, "--order", "desc", "--top", "2", "--json").stdout)["options"]
    assert (ordered["order"], ordered["top"], ordered["metrics"]) == ("desc", 2, ["rsr"])


def test_preset_and_explanation(scores: Path) -> None:
    result = _run("select", scores, "--preset", "rsr-33-to-1", "--explain", "id-0001", "--json")
    assert "--metric rsr --per-prompt 1" in " ".join(result.stderr.split())
    told = json.loads(result.stdout)["explanation"]
    assert told["id"] == "id-0001"
    shown = _run("select", scores, "--preset", "rsr-33-to-1", "--explain", "id-0001")
    assert shown.exit_code == 0
    assert told["reason"][:20] in shown.stdout
    assert "> id-0001" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert json.loads(_run("select", scores, "--json").stdout)["explanation"] is None


def test_explanations_show_hostile_text_as_text(tmp_path: Path) -> None:
    rows = [trajectory(n, [n + 1], [1.0], id=f"{MARKUP}{n}", prompt_id=MARKUP, teacher=MARKUP) for n in range(30)]
    folder = write_folder(tmp_path / "s", rows)
    result = _run("select", folder, "--top", "3", "--quota", "teacher=2", "--explain", f"{MARKUP}25")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert f"> {MARKUP.split(chr(27), maxsplit=1)[0]}" in result.stdout
    assert "more; --json has all" in result.stdout
    wrong = _run("select", folder, "--explain", f"{MARKUP}99")
    assert wrong.exit_code == 2
    assert "\x1b" not in wrong.stderr


def test_list_presets() -> None:
    result = _run("list", "presets")
    assert result.exit_code == 0
    listed = json.loads(_run("list", "presets", "--json").stdout)["presets"]
    assert [each["name"] for each in listed] == [*PRESETS, *MASK_PRESETS]
    for each in listed:
        assert f"{each['name']}  ({each['command']})" in result.stdout
        assert each["flags"].startswith({"select": "--metric ", "mask": "--rule "}[each["command"]])


def test_report_json_and_table(scores: Path, tmp_path: Path) -> None:
    performance = tmp_path / "p.csv"
    performance.write_text("student,teacher,score\ns,A,1\n")
    result = _run("report", scores, "--performance", performance, "--replicates", "20", "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert {line["teacher"] for line in summary["students"][0]["ranking"]["lines"]} >= {"A", MARKUP}
    assert summary["correlations"][0]["spearman"] is None
    result = _run("report", scores, "--performance", performance, "--replicates", "20")
    assert result.exit_code == 0, result.stderr
    assert "[bold]x[/nope]" in result.stdout
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert summary["metrics"].keys() >= {"rsr", "length", "phase_entropy"}
    named = [name for name in summary["metrics"] if name in result.stdout]
    assert named[:20] == list(summary["metrics"])[:20]
    assert f"... and {len(summary['metrics']) - 20} more metrics: --out or --tidy has all" in result.stdout


def test_report_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("student,teacher,length,rsr\ns,A,1,4\ns,B,4,3\ns,C,2,2\ns,D,3,1\n")
    (tmp_path / "p.csv").write_text("student,teacher,score\ns,A,1\ns,B,2\ns,C,3\ns,D,4\n")
    result = _run("report", "--table", tmp_path / "v.csv", "--performance", tmp_path / "p.csv")
    assert result.exit_code == 0, result.stderr
    assert "-1.000" in result.stdout
    assert "+1.000" in result.stdout
    assert "rsr predicts best here" in result.stdout
    first = [line.partition(" ")[0] for line in result.stdout.splitlines()]
    assert first.index("rsr") < first.index("length"), "the best predictor first, whatever the columns' order"


def test_list_metrics() -> None:
    result = _run("list", "metrics")
    assert result.exit_code == 0
    for metric in METRICS.values():
        assert f"{metric.name}  ({metric.better}" in result.stdout
    listed = json.loads(_run("list", "metrics", "--json").stdout)["metrics"]
    assert [each["name"] for each in listed] == list(METRICS)
    assert set(listed[0]) == {"name", "kind", "direction", "unit", "columns", "parameters", "source", "meaning"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["select", "nowhere"],
        ["select", "SCORES", "--metric", "rrs"],
        ["select", "SCORES", "--top", "1", "--fraction", "0.5"],
        ["select", "SCORES", "--top", "many"],
        ["select", "SCORES", "--where", "rsr <"],
        ["select", "SCORES", "--out", "kept.txt"],
        ["select", "SCORES", "--where", "rsr < AVG(rsr)"],
        ["select", "SCORES", "--preset", "rsr-correctt"],
        ["select", "SCORES", "--quota", "teacher"],
        ["select", "SCORES", "--explain", "nobody"],
        ["select"],
        ["report"],
        ["report", "SCORES", "--confidence", "2"],
        ["nonsense"],
        ["select", "SCORES", "--nonsense"],
    ],
)
def test_wrong_usage_is_exit_2_with_a_message_on_stderr(scores: Path, arguments: list[str]) -> None:
    result = _run(*[str(scores) if each == "SCORES" else each for each in arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "rror: " in result.stderr
    assert "Traceback" not in result.stderr


def test_damaged_data_is_exit_1(scores: Path) -> None:
    (scores / "part-00002.parquet").write_bytes(b"PAR1 no")
    result = _run("select", scores)
    assert result.exit_code == 1
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr


def test_interrupt_is_exit_130(scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trajscore.selection.select.select", interrupted)
    result = _run("select", scores)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_version_and_help() -> None:
    assert _run("--version").stdout == f"trajscore {__version__}\n"
    for command in ("select", "report", "list"):
        assert command in _run("--help").stdout
    for word in ("Default", "--max-tokens", "tokens"):
        assert word in _run("select", "--help").stdout


def _process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trajscore", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=HANGS
    )


def test_no_color_and_exit_code_of_the_process(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", [trajectory(n, [2], [1.0]) for n in range(3)])
    done = _process("report", str(folder), "--metric", "rsr", NO_COLOR="1", FORCE_COLOR="1")
    assert done.returncode == 0
    assert not re.search(r"\x1b\[[0-9;]*([349][0-7]|[34]8;[0-9;]*)m", done.stdout)
    assert _process("select", "nowhere").returncode == 2


def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = f"{sys.executable} -m trajscore list metrics | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=HANGS)
    assert done.stderr == ""


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, trajscore.cli\n"
        "light = {'torch', 'vllm', 'transformers', 'datasets', 'polars', 'pyarrow'} & set(sys.modules)\n"
        "import trajscore.selection.select, trajscore.ranking.report, trajscore.ranking.terminal\n"
        "heavy = {'torch', 'vllm', 'transformers', 'datasets'} & set(sys.modules)\n"
        "print(sorted(light), sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANGS)
    assert done.stdout.strip() == "[] []"
