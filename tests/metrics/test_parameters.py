"""Parameters of metrics and rules, and metrics without a direction: what is typed, what is refused, what stands in outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import trajscore as ts
import trajscore.metrics as tm
from tests.helpers.score_tables import random_rows, with_every_column, write_folder
from trajscore.cli import app
from trajscore.errors import UsageError
from trajscore.masking.rules import RULES, RuleSettings
from trajscore.metrics import METRICS
from trajscore.options import Parameter, named_with, parse_named


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("parameters") / "s", with_every_column(random_rows(40, seed=2)), part_rows=9
    )


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("rsr", ("rsr", None, {})),
        ("rsr:2", ("rsr", 2.0, {})),
        ("rsr:-0.5,r_max=500", ("rsr", -0.5, {"r_max": "500"})),
        (" rsr , r_max = 500 ", ("rsr", None, {"r_max": "500"})),
        ("a[b=1,c=x]", ("a", None, {"b": "1", "c": "x"})),
        ("a[b=1]:3", ("a", 3.0, {"b": "1"})),
        ("jsd:0.1", ("jsd", 0.1, {})),
    ],
)
def test_names_are_read(text: str, read: tuple[str, float | None, dict[str, str]]) -> None:
    named = parse_named("--metric", text)
    assert (named.name, named.number, dict(named.given)) == read


@pytest.mark.parametrize(
    "text", ["", ",a=1", "rsr,", "rsr,r_max", "rsr,=5", "rsr,a=", "rsr,a=1,a=2", "rsr:x", "rsr:nan", "a[b"]
)
def test_names_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_named("--metric", text)
    assert caught.value.hint
    assert "--metric" in caught.value.problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rsr,rmax=500", "r_max"),
        ("rsr,r_max=0", "at least 1"),
        ("rsr,r_max=1.5", "whole number"),
        ("rsr,r_max=lots", "whole number"),
        ("surprisal,r_max=5", "takes none"),
        ("rsr_filtered,top_percent=101", "between 1 and 100"),
    ],
)
def test_parameters_that_are_wrong(scores: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ts.select(scores, text)
    assert caught.value.exit_code == 2


def test_other_than_default_parameters_name_the_column(scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.parquet"
    names = ["rsr,r_max=5", "rsr,r_max=100"]
    kept = ts.select(scores, names, where='"rsr[r_max=5]" < 8', top=9, out=out)
    table = pl.read_parquet(out)
    assert kept.options.metrics == ("rsr[r_max=5]", "rsr")
    frame = (
        ts.scan(scores).filter(pl.col("id").is_in(table["id"].implode())).select(tm.rsr(r_max=5), tm.rsr()).collect()
    )
    assert frame.columns == ["rsr[r_max=5]", "rsr"]
    for name in frame.columns:
        assert table[name].to_list() == frame[name].to_list()
    assert table["rsr[r_max=5]"].max() < 8  # type: ignore[operator]
    assert orjson.loads(pq.read_schema(out).metadata[b"trajscore.selection"])["given"]["metric"] == names
    assert list(ts.report(scores, metrics=["rsr,r_max=5"]).ranking.lines[0].metrics) == ["rsr[r_max=5]"]  # type: ignore[union-attr]
    ts.select(scores, names, top=9, out=tmp_path / "kept.jsonl")
    assert all("rsr[r_max=5]" in ts.diff(each, out).to_dict()["metrics"] for each in (out, tmp_path / "kept.jsonl"))
    # The default spelt out is the default.
    assert METRICS["rsr"].given(r_max=100) is METRICS["rsr"]


def test_parameters_of_a_rule_are_recorded_and_change_what_is_kept(scores: Path) -> None:
    entropy = [0.0] * 99 + [1.0]
    row: dict[str, Any] = {"id": ["a"], "prompt_id": ["p"], "status": ["ok"], "input_ids": [list(range(101))]}
    row |= {"positions": [list(range(1, 101))], "student_entropy": [[float(n) for n in range(100)]]}
    rows = pl.LazyFrame(row | {"kl_student_teacher": [entropy]})
    clipped, whole = (ts.mask(rows, rule, keep=0.01) for rule in ("soft_or", "soft_or,clip=1"))
    assert clipped.ranges["student_entropy"].high == pytest.approx(0.98 * 99)
    assert whole.ranges["student_entropy"].high == 99
    assert whole.to_dict()["options"] == {"clip": 1.0}
    flags, text = ts.mask(scores, "surprisal_band", low=0.25), ts.mask(scores, "surprisal_band,low=0.25")
    assert flags.to_dict() == text.to_dict()
    with pytest.raises(UsageError, match="--low and low"):
        ts.mask(scores, "surprisal_band,low=0.25", low=0.25)
    assert RuleSettings("opd_reward", given={"signed": "false", "decay": "0.5"}).options["signed"] is False
    with pytest.raises(UsageError, match="not true or false"):
        RuleSettings("opd_reward", given={"signed": "maybe"})
    with pytest.raises(UsageError, match="no weight"):
        ts.mask(scores, "surprisal_band:2,low=0.25")


@pytest.mark.parametrize("named", [*METRICS.values(), *RULES.values()], ids=lambda each: each.name)
def test_defaults_are_within_their_own_limits(named: Any) -> None:
    for each in named.parameters:
        assert each.default is None or each.checked(named.name, each.default) == each.default
        assert named_with(named.name, [each], {each.name: each.default}) == named.name
    assert Parameter("x", 1, "a number").sentence == "x: a number (default 1)."


UNDIRECTED = [name for name, metric in METRICS.items() if metric.direction is None]


@pytest.mark.parametrize("name", UNDIRECTED)
def test_a_metric_without_a_direction_ranks_only_as_told(scores: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--order"):
        ts.select(scores, name, top=3)
    with pytest.raises(UsageError, match=f"{name}:-1"):
        ts.select(scores, [name, "rsr"], combine="rank", top=3)
    ends = [ts.select(scores, name, order=order, top=3).decisions for order in ("asc", "desc")]
    low, high = (each.filter("kept")[name].to_list() for each in ends)
    assert max(low) <= min(high)
    signs = [ts.select(scores, [f"{name}:{sign}", "length:1e-9"], combine="rank", top=3).decisions for sign in (-1, 1)]
    assert [set(each.filter("kept")[name]) for each in signs] == [set(low), set(high)]
    # Beside a metric that ranks it is computed and written.
    assert ts.select(scores, ["rsr", name], top=3).after[name] is not None


def test_a_report_ranks_nothing_by_a_metric_without_a_direction(scores: Path) -> None:
    report = ts.report(scores, metrics=["js", "entropy"])
    ranking = report.ranking
    assert ranking is not None
    assert ranking.unranked
    assert [line.teacher for line in ranking.lines] == sorted(line.teacher for line in ranking.lines)
    assert all(line.probability_best is None for line in ranking.lines)
    assert ranking.comparison.leader is None
    assert ranking.comparison.values["A"] is not None
    assert "no direction" in report.students[0].recommendation.sentence
    # The first that has one ranks.
    assert ts.report(scores, metrics=["js", "length"]).options.primary == "length"
    with pytest.raises(UsageError, match="no direction"):
        ts.report(scores, metrics=["js"], plan=True)
    with pytest.raises(UsageError, match="no direction"):
        ts.inspect(scores, worst=1, metric="js")


def test_the_command_line_and_recipes_take_them(scores: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"select:\n  scores: {scores}\n  metric: rsr,r_max=5\n  top: 3\n  out: kept.jsonl\n"
        f"mask:\n  scores: {scores}\n  rule: surprisal_band,low=0.25\n  out: masked.jsonl\n",
        "utf-8",
    )
    by_flags = ["select", scores, "--metric", "rsr,r_max=5", "--top", "3", "--out", tmp_path / "flags.jsonl"]
    for arguments in (["run", recipe], by_flags):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
    kept = (tmp_path / "kept.jsonl").read_text("utf-8")
    assert kept == (tmp_path / "flags.jsonl").read_text("utf-8")
    assert kept.count('"rsr[r_max=5]"') == 3
    assert (tmp_path / "masked.jsonl").read_text("utf-8").count("\n") == 3
