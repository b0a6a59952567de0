"""trajscore: score reasoning trajectories under the model you train, select by the scores, report on the teachers.

Nothing heavy is imported until it is used: `import trajscore` loads neither torch nor a plotting library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trajscore import metrics as metrics
    from trajscore.errors import DataError as DataError
    from trajscore.errors import EngineError as EngineError
    from trajscore.errors import TrajscoreError as TrajscoreError
    from trajscore.errors import UsageError as UsageError
    from trajscore.exporters.export import export as export
    from trajscore.masking.mask import mask as mask
    from trajscore.metrics import Metric as Metric
    from trajscore.ranking.report import report as report
    from trajscore.recipes.run import run_recipe as run_recipe
    from trajscore.scores import merge as merge
    from trajscore.scores import read_manifest as read_manifest
    from trajscore.scores import scan as scan
    from trajscore.scores import verify as verify
    from trajscore.scoring.forecast.plan import score_plan as score_plan
    from trajscore.scoring.run import score as score
    from trajscore.scoring.slurm import slurm_script as slurm_script
    from trajscore.selection.diff import diff as diff
    from trajscore.selection.options import StatSettings as StatSettings
    from trajscore.selection.select import select as select
    from trajscore.skills.commands.answer import answer_questions as answer_questions
    from trajscore.skills.commands.diagnose import diagnose_skills as diagnose_skills
    from trajscore.skills.commands.label import label_skills as label_skills
    from trajscore.skills.commands.label import skill_catalogue as skill_catalogue
    from trajscore.skills.commands.profile import skill_profile as skill_profile
    from trajscore.skills.commands.synthesise import synthesise_questions as synthesise_questions
    from trajscore.skills.options import AnnotatorOptions as AnnotatorOptions
    from trajscore.skills.options import StudentOptions as StudentOptions
    from trajscore.skills.options import SynthesisOptions as SynthesisOptions
    from trajscore.viewing.doctor import doctor as doctor
    from trajscore.viewing.inspect import inspect as inspect
    from trajscore.viewing.token_frame import tokens as tokens
    from trajscore.viewing.trace import trace as trace

__version__ = "0.1.0"

_HOME = {
    "Metric": "trajscore.metrics",
    "DataError": "trajscore.errors",
    "EngineError": "trajscore.errors",
    "TrajscoreError": "trajscore.errors",
    "UsageError": "trajscore.errors",
    "diff": "trajscore.selection.diff",
    "doctor": "trajscore.viewing.doctor",
    "StatSettings": "trajscore.selection.options",
    "StudentOptions": "trajscore.skills.options",
    "SynthesisOptions": "trajscore.skills.options",
    "AnnotatorOptions": "trajscore.skills.options",
    "answer_questions": "trajscore.skills.commands.answer",
    "diagnose_skills": "trajscore.skills.commands.diagnose",
    "label_skills": "trajscore.skills.commands.label",
    "export": "trajscore.exporters.export",
    "inspect": "trajscore.viewing.inspect",
    "mask": "trajscore.masking.mask",
    "merge": "trajscore.scores",
    "read_manifest": "trajscore.scores",
    "report": "trajscore.ranking.report",
    "run_recipe": "trajscore.recipes.run",
    "scan": "trajscore.scores",
    "score": "trajscore.scoring.run",
    "score_plan": "trajscore.scoring.forecast.plan",
    "select": "trajscore.selection.select",
    "skill_catalogue": "trajscore.skills.commands.label",
    "skill_profile": "trajscore.skills.commands.profile",
    "slurm_script": "trajscore.scoring.slurm",
    "synthesise_questions": "trajscore.skills.commands.synthesise",
    "tokens": "trajscore.viewing.token_frame",
    "trace": "trajscore.viewing.trace",
    "verify": "trajscore.scores",
}

__all__ = [*_HOME, "__version__", "metrics"]  # noqa: PLE0604 - the names are strings; the table is their one home


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name == "metrics":
        return importlib.import_module("trajscore.metrics")
    raise AttributeError(f"module 'trajscore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
