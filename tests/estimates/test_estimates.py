"""How sure a ranking says to be: intervals, probabilities of being best, sentences and plans against simulated truths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from statistics import NormalDist

import numpy as np
import pytest

from trajscore.errors import UsageError
from trajscore.estimates.bootstrap import Floats, GroupSums, expanded_tail, interval, intervals, replicate, share_best
from trajscore.estimates.comparison import MIN_PROMPTS, Comparison, Resampling, compare
from trajscore.estimates.correlation import kendall, pearson, resample, spearman, spearmans
from trajscore.estimates.sample_size import plan_sample, prompts_needed
from trajscore.estimates.shrinkage import probability_best
from trajscore.ranking.ranking import Ranking, RankingOptions, TeacherLine
from trajscore.ranking.recommendation import percent, recommend

HOW = Resampling(0.9, 300, 0)


def corpus(draw: np.random.Generator, truth: Floats, prompts: int) -> dict[str, GroupSums]:
    """Teachers whose dataset value is known: sums per prompt with difficulty in common and noise of their own."""
    difficulty = draw.gamma(4.0, 0.25, (prompts, 1))
    groups = {}
    for name, value in zip("abcdefgh", truth, strict=False):
        denominators = difficulty * draw.gamma(8.0, 1 / 8, (prompts, 1))
        numerators = value * denominators * draw.gamma(6.0, 1 / 6, (prompts, 1))
        groups[name] = GroupSums(np.arange(prompts), numerators, denominators)
    return groups


@dataclass(frozen=True)
class Outcome:
    """What was stated and what was true, over many corpora."""

    covered: float
    differences_covered: float
    stated: Floats
    best: Floats
    leader_stated: float
    leader_best: float
    naive_leader_stated: float


def simulate(trials: int, teachers: int, prompts: int, spread: float) -> Outcome:
    draw = np.random.default_rng(0)
    covered, differences, stated, best, leader, naive = [], [], [], [], [], []
    for trial in range(trials):
        truth = 3.0 + spread * draw.normal(size=teachers)
        groups = corpus(draw, truth, prompts)
        how = Resampling(0.9, 300, trial)
        found = compare(groups, True, how)
        values = replicate(list(groups.values()), prompts, 300, trial)[:, :, 0]
        for number, name in enumerate(groups):
            ends = interval(values[:, number], 0.9, prompts)
            assert ends is not None
            covered.append(ends[0] <= truth[number] <= ends[1])
            stated.append(found.probability_best[name])
            best.append(number == truth.argmin())
        names = list(groups)
        for each in found.differences:
            true = truth[names.index(each.name)] - truth[names.index(str(found.leader))]
            assert each.low is not None
            assert each.high is not None
            differences.append(each.low <= true <= each.high)
        first = names.index(str(found.leader))
        leader.append((found.probability_best[names[first]], first == truth.argmin()))
        naive.append(share_best(values, lower_is_better=True)[first])
    return Outcome(
        covered=float(np.mean(covered)),
        differences_covered=float(np.mean(differences)),
        stated=np.array(stated, float),
        best=np.array(best, float),
        leader_stated=float(np.mean([stated for stated, _ in leader])),
        leader_best=float(np.mean([best for _, best in leader])),
        naive_leader_stated=float(np.mean(np.array(naive, float))),
    )


def _calibration_gaps(outcome: Outcome, least: int) -> list[float]:
    """Stated minus true frequency, in fifths of what was stated, where there are cases enough."""
    gaps = []
    for low, high in pairwise((0.0, 0.2, 0.4, 0.6, 0.8, 1.0001)):
        here = (outcome.stated >= low) & (outcome.stated < high)
        if here.sum() >= least:
            gaps.append(float(outcome.stated[here].mean() - outcome.best[here].mean()))
    return gaps


def test_intervals_and_probabilities_are_honest() -> None:
    outcome = simulate(300, teachers=4, prompts=100, spread=0.3)
    assert 0.85 <= outcome.covered <= 0.95
    assert abs(outcome.leader_stated - outcome.leader_best) <= 0.1
    gaps = _calibration_gaps(outcome, least=100)
    assert len(gaps) >= 3
    assert all(abs(gap) <= 0.1 for gap in gaps)


def test_the_share_of_replicates_is_no_probability() -> None:
    """The control: what `probability_best` corrects. Near-equal teachers, and the raw share is sure of the luckiest."""
    outcome = simulate(150, teachers=4, prompts=100, spread=0.1)
    assert outcome.naive_leader_stated - outcome.leader_best > 0.1
    assert outcome.leader_stated < outcome.naive_leader_stated - 0.05
    assert abs(outcome.leader_stated - outcome.leader_best) <= 0.1


@pytest.mark.parametrize(("teachers", "prompts"), [(2, MIN_PROMPTS), (5, MIN_PROMPTS), (8, MIN_PROMPTS), (8, 12)])
def test_the_fewest_prompts_that_are_judged_are_judged_honestly(teachers: int, prompts: int) -> None:
    outcome = simulate(300, teachers, prompts, 0.3)
    assert 0.82 <= outcome.covered <= 0.96
    assert abs(outcome.leader_stated - outcome.leader_best) <= 0.1


def test_a_covariance_that_is_not_pooled_is_too_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: eight teachers on eight prompts, their covariance taken as it comes."""
    monkeypatch.setattr("trajscore.estimates.shrinkage._POOLED", 0)
    outcome = simulate(300, 8, MIN_PROMPTS, 0.3)
    assert outcome.leader_stated - outcome.leader_best > 0.1


