"""What the manual and the notebook show of the stored runs: rows of tables, made anew from whatever records there are.

Nothing here is typed in: with more records the same functions give narrower intervals. Accuracies are in percent of the
held-out problems, intervals hold the true value 95 times in 100, over seeds and problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.evidence import design, records
from benchmarks.evidence.estimates import Floats, Mean, crossed_mean, multiplier_interval, seed_mean
from trajscore.estimates.bootstrap import interval
from trajscore.estimates.correlation import resample, spearman

Record = Mapping[str, Any]
Runs = Mapping[str, Mapping[int, Record]]

BASELINE = f"random-{design.BUDGET}"
NOT_YET = "not yet"
RANDOM = {f"random-{budget}" for budget in design.RANDOM_BUDGETS}


class Stored(NamedTuple):
    """All that was stored: runs by arm and seed, pools by seed, and the student as it comes."""

    runs: dict[str, dict[int, Record]]
    pools: dict[int, Record]
    untouched: Record | None


def stored() -> Stored:
    """Read the records."""
    runs: dict[str, dict[int, Record]] = {}
    pools: dict[int, Record] = {}
    for record in records.read():
        if record["kind"] == "pool":
            pools[record["seed"]] = record
        else:
            runs.setdefault(record["arm"], {})[record["seed"]] = record
    return Stored(runs, pools, records.read_one(records.FOLDER / "untouched.json"))


def solved(by_seed: Mapping[int, Record], seeds: Sequence[int]) -> Floats:
    """1 where a seed's student solved a problem, else 0: [seeds, problems]."""
    return np.array([[int(each) for each in by_seed[seed]["results"]["solved"]] for seed in seeds], dtype=np.float64)


def share_solved(by_seed: Mapping[int, Record]) -> Mean:
    """The mean share that the students of an arm solve; its interval ends where shares do."""
    mean = crossed_mean(solved(by_seed, sorted(by_seed)))
    if mean.low is None or mean.high is None:
        return mean
    return mean._replace(low=max(0.0, mean.low), high=min(1.0, mean.high))


def mean_surprisal(record: Record) -> float:
    """The mean over the four styles of right solutions, nats."""
    values = record["results"]["surprisal"].values()
    return float(sum(values) / len(values))


def percent(mean: Mean, sign: str = "") -> str:
    """A mean in percent with its interval.

    >>> percent(Mean(0.25, 0.2, 0.3, 3)), percent(Mean(0.25, None, None, 1), "+")
    ('25.0 [20.0, 30.0]', '+25.0 (one seed)')
    """
    if mean.low is None or mean.high is None:
        return f"{100 * mean.value:{sign}.1f} (one seed)"
    return f"{100 * mean.value:{sign}.1f} [{100 * mean.low:{sign}.1f}, {100 * mean.high:{sign}.1f}]"


def _mean_of(by_seed: Mapping[int, Record], *keys: str) -> float:
    values = []
    for record in by_seed.values():
        value: Any = record
        for key in keys:
            value = value[key]
        values.append(value)
    return float(np.mean(values))


CORE_HEADS = (
    "policy", "seeds", "rows", "prompts", "labels", "right rows, %", "solved, %", "against random, points",
    "surprisal of right solutions, nats", "random needs, times the tokens",
)  # fmt: skip


def further(found: Stored) -> list[design.Arm]:
    """The policies beyond the core of which there is a run; single teachers have a table of their own."""
    return [arm for arm in design.MORE if not arm.name.startswith("teacher-") and found.runs.get(arm.name)]


def core_rows(found: Stored) -> list[tuple[str, ...]]:
    """One row per policy; what was not run says so."""
    rows: list[tuple[str, ...]] = []
    if found.untouched:
        share = 100 * found.untouched["results"]["accuracy"]
        nats = f"{mean_surprisal(found.untouched):.3f}"
        rows.append(("the student as it comes", "", "", "", "0", "", f"{share:.1f}", "", nats, ""))
    for arm in (*design.CORE, design.EVERYTHING, *further(found)):
        name = f"{arm.about}, {arm.budget} tokens" if arm.name in RANDOM else arm.about
        by_seed = found.runs.get(arm.name, {})
        if not by_seed:
            rows.append((name, "0", *[""] * 4, NOT_YET, "", "", ""))
            continue
        seeds = sorted(by_seed)
        chosen = [f"{_mean_of(by_seed, 'chosen', key):.0f}" for key in ("rows", "prompts")]
        labels = f"{_mean_of(by_seed, 'trained', 'labels'):.0f}"
        right = f"{100 * _mean_of(by_seed, 'chosen', 'share_correct'):.0f}"
        surprisal = seed_mean([mean_surprisal(by_seed[seed]) for seed in seeds])
        rows.append((
            name, str(len(seeds)), *chosen, labels, right, percent(share_solved(by_seed)),
            against(found, arm.name), f"{surprisal.value:.3f}", times(found, arm),
        ))  # fmt: skip
    return rows


def difference(found: Stored, arm: str, baseline: str = BASELINE) -> Mean | None:
    """How many more problems a policy's students solve than the baseline's of the same seeds; None without a seed of both."""
    ours, theirs = found.runs.get(arm, {}), found.runs.get(baseline, {})
    seeds = sorted(ours.keys() & theirs.keys())
    return crossed_mean(solved(ours, seeds) - solved(theirs, seeds)) if seeds else None


def against(found: Stored, arm: str) -> str:
    """The difference to random with the main budget as a cell."""
    if arm == BASELINE:
        return ""
    mean = difference(found, arm)
    return NOT_YET if mean is None else percent(mean, "+")


