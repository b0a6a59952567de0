"""Masks under the papers' names, each as the plain settings that it stands for; a setting that the user gives wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trajscore.errors import UsageError, did_you_mean
from trajscore.masking.rules import find_rule
from trajscore.masking.schedule import parse_schedule
from trajscore.options import Preset, parse_named
from trajscore.schema import flags_for
from trajscore.selection.presets import PRESETS

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
    Preset(
        "on-policy",
        "on-policy distillation as slime, TRL and Tinker do it",
        "every token of the student's own text, weighed by ln p_teacher - ln p_student; weights may be negative",
        {"rule": "opd_reward"},
    ),
    Preset(
        "tsd-kd-opener",
        "arXiv 2603.13260",
        "the prefix with a tenth of the row's entropy, on which the source trains its indirect loss",
        {"rule": "opener,share=0.1"},
    ),
    Preset(
        "t3s",
        "arXiv 2601.10348",
        "tokens of which a checkpoint at its lowest accuracy, given as --distilled, is no surer than the student was",
        {"rule": "yet_to_learn"},
    ),
    Preset(
        "profit",
        "arXiv 2601.09195",
        "tokens that the student gives a probability above 0.1, the threshold of the official code",
        {"rule": "probable,tau=0.1"},
    ),
    Preset(
        "dft",
        "arXiv 2508.05629",
        "every token, weighed by the student's probability of it",
        {"rule": "probable_soft"},
    ),
    Preset(
        "first-half",
        "arXiv 2512.21002",
        "the first half of each trajectory's tokens",
        {"rule": "prefix", "keep": 0.5},
    ),
    Preset(
        "dasd",
        "arXiv 2601.09088",
        "every token, in two files: what was sampled at temperature 0.6, to be trained on first, then what was at 1.0; choose "
        "rows with the preset das of `select`",
        {"rule": "all", "schedule": "temperature=0.6,1"},
    ),
    Preset(
        "gtpo",
        "arXiv 2508.03772",
        "weights of the tokens that correct and wrong answers to a prompt share at their ends",
        {"rule": "conflict"},
    ),
)


MASK_PRESETS: dict[str, Preset] = {preset.name: preset for preset in _MASKS}
"""Every preset of `mask` by name."""


def needs_mask(preset: Preset) -> list[str]:
    """What a preset does not run without: flags of `score`, columns of the corpus.

    >>> needs_mask(MASK_PRESETS["t3s"]), needs_mask(MASK_PRESETS["dasd"]), needs_mask(MASK_PRESETS["profit"])
    (['--distilled MODEL'], ['a column temperature'], [])
    """
    rule = find_rule(parse_named("--rule", preset.settings["rule"]).name)
    stages = preset.settings.get("schedule")
    by = [] if stages is None else [parse_schedule(stages).column]
    return flags_for([*rule.columns, *(["correct"] if rule.compares else []), *by])


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