def test_fewer_prompts_are_not_judged() -> None:
    """Seven prompts on which one teacher leads each time: no probability, no interval, no plan. Eight: all three."""
    for prompts, judged in ((MIN_PROMPTS - 1, False), (MIN_PROMPTS, True)):
        draw = np.random.default_rng(0)
        groups = {
            name: GroupSums(np.arange(prompts), value + draw.normal(0, 0.1, (prompts, 1)), np.ones((prompts, 1)))
            for name, value in (("a", 1.0), ("b", 2.0))
        }
        found = compare(groups, True, HOW)
        said = recommend(_ranking(found), None)
        plan = plan_sample("rsr", found, groups, {"a": 1.0, "b": 1.0}, HOW)
        assert found.leader == "a"
        assert [found.probability_best["a"] is None, found.differences[0].low is None] == [not judged] * 2
        assert said.verdict == ("clear" if judged else "none")
        assert (plan.stable, "Nothing to plan" in plan.sentence, bool(plan.steps)) == (judged, not judged, judged)


def test_a_tie_of_two_is_open() -> None:
    same = GroupSums(np.arange(30), np.arange(30, dtype=np.float64)[:, None], np.ones((30, 1)))
    said = recommend(_ranking(compare({"a": same, "b": same}, True, HOW)), None)
    assert said.verdict == "open"
    assert "probability 50 %" in said.sentence


def test_a_rival_that_shares_no_prompt_is_not_called_equal() -> None:
    draw = np.random.default_rng(0)
    groups = {
        name: GroupSums(start + np.arange(30), draw.normal(value, 0.1, (30, 1)), np.ones((30, 1)))
        for name, start, value in (("a", 0, 1.0), ("b", 30, 2.0))
    }
    plan = plan_sample("rsr", compare(groups, True, HOW), groups, {"a": 1.0, "b": 1.0}, HOW)
    assert "do not differ" not in plan.sentence
    assert "two teachers that share 8 prompts" in plan.sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teachers", "prompts", "spread"), [(2, 40, 0.3), (4, 60, 0.3), (6, 100, 0.2), (8, 200, 0.1), (8, 200, 0.5)]
)
def test_honest_over_many_corpora(teachers: int, prompts: int, spread: float) -> None:
    outcome = simulate(600, teachers, prompts, spread)
    assert 0.85 <= outcome.covered <= 0.95
    assert abs(outcome.leader_stated - outcome.leader_best) <= 0.1
    assert all(abs(gap) <= 0.1 for gap in _calibration_gaps(outcome, least=150))


