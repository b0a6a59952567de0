"""Every option of `trajscore mask`. Which of them a rule takes is said by `rules`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trajscore.options import option
from trajscore.options.groups import ScoredOptions

if TYPE_CHECKING:
    from trajscore.masking.schedule import Schedule


def _rules() -> Collection[str]:
    from trajscore.masking.rules import RULES

    return RULES


def _presets() -> Collection[str]:
    from trajscore.masking.presets import MASK_PRESETS

    return MASK_PRESETS


class MaskOptions(ScoredOptions):
    """Everything `mask` can be told. None stands for what was not given, which a preset or the rule may then say."""

    def also_writes(self) -> dict[str, Path]:
        """A file per stage."""
        if self.stages is None or self.out is None:
            return {}
        return {f"--out of stage {number}": path for number, path in enumerate(self.stages.files(Path(self.out)), 1)}

    @property
    def stages(self) -> Schedule | None:
        """The stages that were asked for, or those of the preset; None without any.

        Raises:
            UsageError: they cannot be read.
        """
        from trajscore.masking.presets import MASK_PRESETS
        from trajscore.masking.schedule import parse_schedule

        preset = MASK_PRESETS.get(self.preset or "")
        text = self.schedule or (preset.settings.get("schedule") if preset else None)
        return None if text is None else parse_schedule(text)

    rule: str | None = option(
        default=None,
        kw_only=False,
        panel="Tokens",
        metavar="NAME[,KEY=VALUE...]",
        suggest=_rules,
        help="Which tokens count: see `trajscore list rules`. Parameters follow: soft_or,clip=1. Needed without --preset.",
    )
    preset: str | None = option(
        default=None,
        panel="Tokens",
        metavar="NAME",
        suggest=_presets,
        help="A published mask in place of --rule: the flags that it stands for are printed, yours win. See "
        "`trajscore list presets`.",
    )
    keep: float | None = option(
        default=None,
        panel="Tokens",
        metavar="R",
        above=0,
        at_most=1,
        help="Share of each trajectory's N scored tokens, 0 < R <= 1: exactly max(1, floor(R N)) are kept, among equal "
        "values the earlier ones. Needed by rules that keep a share.",
    )
    seed: int = option(
        default=0,
        panel="Tokens",
        metavar="N",
        help="For rules that draw; the draw depends on seed, id and position only.",
    )
    scope: Literal["corpus", "trajectory"] = option(
        default="corpus",
        panel="Tokens",
        help="For soft_or and q3: values are normalised over all rows that are masked, or within each.",
    )
    by: str | None = option(
        default=None,
        panel="Tokens",
        metavar="COLUMN",
        otherwise="kl_student_teacher",
        help="For divergence: kl_student_teacher, kl_teacher_student, js, one of these with _topk, a column of --extra, tckd, "
        "nckd.",
    )
    tau: float | None = option(
        default=None,
        panel="Tokens",
        unit="nats",
        otherwise="1",
        above=0,
        help="For confidence_gap: temperature of the gate.",
    )
    beta: float | None = option(
        default=None,
        panel="Tokens",
        metavar="P",
        otherwise="0.1",
        at_least=0,
        below=1,
        help="For teacher_sentences: difference of sentence probabilities above which the teacher leads.",
    )
    low: float | None = option(
        default=None,
        panel="Tokens",
        unit="nats",
        otherwise="open",
        at_least=0,
        help="For surprisal_band: smallest surprisal kept.",
    )
    high: float | None = option(
        default=None,
        panel="Tokens",
        unit="nats",
        otherwise="open",
        at_least=0,
        help="For surprisal_band: largest surprisal kept.",
    )
    bound: float | None = option(
        default=None,
        panel="Tokens",
        unit="nats",
        otherwise="open",
        above=0,
        help="For opd_reward: rewards are clipped to the range from -bound to bound.",
    )
    signed: bool | None = option(
        default=None,
        panel="Tokens",
        flag="--signed/--unsigned",
        otherwise="signed",
        help="For opd_reward: keep negative rewards, which few trainers take, or make them 0.",
    )
    decay: float | None = option(
        default=None,
        panel="Tokens",
        metavar="R",
        otherwise="1",
        above=0,
        at_most=1,
        help="For opd_reward: factor of the weight for each token after the first scored one.",
    )
    importance: bool | None = option(
        default=None,
        panel="Tokens",
        flag="--importance/--no-importance",
        otherwise="no",
        help="For opd_reward: multiply by min(2, p_student / p_sampler); reads sampler_logprob.",
    )
    scaffold: Literal["none", "marker", "trainer"] = option(
        default="marker",
        panel="Tokens",
        help="What has a label besides scored tokens, of weight 1 (opd_reward: its own): the end-of-turn marker, or all that "
        "the trainer's own mask holds (think tags that the template adds, what follows the marker).",
    )
    soft_targets: bool = option(
        default=False,
        panel="Tokens",
        help="Carry the teacher's best entries of each token with a label, as `score --keep-topk` keeps them, for trainers "
        "that distil from them; see `trajscore list exporters`.",
    )
    selected: str | Path | None = option(
        default=None,
        panel="Trajectories",
        metavar="FILE",
        otherwise="all scored rows",
        help="What `trajscore select --out` wrote (.parquet or .jsonl): only its rows, in its order, with its sample_weight.",
    )
    schedule: str | None = option(
        default=None,
        panel="Trajectories",
        metavar="COLUMN=LOW,HIGH[,...]",
        otherwise="off",
        help="Write a file per stage of training, NAME-1, NAME-2, ... in place of --out NAME: the rows with each of these "
        "ascending numbers in a column, such as temperature=0.6,1. Rows with none of them are dropped.",
    )
    out: str | Path | None = option(
        default=None,
        metavar="FILE",
        otherwise="not written",
        help="Masked rows, .parquet or .jsonl, replaced whole. .parquet also keeps how they were made.",
        writes=True,
    )
