"""Published selections by name, each as the plain settings that it stands for.

A setting that the user gives wins over the preset's; a budget of the user's replaces the preset's budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trajscore.errors import UsageError, did_you_mean
from trajscore.metrics import METRICS
from trajscore.metrics.conditions import parse_condition
from trajscore.options import Preset
from trajscore.schema import flags_for
from trajscore.selection.policy import BUDGETS

_RSR = "arXiv 2601.14249"


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
        "lalp",
        "arXiv 2510.03988",
        "per prompt the candidate whose sentences are most probable after few others; K = 4 is what others report of the paper",
        {"metric": ("lalp",), "per_prompt": 1},
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
        "candidates rich in Teacher sentences, without loops; the report gives no formula, here the sum of log-ratios",
        {"metric": ("das_margin",), "where": "loop = 0", "per_prompt": 1},
    ),
    Preset(
        "hes",
        "arXiv 2605.22389",
        "the fifth of the correct rows with the largest high-entropy sums; reads the column correct",
        {"metric": ("hes",), "where": "correct", "fraction": 0.2},
    ),
    Preset(
        "aslec-drop",
        "arXiv 2604.06834",
        "per prompt the candidate whose tokens but sentences' first are most probable",
        {"metric": ("aslec_drop",), "per_prompt": 1},
    ),
    Preset(
        "aslec-casl",
        "arXiv 2604.06834",
        "per prompt the most probable candidate, after what the share of sentences' first tokens explains is taken off",
        {"metric": ("aslec_casl",), "per_prompt": 1},
    ),
    Preset(
        "rule-quality",
        f"{_RSR}, Appendix B",
        "the strongest baseline: per prompt the candidate with the best words",
        {"metric": ("rule_quality",), "per_prompt": 1},
    ),
    Preset(
        "lark",
        "arXiv 2605.30651",
        "per prompt the three candidates with the largest learnability, as in the authors' example, with its weights",
        {"metric": ("lark",), "per_prompt": 3, "weight": "lark"},
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
        "drops trajectories with a mean entropy above 0.7 nats, the threshold of the official code, which also lowers the "
        "advantage of the others by a tenth of it",
        {"metric": ("entropy",), "order": "ascending", "where": "entropy <= 0.7"},
    ),
    Preset(
        "edco",
        "arXiv 2601.03725",
        "a row of each of the 200 prompts that the student is most unsure of, a round of the authors' loop; by what "
        "`skills entropy` writes",
        {"metric": ("inference_entropy",), "per_prompt": 1, "top": 200},
    ),
    Preset(
        "stat",
        "arXiv 2510.10023",
        "STAT-Sel: answers to questions drawn for the student's missing skills; reads --profile and --skill-map",
        {"metric": ("stat",), "weight": "draws"},
    ),
    Preset(
        "paced",
        "arXiv 2603.11178",
        "keeps all and weighs by the student's pass rate on the prompt, which `skills pass-rate` writes",
        {"metric": ("length",), "weight": "paced"},
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
"""Every preset of `select` by name."""


def needs(preset: Preset) -> list[str]:
    """What a preset does not run without: flags of `score`, columns of the corpus, files of `skills`.

    >>> needs(PRESETS["lark"]), needs(PRESETS["rsr-correct"]), needs(PRESETS["grape"])
    (['--extra collision'], ['a column correct'], [])
    """
    settings = preset.settings
    named = [name for name in settings["metric"] if name in METRICS]
    if "where" in settings:
        named += parse_condition(settings["where"]).meta.root_names()
    columns = [column for name in named for column in (METRICS[name].columns if name in METRICS else (name,))]
    columns += ["correct"] if "prefer" in settings else []
    columns += ["pass_rate"] if settings.get("weight") == "paced" else []
    files = ["--profile", "--skill-map"] if "stat" in settings["metric"] else []
    return [*flags_for(columns), *files]


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
    if name not in PRESETS:
        raise UsageError(f"`select` has no --preset {name!r}.", did_you_mean(name, PRESETS))
    own = {setting: value for setting, value in given.items() if value is not None}
    settings = dict(PRESETS[name].settings)
    if any(budget in own for budget in BUDGETS):
        settings = {setting: value for setting, value in settings.items() if setting not in BUDGETS}
    return {**settings, **own}
