"""The page "Which metric should I use?" has every metric, and what is stored for it agrees with other records."""

from __future__ import annotations

import json
import tempfile

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


def test_the_real_record_agrees_with_the_pool_of_the_experiment() -> None:
    pool = json.loads((ROOT / "benchmarks" / "evidence" / "stored" / "seed-0" / "pool.json").read_text("utf-8"))
    real = tables.stored("real")
    assert real["rows"] == pool["totals"]["scored"]
    compared = 0
    for teacher, own in pool["teachers"].items():
        assert real["correct"][teacher] == pytest.approx(own["share_correct"], abs=1e-5)
        for name, (value, *_) in own["metrics"].items():
            if value is not None:
                assert real["metrics"][name]["teachers"][teacher] == pytest.approx(value, abs=2e-4, rel=1e-4)
                compared += 1
    assert compared > 100


def test_best_and_published_by_hand() -> None:
    own = {"direction": "lower", "teachers": {"A": 2.0, "B": 1.0, "C": None}}
    assert tables._best(own) == "B"
    assert tables._best({**own, "direction": "higher"}) == "A"
    assert tables._best({**own, "direction": None}) is None
    assert tables._best({**own, "teachers": {"A": 1.0, "B": 1.0}}) is None
    published = {row[0]: row[1:] for row in tables.published_rows()}
    # Printed by the source with three decimals: 0.855, 0.845, 0.918, 0.818, 0.845, of values that it rounds.
    assert [float(each) for each in published["`rsr`"]] == pytest.approx([-0.856, -0.918, -0.818], abs=0.035)


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
        for what in ("over_rows", "over_teachers"):
            assert own[what] == pytest.approx(stored[what], abs=0.01)