def test_tail_is_students_where_tables_have_it() -> None:
    for free, student in ((3, 2.3534), (9, 1.8331), (39, 1.6849)):
        prompts = free + 1
        assert expanded_tail(0.05, prompts) == pytest.approx(
            NormalDist().cdf(-math.sqrt(prompts / free) * student), rel=0.03
        )
    assert expanded_tail(0.05, 10) < expanded_tail(0.05, 100) < 0.05


def test_probability_of_two_by_hand() -> None:
    """Two groups: one contrast, so the posterior is a mixture over the weight B of one normal each."""
    draw = np.random.default_rng(2)
    values, prompts = np.array([2.0, 2.3]), 50
    replicates = values + draw.normal(0, [0.2, 0.1], (4000, 2))
    error = float(np.var(replicates[:, 1] - replicates[:, 0], ddof=1)) * prompts / (prompts - 1)
    weights = (np.arange(400) + 0.5) / 400
    totals = error / weights
    chances = np.exp(-0.5 * (np.log(totals) + 0.3**2 / totals))
    kept = 1 - weights
    ahead = [NormalDist().cdf(math.sqrt(k) * 0.3 / math.sqrt(error)) for k in kept]
    expected = float(np.average(ahead, weights=chances))
    found = probability_best(values, replicates, prompts, True, seed=0)
    assert found[0] == pytest.approx(expected, abs=0.02)
    assert found.sum() == pytest.approx(1.0)
    assert probability_best(values, replicates, prompts, False, seed=0)[1] == pytest.approx(expected, abs=0.02)
    # Control: without shrinkage it would be surer.
    assert NormalDist().cdf(0.3 / math.sqrt(error)) > expected + 0.03


def test_equal_groups_share_and_one_group_is_certain() -> None:
    same = GroupSums(np.arange(30), np.random.default_rng(0).random((30, 1)), np.ones((30, 1)))
    found = compare({"a": same, "b": same, "c": same}, True, HOW)
    assert [found.probability_best[name] for name in "abc"] == pytest.approx([1 / 3] * 3)
    assert found.leader == "a"
    assert [each.value for each in found.differences] == [0.0, 0.0]
    assert found.differences[0].leader_ahead == 0.5
    assert compare({"a": same}, True, HOW).probability_best == {"a": 1.0}


def test_only_shared_prompts_are_compared() -> None:
    """`late` answered hard prompts alone; on what all share it is the better one."""
    early = GroupSums(np.arange(30), np.r_[np.full((20, 1), 2.0), np.full((10, 1), 2.0)], np.ones((30, 1)))
    late = GroupSums(np.arange(10, 50), np.r_[np.full((20, 1), 1.0), np.full((20, 1), 9.0)], np.ones((40, 1)))
    found = compare({"early": early, "late": late}, True, HOW)
    assert (found.basis, found.prompts, found.leader) == ("shared", 20, "late")
    assert found.values == {"early": 2.0, "late": 1.0}
    assert found.differences[0].prompts == 20
    few = GroupSums(np.arange(28, 68), np.ones((40, 1)), np.ones((40, 1)))
    assert (
        compare({"early": early, "few": few}, True, HOW).basis,
        compare({"early": early, "few": few}, True, HOW).prompts,
    ) == ("all", 68)


def test_groups_without_value_take_no_part() -> None:
    one = GroupSums(np.arange(30), np.ones((30, 1)), np.ones((30, 1)))
    none = GroupSums(np.arange(30), np.zeros((30, 1)), np.zeros((30, 1)))
    found = compare(
        {"one": one, "none": none, "empty": GroupSums(np.empty(0, np.int64), np.empty((0, 1)), np.empty((0, 1)))},
        True,
        HOW,
    )
    assert found.basis == "shared"
    assert found.values == {"one": 1.0, "none": None, "empty": None}
    assert found.probability_best == {"one": 1.0, "none": None, "empty": None}
    assert compare({}, True, HOW).leader is None
    assert compare({"none": none}, True, HOW).candidates == ()


def _plain_kendall(left: list[float], right: list[float]) -> float:
    concordant = untied_left = untied_right = 0
    for (a, b), (c, d) in product(zip(left, right, strict=True), repeat=2):
        concordant += ((a > c) - (a < c)) * ((b > d) - (b < d))
        untied_left += a != c
        untied_right += b != d
    return concordant / math.sqrt(untied_left * untied_right)


