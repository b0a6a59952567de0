"""Selections and masks under the papers' names, each as the plain settings that it stands for. It knows no row.

A setting that the user gives wins over the preset's; a budget of the user's replaces the preset's budget.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trajscore.errors import UsageError, did_you_mean
from trajscore.policies.select_options import BUDGETS, flag

_RSR = "arXiv 2601.14249"


@dataclass(frozen=True)
class Preset:
    """A published selection or mask.

    Attributes:
        name: what users type.
        settings: arguments of `select`, or of `mask`, that it stands for.
        source: arXiv id and place.
        meaning: one sentence, with what the source leaves open.
    """

    name: str
    source: str
    meaning: str
    settings: Mapping[str, Any] = field(default_factory=dict)


_ALL = (
    Preset(
        "rsr-33-to-1",
        f"{_RSR}, section 5",
        "per prompt the candidate with the lowest rank-surprisal ratio",
        {"metric": ("rsr",), "per_prompt": 1},
    ),
    Preset(
        "rsr-correct",
        f"{_RSR}, Table 6",
        "the same among the correct candidates, where a prompt has one",
        {"metric": ("rsr",), "per_prompt": 1, "prefer": "correct"},
    ),
    Preset(
        "random",
        f"{_RSR}, Table 6",
        "the baseline: a random candidate per prompt; rsr is shown for comparison",
        {"metric": ("rsr",), "order": "random", "per_prompt": 1},
    ),
    Preset(
        "longest",
        f"{_RSR}, Table 6",
        "the baseline: per prompt the candidate with the most tokens",
        {"metric": ("length",), "per_prompt": 1},
    ),
    Preset(
        "grape",
        "arXiv 2502.04194",
        "per prompt the candidate that is most probable per token under the student",
        {"metric": ("surprisal",), "per_prompt": 1},
    ),
    Preset(
        "teacher-guided",
        "arXiv 2512.20908",
        "per prompt the candidate with the most Teacher sentences; the source names no tie-break, here the lower id",
        {"metric": ("teacher_sentences",), "per_prompt": 1},
    ),
    Preset(
        "das",
        "arXiv 2601.09088",
        "prefers candidates rich in Teacher sentences; the report gives no formula, so the rule of arXiv 2512.20908",
        {"metric": ("teacher_sentences",), "per_prompt": 1},
    ),
    Preset(
        "lark",
        "arXiv 2605.30651",
        "per prompt the five candidates with the largest learnability, with its weights",
        {"metric": ("lark",), "per_prompt": 5, "weight": "lark"},
    ),
    Preset(
        "ifd",
        "arXiv 2308.12032",
        "the tenth with the largest instruction-following difficulty of those where it is at most 1",
        {"metric": ("ifd",), "where": "ifd <= 1", "fraction": 0.1},
    ),
    Preset(
        "gtpo-entropy",
        "arXiv 2508.03772",
        "drops trajectories with a mean entropy above 0.7 nats, the threshold of the official code",
        {"metric": ("entropy",), "where": "entropy <= 0.7"},
    ),
    Preset(
        "paced",
        "arXiv 2603.11178",
        "keeps all and weighs by the student's pass rate on the prompt, read from the column pass_rate",
        {"metric": ("length",), "weight": "paced"},
    ),
)

_TIP = "arXiv 2604.14084"

_MASKS = (
    Preset(
        "tip-soft-or",
        f"{_TIP}, main comparison",
        "half of each trajectory's tokens, the most uncertain or contradicted; the source's text is the student's own",
        {"rule": "soft_or", "keep": 0.5},
    ),
    Preset(
        "tip-entropy",
        f"{_TIP}, Table 3",
        "half of each trajectory's tokens, drawn by entropy",
        {"rule": "entropy_sample", "keep": 0.5},
    ),
    Preset(
        "tip-q3",
        f"{_TIP}, Q3-only score",
        "a fifth of each trajectory's tokens: confident ones that the teacher contradicts",
        {"rule": "q3", "keep": 0.2},
    ),
    Preset(
        "tsd-kd",
        "arXiv 2603.13260",
        "every token, weighed by how much surer the teacher is; the source's other two losses are none of a mask",
        {"rule": "confidence_gap", "tau": 1.0},
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
"""Every preset of `select` by name."""

MASK_PRESETS: dict[str, Preset] = {preset.name: preset for preset in _MASKS}
"""Every preset of `mask` by name."""


def expand_mask(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset of `mask` with those that the user gave, which win.

    Args:
        name: a name in `MASK_PRESETS`.
        given: settings by name; None stands for one that was not given.

    Raises:
        UsageError: there is no such preset, or a rule is given beside it.

    >>> expand_mask("tip-q3", {"rule": None, "keep": 0.1})
    {'rule': 'q3', 'keep': 0.1}
    """
    if name in PRESETS:
        raise UsageError(f"--preset {name!r} is one of `select`.", f"Of `mask`: {', '.join(MASK_PRESETS)}.")
    if name not in MASK_PRESETS:
        raise UsageError(f"--preset {name!r} is unknown.", did_you_mean(name, MASK_PRESETS))
    own = {setting: value for setting, value in given.items() if value is not None}
    if "rule" in own:
        raise UsageError("--preset and --rule exclude each other.", "Give one of them; a preset names a rule.")
    return {**MASK_PRESETS[name].settings, **own}


def expand(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset with those that the user gave, which win.

    Args:
        name: a name in `PRESETS`.
        given: settings by name; None stands for one that was not given.

    Raises:
        UsageError: there is no such preset.

    >>> expand("grape", {"per_prompt": 2, "top": None})
    {'metric': ('surprisal',), 'per_prompt': 2}
    """
    if name in MASK_PRESETS:
        raise UsageError(f"--preset {name!r} is one of `mask`.", f"Of `select`: {', '.join(PRESETS)}.")
    if name not in PRESETS:
        raise UsageError(f"--preset {name!r} is unknown.", did_you_mean(name, PRESETS))
    own = {setting: value for setting, value in given.items() if value is not None}
    settings = dict(PRESETS[name].settings)
    if any(budget in own for budget in BUDGETS):
        settings = {setting: value for setting, value in settings.items() if setting not in BUDGETS}
    return {**settings, **own}


def as_flags(settings: Mapping[str, Any]) -> str:
    """Settings as they are typed on the command line.

    >>> as_flags({"metric": ("rsr",), "per_prompt": 1, "where": "rsr < 3"})
    "--metric rsr --per-prompt 1 --where 'rsr < 3'"
    """
    pairs = [
        (flag(name), each)
        for name, value in settings.items()
        for each in (value if isinstance(value, list | tuple) else [value])
    ]
    return " ".join(f"{option} {shlex.quote(str(each))}" for option, each in pairs)
