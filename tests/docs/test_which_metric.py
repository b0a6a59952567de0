"""The page "Which metric should I use?" has every metric, and what is stored for it agrees with other records."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from typing import Any

import polars as pl
import pytest

import trajscore as ts
from benchmarks.which_metric import tables
from tests.helpers.paths import ROOT
from trajscore.metrics import METRICS

PAGE = (ROOT / "docs" / "guides" / "which-metric.md").read_text("utf-8")


def test_every_metric_has_its_row_of_assumptions() -> None:
    section = PAGE.partition("## What each assumes")[2].partition("\n## ")[0]
    heads = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    named = [name.strip("`| ") for head in heads for name in head.split(", ")]
    assert sorted(named) == sorted(METRICS)
    for line in section.splitlines():
        if line.startswith("| `"):
            assert line.count(" | ") == 3, line


def test_the_real_record_is_that_of_the_first_prompts_of_the_experiments_pool() -> None:
    """Rows and right answers exactly, from stored texts; metrics near those of the whole pool: 16 of 60 prompts differ from
    all by half the width of its intervals, as a standard deviation, so that twice the width is four of them.
    """
    pytest.importorskip("torch", reason="the pool is made beside the student's own samples")
    from benchmarks.evidence import design, pools
    from benchmarks.evidence.words import problems

    pool = json.loads((ROOT / "benchmarks" / "evidence" / "stored" / "seed-0" / "pool.json").read_text("utf-8"))
    texts = pools.lines(problems(design.PROMPTS, 0, "train"), pool["rollouts"], 0)
    assert hashlib.sha256(texts.encode()).hexdigest() == pool["rows_sha256"]
    read = [json.loads(line) for line in tables.first(tables.PROMPTS, texts).splitlines()]
    assert len({row["prompt_id"] for row in read}) == tables.PROMPTS
    real = tables.stored("real")
    assert real["rows"] == len(read)
    compared = 0
    for teacher, own in pool["teachers"].items():
        right = [row["correct"] for row in read if row["teacher"] == teacher]
        assert real["correct"][teacher] == sum(right) / len(right)
        for name in ("rsr", "surprisal", "rank", "entropy", "length"):
            value, low, high = own["metrics"][name]
            assert abs(real["metrics"][name]["teachers"][teacher] - value) <= 2 * (high - low), (teacher, name)
            compared += 1
    assert compared == 60


def test_best_and_published_by_hand() -> None:
    own = {"direction": "lower", "teachers": {"A": 2.0, "B": 1.0, "C": None}}
    assert tables._best(own) == "B"
    assert tables._best({**own, "direction": "higher"}) == "A"
    assert tables._best({**own, "direction": None}) is None
    assert tables._best({**own, "teachers": {"A": 1.0, "B": 1.0}}) is None
    published = {row[0]: row[1:] for row in tables.published_rows()}
    # Printed by the source with three decimals: 0.855, 0.845, 0.918, 0.818, 0.845, of values that it rounds.
    assert [float(each) for each in published["`rsr`"]] == pytest.approx([-0.856, -0.918, -0.818], abs=0.035)


def _record(**pairs: float | None) -> dict[str, Any]:
    """Agreement of metrics that are named in pairs, `rsr__rank=0.9`."""
    names = sorted({name for pair in pairs for name in pair.split("__")}, key=list(METRICS).index)
    agreement: dict[str, dict[str, float | None]] = {name: {} for name in names}
    for pair, value in pairs.items():
        one, other = pair.split("__")
        agreement[one][other] = value
    return {"metrics": {name: {"value": 1.0} for name in names}, "agreement": agreement}


def test_groups_of_metrics_that_are_nearly_alike_by_hand() -> None:
    """A chain makes no group: of rank, which is near both, only the nearer neighbour is in one with it."""
    chain = _record(
        rsr__surprisal=0.5, rsr__rank=-0.96, surprisal__rank=0.97, rsr__loop=None, surprisal__loop=None, rank__loop=None
    )
    assert tables.alike(chain) == [["surprisal", "rank"]]
    whole = _record(rsr__surprisal=0.96, rsr__rank=-0.96, surprisal__rank=0.97)
    assert tables.alike(whole) == [["rsr", "surprisal", "rank"]]
    assert tables.alike(chain, whole) == [["surprisal", "rank"]]
    assert tables.compared(chain) == ["rsr", "surprisal", "rank"]
    assert tables.matrix(whole).splitlines() == [
        "metric,rsr,surprisal,rank", "rsr,1.00,0.96,-0.96", "surprisal,0.96,1.00,0.97", "rank,-0.96,0.97,1.00"
    ]  # fmt: skip


def test_agreement_is_between_the_better_ends() -> None:
    """Of four rows the longer one is the less surprising, but for the last two: both ways that is the better end."""
    rows: dict[str, Any] = {
        "id": list("abcd"),
        "prompt_id": list("pqrs"),
        "status": ["ok"] * 4,
        "teacher": list("ABAB"),
    }
    rows |= {"correct": [True, False, True, False], "n_tokens": [1, 2, 3, 4], "student_rank": [[1], [1], [1], [1]]}
    found = tables.measured(pl.LazyFrame(rows | {"student_surprisal": [[4.0], [3.0], [1.0], [2.0]]}))
    # Ranks 1 2 3 4 and 1 2 4 3: 1 - 6 (0 + 0 + 1 + 1) / (4 * 15).
    assert tables.over_rows(found, "length", "surprisal") == tables.over_rows(found, "surprisal", "length") == 0.8
    assert tables.over_rows(found, "rsr", "surprisal") == -1.0
    assert tables.over_rows(found, "length", "length") == 1
    assert tables.over_rows(found, "length", "rank") is None
    assert found["metrics"]["length"]["with_correct"] == pytest.approx(-1 / math.sqrt(5), abs=1e-6)


@pytest.mark.parametrize("name", ["world", "real"])
def test_records_hold_every_two_metrics_once(name: str) -> None:
    record = tables.stored(name)
    names = list(record["agreement"])
    assert set(names) == set(record["metrics"])
    for number, one in enumerate(names):
        assert list(record["agreement"][one]) == names[number + 1 :]
        assert all(value is None or -1 <= value <= 1 for value in record["agreement"][one].values())


@pytest.mark.slow
def test_the_record_of_the_world_is_what_the_world_gives() -> None:
    pytest.importorskip("transformers", reason="the rows are scored")
    world = tables.stored("world")
    with tempfile.TemporaryDirectory() as folder:
        models = ROOT / "data" / "models"
        ts.score(
            ROOT / "data" / "trajectories.jsonl",
            str(models / "student"),
            folder,
            teacher=str(models / "teacher"),
            extra=["collision", "tv"],
            unconditional=True,
            engine="hf",
        )
        again = tables.measured(folder)
    assert set(again["metrics"]) < set(world["metrics"])
    for name, own in again["metrics"].items():
        stored = world["metrics"][name]
        assert own["value"] == pytest.approx(stored["value"], rel=1e-3, abs=1e-9)
        assert own["over_teachers"] == pytest.approx(stored["over_teachers"], abs=0.01)
        for other in again["metrics"]:
            assert tables.over_rows(again, name, other) == pytest.approx(tables.over_rows(world, name, other), abs=0.01)