def times(found: Stored, arm: design.Arm) -> str:
    """The multiplier over random as a cell: read where random's curve was measured in all of its budgets, for seeds of all."""
    if arm.name in RANDOM or arm.budget is None:
        return ""
    curve = [(budget, found.runs.get(f"random-{budget}", {})) for budget in design.RANDOM_BUDGETS]
    ours = found.runs[arm.name]
    seeds = sorted(ours.keys() & set.intersection(*(set(each) for _, each in curve)))
    if not seeds:
        return NOT_YET
    measured = [(budget, solved(each, seeds)) for budget, each in curve]
    return multiplier_interval(solved(ours, seeds), measured, arm.budget).text


TEACHER_HEADS = (
    "teacher",
    "right, %",
    "RSR",
    "surprisal",
    "rank",
    "length",
    "solved after training on it alone, %",
    "seeds",
)


def teacher_rows(found: Stored) -> list[tuple[str, ...]]:
    """One row per teacher, lowest RSR first: what the untrained student makes of it, and what training on it alone gives."""
    rows = []
    for name in pool_teachers(found):
        alone = found.runs.get(f"teacher-{name}", {})
        cells = [f"{pool_value(found, name, metric):.2f}" for metric in ("rsr", "surprisal", "rank", "length")]
        right = f"{100 * share_correct(found, name):.0f}"
        after = percent(share_solved(alone)) if alone else NOT_YET
        rows.append((name, right, *cells, after, str(len(alone))))
    return rows


def pool_teachers(found: Stored) -> list[str]:
    """Everybody who wrote into a pool, lowest RSR first."""
    names = {name for pool in found.pools.values() for name in pool["teachers"]}
    return sorted(names, key=lambda name: pool_value(found, name, "rsr"))


def pool_value(found: Stored, teacher: str, metric: str) -> float:
    """A teacher's value of a metric, the mean over the pools in which it is defined; NaN where it is in none."""
    values = [
        pool["teachers"][teacher]["metrics"][metric][0] for pool in found.pools.values() if teacher in pool["teachers"]
    ]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def mean_accuracy(by_seed: Mapping[int, Record]) -> float:
    """The share of held-out problems that the students of an arm solve, the mean over seeds."""
    return _mean_of(by_seed, "results", "accuracy")


def share_correct(found: Stored, teacher: str) -> float:
    """The share of a teacher's rows with the right answer, the mean over pools."""
    return float(np.mean([pool["teachers"][teacher]["share_correct"] for pool in found.pools.values()]))


PREDICTION_HEADS = (
    "metric",
    "better",
    "teachers",
    "rank correlation with the accuracy after training",
    "90 % interval, over teachers",
)


def prediction_rows(found: Stored) -> list[tuple[str, ...]]:
    """Of every metric the correlation with accuracy after training on each teacher alone, signed so that 1 is as promised."""
    names = [name for name in pool_teachers(found) if found.runs.get(f"teacher-{name}")]
    if len(names) < 5:
        return []
    accuracy = [mean_accuracy(found.runs[f"teacher-{name}"]) for name in names]
    rows = []
    metrics = next(iter(found.pools.values()))["metrics"]
    for metric, about in metrics.items():
        sign = -1.0 if about["direction"] == "lower" else 1.0
        values = [sign * pool_value(found, name, metric) for name in names]
        value = spearman(values, accuracy)
        if value is None:
            continue
        ends = interval(resample(values, accuracy, replicates=2000, seed=0).spearman, 0.9, len(names))
        shown = "undefined" if ends is None else f"[{ends[0]:+.2f}, {ends[1]:+.2f}]"
        rows.append((f"`{metric}`", str(about["direction"]), str(len(names)), f"{value:+.2f}", shown))
    return sorted(rows, key=lambda row: -float(row[3]))


def progress(found: Stored) -> str:
    """One sentence on how many of the planned runs there are and what they took."""
    planned = [list(design.plan(more)) for more in (False, True)]
    done = [sum(seed in found.runs.get(arm.name, {}) for arm, seed in each) for each in planned]
    all_records = [*(record for each in found.runs.values() for record in each.values()), *found.pools.values()]
    hours = sum(record["hours"]["processor"] for record in all_records)
    return (
        f"Stored: {done[0]} of {len(planned[0])} runs of `make evidence` and {done[1]} of {len(planned[1])} of "
        f"`make evidence-more`, {hours:.1f} hours of one processor, pools included."
    )


def verdict(found: Stored, arm: str) -> str:
    """What may be said of a policy against random with as many tokens: a difference, none found, or too few seeds."""
    mean = difference(found, arm)
    if mean is None or mean.low is None or mean.high is None or mean.seeds < 3:
        return f"unknown: {mean.seeds if mean else 0} of at least 3 seeds are stored"
    told = f"{percent(mean, '+')} points over {mean.seeds} seeds"
    if mean.low > 0 or mean.high < 0:
        return f"measured: it teaches {'more' if mean.low > 0 else 'less'} than random, by {told}"
    seen = 100 * design.detectable(mean.seeds)
    return f"measured, and undecided: {told}, where differences below {seen:.0f} points could not be expected to show"


def verdict_rows(found: Stored) -> list[tuple[str, str]]:
    """One row per policy of the core that is no random one."""
    return [(arm.about, verdict(found, arm.name)) for arm in (*design.CORE, *further(found)) if arm.name not in RANDOM]


def detectable_rows() -> list[tuple[str, ...]]:
    """The smallest difference that is found with a power of 80 %, worked out before the runs."""
    return [(str(seeds), f"{100 * design.detectable(seeds):.0f}") for seeds in (3, 5, 8)]
