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
    from trajscore.shards import merge as merge
    from trajscore.shards import read_manifest as read_manifest
    from trajscore.shards import scan as scan
    from trajscore.shards import verify as verify
    from trajscore.workflows.doctor import doctor as doctor
    from trajscore.workflows.export import export as export
    from trajscore.workflows.inspect import inspect as inspect
    from trajscore.workflows.mask import mask as mask
    from trajscore.workflows.plan import score_plan as score_plan
    from trajscore.workflows.report import report as report
    from trajscore.workflows.score import score as score
    from trajscore.workflows.select import select as select
    from trajscore.workflows.select_stat import StatSettings as StatSettings
    from trajscore.workflows.skills_answer import StudentOptions as StudentOptions
    from trajscore.workflows.skills_answer import answer_questions as answer_questions
    from trajscore.workflows.skills_diagnose import diagnose_skills as diagnose_skills
    from trajscore.workflows.skills_label import label_skills as label_skills
    from trajscore.workflows.skills_label import skill_catalogue as skill_catalogue
    from trajscore.workflows.skills_profile import skill_profile as skill_profile
    from trajscore.workflows.skills_synthesise import SynthesisOptions as SynthesisOptions
    from trajscore.workflows.skills_synthesise import synthesise_questions as synthesise_questions
    from trajscore.workflows.skills_teacher import TeacherOptions as TeacherOptions
    from trajscore.workflows.slurm import slurm_script as slurm_script
    from trajscore.workflows.trace import trace as trace

__version__ = "0.1.0"

_HOME = {
    "DataError": "trajscore.errors",
    "EngineError": "trajscore.errors",
    "TrajscoreError": "trajscore.errors",
    "UsageError": "trajscore.errors",
    "doctor": "trajscore.workflows.doctor",
    "StatSettings": "trajscore.workflows.select_stat",
    "StudentOptions": "trajscore.workflows.skills_answer",
    "SynthesisOptions": "trajscore.workflows.skills_synthesise",
    "TeacherOptions": "trajscore.workflows.skills_teacher",
    "answer_questions": "trajscore.workflows.skills_answer",
    "diagnose_skills": "trajscore.workflows.skills_diagnose",
    "label_skills": "trajscore.workflows.skills_label",
    "export": "trajscore.workflows.export",
    "inspect": "trajscore.workflows.inspect",
    "mask": "trajscore.workflows.mask",
    "merge": "trajscore.shards",
    "read_manifest": "trajscore.shards",
    "report": "trajscore.workflows.report",
    "scan": "trajscore.shards",
    "score": "trajscore.workflows.score",
    "score_plan": "trajscore.workflows.plan",
    "select": "trajscore.workflows.select",
    "skill_catalogue": "trajscore.workflows.skills_label",
    "skill_profile": "trajscore.workflows.skills_profile",
    "slurm_script": "trajscore.workflows.slurm",
    "synthesise_questions": "trajscore.workflows.skills_synthesise",
    "trace": "trajscore.workflows.trace",
    "verify": "trajscore.shards",
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