def test_kendall_with_ties() -> None:
    # Pairs of 1 5 5 9 and 1 3 2 4: five concordant, one tied on the left; 5 / sqrt(5 * 6).
    assert kendall([1.0, 5.0, 5.0, 9.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(5 / math.sqrt(30))
    draw = np.random.default_rng(4)
    for _ in range(20):
        left, right = (draw.integers(0, 5, 9).astype(float).tolist() for _ in range(2))
        assert kendall(left, right) == pytest.approx(_plain_kendall(left, right))
    assert kendall([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert kendall([1.0, None, 3.0], [1.0, 2.0, 3.0]) is None


def test_resampled_correlations_equal_single_ones() -> None:
    draw = np.random.default_rng(5)
    left, right = draw.integers(0, 6, 8).astype(float), draw.normal(size=8)
    found = resample(left.tolist(), right.tolist(), 40, seed=3)
    chosen = np.random.default_rng(3).integers(0, 8, (40, 8))
    for number, places in enumerate(chosen):
        for name, single in (("spearman", spearman), ("pearson", pearson), ("kendall", kendall)):
            expected = single(left[places].tolist(), right[places].tolist())
            value = getattr(found, name)[number]
            assert np.isnan(value) if expected is None else value == pytest.approx(expected)
    assert np.isnan(resample([], [], 3, 0).kendall).all()


def test_every_two_of_many_lists_correlate_as_two_alone() -> None:
    draw = np.random.default_rng(6)
    values = draw.integers(0, 9, (7, 30)).astype(float)
    values[1:3, draw.choice(30, 11, replace=False)] = np.nan
    values[3, 2:] = np.inf
    values[4] = 5.0
    found = spearmans(values)
    for left, right in product(range(7), repeat=2):
        expected = spearman(values[left], values[right])
        alone = np.nan if expected is None else expected
        assert found[left, right] == pytest.approx(alone, abs=1e-12, nan_ok=True), (left, right)
    assert np.isnan(found[3:5]).all()
    assert np.isfinite(found[np.ix_([0, 1, 5], [2, 6])]).all()
    assert np.isnan(spearmans(np.empty((2, 0)))).all()


def test_intervals_are_numpys_quantiles_whatever_the_gaps() -> None:
    draw = np.random.default_rng(7)
    values = draw.normal(size=(41, 12)).round(1)
    values[draw.random(values.shape) < np.linspace(0.0, 0.95, 12)] = np.nan
    values[:, 5], values[3, 0], values[1:, 11] = np.nan, np.inf, np.nan
    values[0, 11] = 4.0
    prompts = np.arange(8, 20)
    for ends, column, count in zip(intervals(values, 0.9, prompts), values.T, prompts.tolist(), strict=True):
        finite, tail = column[np.isfinite(column)], expanded_tail(0.05, count)
        assert ends == (pytest.approx(tuple(np.quantile(finite, [tail, 1 - tail]))) if finite.size else None)
    assert intervals(values, 0.9, prompts)[11] == (4.0, 4.0)
    assert intervals(np.empty((0, 2)), 0.9, prompts[:2]) == [None, None]


def _ranking(found: Comparison, correct: dict[str, float | None] | None = None) -> Ranking:
    lines = [
        TeacherLine(name, 10, 10, {}, 0, 10, 5.0, (correct or {}).get(name), {}, found.probability_best[name])
        for name in found.values
    ]
    order = sorted(lines, key=lambda line: (found.values[line.teacher] is None, found.values[line.teacher]))
    return Ranking(tuple(order), RankingOptions(), found.prompts, found.prompts, found, (), "lower is better")


@pytest.mark.parametrize(
    ("gap", "verdict", "words"),
    [(1.5, "clear", "suits your student (`S`) best"), (0.3, "likely", "probably"), (0.0, "open", "do not settle")],
)
def test_the_sentence_is_no_surer_than_the_numbers(gap: float, verdict: str, words: str) -> None:
    draw = np.random.default_rng(0)
    found = compare(corpus(draw, 3.0 + gap * np.array([0.0, 1.0, 2.0]), 40), True, HOW)
    said = recommend(_ranking(found), "S")
    assert said.verdict == verdict
    assert words in said.sentence
    assert str(found.leader) in said.sentence
    assert "40 prompts that all teachers share" in said.sentence
    if verdict != "clear":
        assert "cannot be ruled out" in said.sentence
        assert sum(found.probability_best[name] or 0 for name in said.candidates) >= 0.9


def test_sentences_where_nothing_can_be_said() -> None:
    one = GroupSums(np.arange(30), np.ones((30, 1)), np.ones((30, 1)))
    assert "only teacher" in recommend(_ranking(compare({"a": one}, True, HOW)), None).sentence
    single = {n: GroupSums(np.arange(1), np.full((1, 1), v), np.ones((1, 1))) for n, v in (("a", 1.0), ("b", 2.0))}
    said = recommend(_ranking(compare(single, True, HOW)), None)
    assert (said.verdict, said.leader) == ("none", "a")
    assert "fewer than 8 prompts" in said.sentence
    none = GroupSums(np.arange(3), np.zeros((3, 1)), np.zeros((3, 1)))
    assert recommend(_ranking(compare({"a": none}, True, HOW)), None).leader is None


def test_a_leader_with_wrong_answers_is_a_caution() -> None:
    found = compare(corpus(np.random.default_rng(1), np.array([1.0, 3.0, 3.1]), 60), True, HOW)
    said = recommend(_ranking(found, {"a": 0.175, "b": 0.9, "c": 1.0}), None)
    assert any("Only 18 %" in each for each in said.cautions) or any("Only 17 %" in each for each in said.cautions)
    assert recommend(_ranking(found, {"a": 0.95, "b": 0.9, "c": 1.0}), None).cautions == ()
    assert percent(0.996) == "> 99 %"


def test_prompts_needed_by_hand() -> None:
    # z(0.9) = 1.28155; 40 (1.28155 x 0.5 / 0.25)^2 = 262.8.
    assert prompts_needed(0.25, 0.5, 40, 0.9) == 263
    assert prompts_needed(-0.25, 0.5, 40, 0.9) == 263
    assert prompts_needed(0.0, 0.5, 40, 0.9) is None
    assert prompts_needed(5.0, 0.001, 40, 0.9) == 2


def test_the_planned_sample_separates_as_often_as_it_says() -> None:
    """From the plan of a large sample, whose difference is nearly the true one: fresh samples of the planned size."""
    draw, truth = np.random.default_rng(3), np.array([3.0, 3.25])
    groups = corpus(draw, truth, 5000)
    plan = plan_sample("rsr", compare(groups, True, HOW), groups, {"a": 1.0, "b": 2.0}, HOW)
    (rival,) = plan.separations
    assert rival.prompts is not None
    assert rival.trajectories == 2 * rival.prompts
    assert rival.prompts_at_worst is not None
    assert rival.prompts_at_worst > rival.prompts
    right = 0
    for _ in range(400):
        fresh = corpus(draw, truth, rival.prompts)
        a, b = (float(g.numerators.sum() / g.denominators.sum()) for g in fresh.values())
        right += a < b
    assert right / 400 == pytest.approx(0.9, abs=0.06)
    assert plan.stable
    assert [step.prompts for step in plan.steps] == [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    assert all(before.same_leader <= after.same_leader + 0.05 for before, after in pairwise(plan.steps))


def test_plans_without_anything_to_plan() -> None:
    one = GroupSums(np.arange(30), np.ones((30, 1)), np.ones((30, 1)))
    alone = plan_sample("rsr", compare({"a": one}, True, HOW), {"a": one}, {"a": 1.0}, HOW)
    assert (alone.stable, alone.separations, alone.steps) == (False, (), ())
    assert "Nothing to plan" in alone.sentence
    both = {"a": one, "b": one}
    equal = plan_sample("rsr", compare(both, True, HOW), both, {"a": 1.0, "b": 1.0}, HOW)
    assert equal.separations[0].prompts is None
    assert "do not differ" in equal.sentence


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="--replicates"):
        RankingOptions(replicates=0)
