"""Every option of `trajscore inspect`, `trace` and `doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trajscore.errors import UsageError
from trajscore.options import Options, argument, option
from trajscore.options.groups import ScoredOptions
from trajscore.options.values import json_object

SHOWN = "it only shows"


class InspectOptions(Options):
    """Everything `inspect` can be told."""

    scores: str | Path | Sequence[str | Path] = argument(
        kw_only=False,
        metavar="SCORES",
        help="Folders that `trajscore score` wrote, of one student.",
        harmless=SHOWN,
    )
    id: Sequence[str] | None = option(
        default=None,
        kw_only=False,
        panel="Trajectories",
        metavar="ID",
        otherwise="by --worst or --best",
        help="Trajectory to show.",
        harmless=SHOWN,
    )
    worst: int | None = option(
        default=None,
        panel="Trajectories",
        metavar="N",
        otherwise="by --id",
        at_least=1,
        help="The N trajectories with the worst --metric, worst first.",
        harmless=SHOWN,
    )
    best: int | None = option(
        default=None,
        panel="Trajectories",
        metavar="N",
        otherwise="by --id",
        at_least=1,
        help="The N trajectories with the best --metric, best first.",
        harmless=SHOWN,
    )
    metric: str = option(
        default="rsr",
        panel="Trajectories",
        metavar="NAME[,KEY=VALUE...]",
        help="What --worst and --best are by; ties: lower id first.",
        harmless=SHOWN,
    )
    by: str = option(
        default="surprisal",
        panel="Tokens",
        metavar="STAT",
        help="What colours the tokens: rank, surprisal, entropy (the student's), any token or sentence column, sentence, "
        "sentence_class, phase, mask.",
        harmless=SHOWN,
    )
    mask: str | Path | None = option(
        default=None,
        panel="Tokens",
        metavar="FILE",
        help="A file of `trajscore mask`; its weights are then --by mask.",
        harmless=SHOWN,
    )
    out: str | Path | None = option(
        default=None,
        metavar="FILE.html",
        otherwise="print in the terminal",
        help="Write a page with search and numbers.",
        writes=True,
    )

    def check_values(self) -> None:
        """How the trajectories are named."""
        if sum(each is not None for each in (self.id, self.worst, self.best)) != 1:
            raise UsageError(
                "give one of --id, --worst and --best.", "For example --id NAME, or --worst 3 --metric rsr."
            )


class TraceOptions(ScoredOptions):
    """Everything `trace` can be told."""

    alpha: float = option(
        default=0.1,
        panel="Statistics",
        metavar="P",
        at_least=0,
        below=1,
        help="Probability difference up to which three models agree, 0 <= P < 1.",
    )
    beta: float = option(
        default=0.1,
        panel="Statistics",
        metavar="P",
        at_least=0,
        below=1,
        help="Probability difference above which teacher and student differ, 0 <= P < 1.",
    )
    out: str | Path | None = option(
        default=None,
        metavar="FILE",
        otherwise="not written",
        help="One line per sentence (.parquet, .csv or .jsonl), or a page with totals, profile and the coloured text (.html); "
        "replaced whole.",
        writes=True,
    )
    text: bool = option(
        default=True,
        help="Whether tables hold the sentences' text, which takes most of the time.",
        harmless=SHOWN,
    )
    show: int = option(
        default=50,
        unit="trajectories",
        metavar="N",
        at_least=0,
        help="Trajectories whose text is on the page, the first ones.",
        harmless=SHOWN,
    )
    tokenizer: str | Path | None = option(
        default=None,
        python_only=True,
        otherwise="the first of the scores",
        help="Score folder whose tokenizer reads the ids; a LazyFrame needs one for text.",
        harmless=SHOWN,
    )


class DoctorOptions(Options):
    """Everything `doctor` can be told."""

    student: str | Path | None = option(
        default=None,
        kw_only=False,
        panel="Models",
        metavar="MODEL",
        help="Also say what its chat template does to conversations; only its tokenizer is loaded.",
        harmless=SHOWN,
    )
    chat_template: str | None = option(
        default=None,
        panel="Models",
        metavar="FILE|MODEL|NAME|trl",
        otherwise="its own, as transformers chooses it",
        help="Template in place of the student's own, as for `score`.",
        harmless=SHOWN,
    )
    chat_template_kwargs: Mapping[str, Any] = option(
        default_factory=dict,
        panel="Models",
        metavar="JSON",
        typed=str,
        parse=json_object,
        help="Variables for the template, as for `score`.",
        harmless=SHOWN,
    )
    reasoning_as: str | None = option(
        default=None,
        panel="Models",
        metavar="think|KEY",
        otherwise="as they are",
        help="Where thoughts go, as for `score`.",
        harmless=SHOWN,
    )
    trust_remote_code: bool = option(
        default=False, panel="Models", help="Run code that comes with the model.", harmless=SHOWN
    )
