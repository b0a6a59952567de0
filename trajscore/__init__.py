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
    from trajscore.exporters.export import Exported as Exported
    from trajscore.exporters.export import export as export
    from trajscore.exporters.options import ExportOptions as ExportOptions
    from trajscore.masking.mask import Masking as Masking
    from trajscore.masking.mask import mask as mask
    from trajscore.masking.options import MaskOptions as MaskOptions
    from trajscore.metrics import Metric as Metric
    from trajscore.ranking.options import ReportOptions as ReportOptions
    from trajscore.ranking.report import report as report
    from trajscore.ranking.result import Report as Report
    from trajscore.recipes.run import RecipeRun as RecipeRun
    from trajscore.recipes.run import run_recipe as run_recipe
    from trajscore.scores import merge as merge
    from trajscore.scores import read_manifest as read_manifest
    from trajscore.scores import scan as scan
    from trajscore.scores import verify as verify
    from trajscore.scoring.forecast.plan import ScorePlan as ScorePlan
    from trajscore.scoring.forecast.plan import score_plan as score_plan
    from trajscore.scoring.options import PlanOptions as PlanOptions
    from trajscore.scoring.options import ScoreOptions as ScoreOptions
    from trajscore.scoring.run import ScoreSummary as ScoreSummary
    from trajscore.scoring.run import score as score
    from trajscore.scoring.slurm import slurm_script as slurm_script
    from trajscore.selection.diff import diff as diff
    from trajscore.selection.options import SelectOptions as SelectOptions
    from trajscore.selection.options import StatSettings as StatSettings
    from trajscore.selection.select import Selection as Selection
    from trajscore.selection.select import select as select
    from trajscore.skills.commands.answer import answer_questions as answer_questions
    from trajscore.skills.commands.begin import begin_answers as begin_answers
    from trajscore.skills.commands.diagnose import diagnose_skills as diagnose_skills
    from trajscore.skills.commands.entropy import prompt_entropies as prompt_entropies
    from trajscore.skills.commands.grade import grade as grade
    from trajscore.skills.commands.label import label_skills as label_skills
    from trajscore.skills.commands.label import skill_catalogue as skill_catalogue
    from trajscore.skills.commands.pass_rate import pass_rates as pass_rates
    from trajscore.skills.commands.profile import skill_profile as skill_profile
    from trajscore.skills.commands.synthesise import synthesise_questions as synthesise_questions
    from trajscore.skills.options import AnnotatorOptions as AnnotatorOptions
    from trajscore.skills.options import StudentOptions as StudentOptions
    from trajscore.skills.options import SynthesisOptions as SynthesisOptions
    from trajscore.viewing.doctor import doctor as doctor
    from trajscore.viewing.inspect import Inspection as Inspection
    from trajscore.viewing.inspect import inspect as inspect
    from trajscore.viewing.options import InspectOptions as InspectOptions
    from trajscore.viewing.options import TraceOptions as TraceOptions
    from trajscore.viewing.token_frame import tokens as tokens
    from trajscore.viewing.trace import Tracing as Tracing
    from trajscore.viewing.trace import trace as trace

__version__ = "0.1.0"

_HOME = {
    "AnnotatorOptions": "trajscore.skills.options",
    "DataError": "trajscore.errors",
    "EngineError": "trajscore.errors",
    "ExportOptions": "trajscore.exporters.options",
    "Exported": "trajscore.exporters.export",
    "InspectOptions": "trajscore.viewing.options",
    "Inspection": "trajscore.viewing.inspect",
    "MaskOptions": "trajscore.masking.options",
    "Masking": "trajscore.masking.mask",
    "Metric": "trajscore.metrics",
    "PlanOptions": "trajscore.scoring.options",
    "RecipeRun": "trajscore.recipes.run",
    "Report": "trajscore.ranking.result",
    "ReportOptions": "trajscore.ranking.options",
    "ScoreOptions": "trajscore.scoring.options",
    "ScorePlan": "trajscore.scoring.forecast.plan",
    "ScoreSummary": "trajscore.scoring.run",
    "SelectOptions": "trajscore.selection.options",
    "Selection": "trajscore.selection.select",
    "StatSettings": "trajscore.selection.options",
    "StudentOptions": "trajscore.skills.options",
    "SynthesisOptions": "trajscore.skills.options",
    "TraceOptions": "trajscore.viewing.options",
    "Tracing": "trajscore.viewing.trace",
    "TrajscoreError": "trajscore.errors",
    "UsageError": "trajscore.errors",
    "answer_questions": "trajscore.skills.commands.answer",
    "begin_answers": "trajscore.skills.commands.begin",
    "diagnose_skills": "trajscore.skills.commands.diagnose",
    "diff": "trajscore.selection.diff",
    "doctor": "trajscore.viewing.doctor",
    "export": "trajscore.exporters.export",
    "inspect": "trajscore.viewing.inspect",
    "grade": "trajscore.skills.commands.grade",
    "label_skills": "trajscore.skills.commands.label",
    "mask": "trajscore.masking.mask",
    "merge": "trajscore.scores",
    "pass_rates": "trajscore.skills.commands.pass_rate",
    "prompt_entropies": "trajscore.skills.commands.entropy",
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


if not TYPE_CHECKING:  # a type checker that saw it would believe that any name is there

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            return getattr(importlib.import_module(_HOME[name]), name)
        if name == "metrics":
            return importlib.import_module("trajscore.metrics")
        raise AttributeError(f"module 'trajscore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
