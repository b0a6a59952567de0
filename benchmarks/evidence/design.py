"""What is compared with what, in which order, and how small a difference the design can see. Written before the first
run.

Everything that can change a number of a run stands here and is stored with it; a stored run of other settings is not
taken for this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from benchmarks.evidence.estimates import student_t
from benchmarks.evidence.words import TEACHERS

SEEDS = 3
"""Seeds of the core, the least that is shown with an interval; `--seeds` goes on to more. Each has a pool of its own,
sampling, selection and order of its own.
"""

PROMPTS = 60
"""Prompts of a pool; every scripted teacher answers each once, and the student itself once at each temperature."""

TEMPERATURES = (0.4, 0.8, 1.2)
ROLLOUT_LIMIT = 96
POOLED = tuple(name for name in TEACHERS if name != "answer-only")

BUDGET = 2400
"""Scored tokens that a policy may choose, about a seventeenth of a pool."""

EPOCHS = 2
STEP = 300
"""Scored tokens of a step, whatever the policy: equal tokens are equal steps. One epoch of the budget, at steps of half the
size, left random at 15 % of 100 other problems (one trial before the runs), too near the floor to tell policies apart.
"""

RANDOM_BUDGETS = (600, 1200, 2400, 4800)

HELD_OUT = 160
"""Held-out problems, the same for all; no training problem has the numbers and steps of one of them."""

HELD_OUT_SEED = 0
ANSWER_LIMIT = 120
SOLVED = 24
"""Of the held-out problems, how many are written out, in each of `STYLES`, to measure the surprisal of correct
solutions.
"""

STYLES = ("plain", "terse", "verbose", "paraphrasing")


@dataclass(frozen=True)
class Arm:
    """One policy: the keywords of `ts.select` and `ts.mask` that make it.

    `budget` is the number of scored tokens that are chosen, None for all. A `rule` other than "all" is given as many rows
    as leave `BUDGET` labels. `beside` names a role and the arm whose trained student plays it, for rules that read one.
    `teacher` trains on what one teacher alone writes, without selecting.
    """

    name: str
    about: str
    select: Mapping[str, Any] = field(default_factory=dict)
    budget: int | None = BUDGET
    rule: str = "all"
    keep: float | None = None
    beside: tuple[Literal["teacher", "distilled"], str] | None = None
    teacher: str | None = None
    epochs: int = EPOCHS


def _random(budget: int) -> Arm:
    return Arm(f"random-{budget}", "at random from the whole pool", {"metric": ["length"], "order": "random"}, budget)


CORRECT = {"where": "correct"}
CORE = (
    _random(2400),
    Arm("rsr", "lowest RSR", {"metric": ["rsr"]}),
    Arm("rsr-correct", "lowest RSR among correct rows", {"metric": ["rsr"], **CORRECT}),
    Arm("surprisal", "lowest surprisal", {"metric": ["surprisal"]}),
    Arm("longest", "longest", {"metric": ["length"], "order": "descending"}),
    *(_random(budget) for budget in RANDOM_BUDGETS if budget != BUDGET),
)
EVERYTHING = Arm("everything", "the whole pool, once", {"metric": ["length"], "order": "random"}, None, epochs=1)
"""One epoch costs as much as eight other runs, so it comes after all of them and has no second."""


def _itself(temperature: float) -> Arm:
    name = f"itself-{temperature}"
    return Arm(f"teacher-{name}", f"{name} alone", {**_random(BUDGET).select, "where": f"teacher = '{name}'"})


def _masked(name: str, about: str, rule: str, **how: Any) -> Arm:
    return Arm(name, f"at random, {about}", _random(BUDGET).select, rule=rule, **how)


MORE = (
    Arm("random-correct", "at random from the correct rows", {"metric": ["length"], "order": "random", **CORRECT}),
    Arm(
        "rsr-correct-unrepeated",
        "lowest RSR among correct rows that repeat nothing",
        {"metric": ["rsr"], "where": "correct AND repeated_ngram_ratio < 0.1"},
    ),
    Arm(
        "rsr-correct-per-prompt",
        "of each prompt the correct row of lowest RSR",
        {"metric": ["rsr"], "per_prompt": 1, **CORRECT},
    ),
    *(Arm(f"teacher-{name}", f"{name} alone", teacher=name) for name in TEACHERS),
    *(_itself(temperature) for temperature in TEMPERATURES),
    Arm("hes-correct", "highest HES among correct rows", {"metric": ["hes"], "order": "descending", **CORRECT}),
    _masked("mask-entropy", "the half of each row's tokens with most entropy", "entropy", keep=0.5),
    _masked(
        "mask-yet-to-learn",
        "the tokens of which a student trained on 600 tokens is no surer than before",
        "yet_to_learn",
        beside=("distilled", "random-600"),
    ),
    _masked(
        "mask-provenance",
        "the sentences that a student trained on plain finds more probable",
        "teacher_sentences",
        beside=("teacher", "teacher-plain"),
    ),
)


class Planned(NamedTuple):
    """A run that is to be: an arm and a seed."""

    arm: Arm
    seed: int


def plan(more: bool = False, seeds: int = SEEDS) -> Iterator[Planned]:
    """All runs in the order in which they are made: seed by seed, so that whatever is finished can be compared.

    Of `more` the single teachers come first: whether a metric predicts is read off them together.
    """
    if more:
        single = [arm for arm in MORE if arm.name.startswith("teacher-")]
        others = [arm for arm in MORE if arm not in single]
        yield from (Planned(arm, seed) for arms in (single, others) for seed in range(seeds) for arm in arms)
        return
    for seed in range(seeds):
        yield from (Planned(arm, seed) for arm in CORE)
        # After three seeds there are intervals; then the expensive one catches up.
        if seed >= 2:
            yield from (Planned(EVERYTHING, each) for each in (range(3) if seed == 2 else (seed,)))


def settings(arm: Arm) -> dict[str, Any]:
    """All that can change a run's numbers, beside its seed and the versions."""
    from benchmarks.evidence.student import LEARNING_RATE, WARM_UP

    return {
        "select": dict(arm.select),
        "budget": arm.budget,
        "rule": arm.rule,
        "keep": arm.keep,
        "beside": arm.beside,
        "teacher": arm.teacher,
        "prompts": PROMPTS,
        "teachers": list(POOLED),
        "temperatures": list(TEMPERATURES),
        "rollout_limit": ROLLOUT_LIMIT,
        "epochs": arm.epochs,
        "tokens_per_step": STEP,
        "learning_rate": LEARNING_RATE,
        "warm_up": WARM_UP,
        "held_out": HELD_OUT,
        "held_out_seed": HELD_OUT_SEED,
        "answer_limit": ANSWER_LIMIT,
        "solved": SOLVED,
        "styles": list(STYLES),
    }


ASSUMED_ACCURACY = 0.35
ASSUMED_SEED_SD = 0.05
ASSUMED_CORRELATION = 0.3


def detectable(seeds: int, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest difference in accuracy between two policies that is found with this power, two-sided, before any
    run is made.

    Assumed, from one pilot comparison: accuracies near 0.35; a policy's accuracy varies by 0.05 (standard deviation)
    between seeds beyond what the problems explain; answers of two students to one problem correlate by 0.3. A seed's
    difference then has the variance 2 p (1 - p) (1 - 0.3) / problems + 2 * 0.05^2, and Student's t has seeds - 1
    degrees of freedom.

    >>> [round(100 * detectable(seeds), 1) for seeds in (3, 5, 8)]
    [25.9, 13.9, 9.6]
    """
    p = ASSUMED_ACCURACY
    variance = 2 * p * (1 - p) * (1 - ASSUMED_CORRELATION) / HELD_OUT + 2 * ASSUMED_SEED_SD**2
    return (student_t(1 - level / 2, seeds - 1) + student_t(power, seeds - 1)) * float((variance / seeds) ** 0.5)
