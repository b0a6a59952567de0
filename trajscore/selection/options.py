"""Every option of `trajscore select` and `diff`. What those of `select` mean together is said by `policy`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from trajscore.options import USUAL, Options, argument, option
from trajscore.options.groups import MetricsFileOptions, ScoredOptions

CARD = "README.md"
"""The name of a selection's card, which the hub shows."""

_STAT = "--metric stat"


def _metrics() -> Collection[str]:
    from trajscore.metrics import METRICS

    return METRICS


def _presets() -> Collection[str]:
    from trajscore.selection.presets import PRESETS

    return PRESETS


class StatSettings(Options):
    """What the metric `stat` (STAT-Sel, arXiv 2510.10023) reads: questions are drawn for the student's missing skills."""

    profile: Path | str | None = option(
        default=None, panel="Questions", metavar="FILE", help=f"For {_STAT}: what `trajscore skills profile` wrote."
    )
    skill_map: Path | str | None = option(
        default=None, panel="Questions", metavar="FILE", help=f"For {_STAT}: what `trajscore skills label` wrote."
    )
    per_skill: int | None = option(
        default=None,
        panel="Questions",
        metavar="N",
        otherwise="5",
        at_least=1,
        help=f"For {_STAT}: questions drawn per difficult question and missing skill.",
    )
    answers: int | None = option(
        default=None,
        panel="Questions",
        metavar="N",
        otherwise="3",
        at_least=1,
        help=f"For {_STAT}: rows kept of each drawn question, best first.",
    )
    total: int | None = option(
        default=None,
        panel="Questions",
        unit="rows",
        otherwise="all",
        at_least=1,
        help=f"For {_STAT}: rows kept, at random.",
    )


class SelectOptions(ScoredOptions, MetricsFileOptions, StatSettings):
    """Everything `select` can be told. None stands for what was not given, which a preset may then say."""

    def also_writes(self) -> dict[str, Path]:
        """The card beside the file."""
        return {"--card": Path(self.out).with_name(CARD)} if self.card and self.out is not None else {}

    metric: Sequence[str] | None = option(
        default=None,
        kw_only=False,
        panel=USUAL,
        metavar="NAME[:WEIGHT][,KEY=VALUE...]",
        otherwise="rsr",
        suggest=_metrics,
        help="Metric to rank by: all are computed and written, the first ranks, or all do with --combine. Parameters follow, "
        "as in rsr,r_max=500. See `trajscore list metrics`.",
    )
    preset: str | None = option(
        default=None,
        panel="Metrics",
        metavar="NAME",
        suggest=_presets,
        help="A published selection: the flags that it stands for are printed, yours win. See `trajscore list presets`.",
    )
    combine: Literal["rank", "zscore"] | None = option(
        default=None,
        panel="Metrics",
        otherwise="off",
        help="Rank by the weighted mean of the metrics' standings: share of the rows that are worse, or standard deviations "
        "better than the mean. A negative weight turns a metric around, and one without a direction needs a weight; a row that "
        "lacks one of them is dropped.",
    )
    combine_within: Literal["corpus", "prompt"] | None = option(
        default=None, panel="Metrics", otherwise="corpus", help="The rows that --combine compares."
    )
    order: Literal["ascending", "asc", "descending", "desc", "random"] | None = option(
        default=None,
        panel="Metrics",
        metavar="asc|desc|random",
        otherwise="the first metric's direction",
        help="Rank ascending or descending, or at random by --seed. Needed where the metric has no direction.",
    )
    where: str | None = option(
        default=None,
        panel="Trajectories",
        metavar="SQL",
        otherwise="all",
        help="Keep rows where this SQL condition on columns and metrics is true, for example "
        "\"rsr < 3 AND teacher = 'QwQ-32B'\". Null counts as false.",
    )
    exclude: Sequence[str] = option(
        default=(),
        panel="Trajectories",
        metavar="FILE",
        help="Drop rows whose prompt shares a run of words with this evaluation set, in any format that a corpus may have; "
        "case, punctuation and spacing do not count.",
    )
    exclude_ngram: int = option(
        default=13,
        panel="Trajectories",
        metavar="N",
        at_least=1,
        help="Words in a row that a prompt must share with --exclude; a shorter prompt must be the same as a whole.",
    )
    prefer: Literal["correct"] | None = option(
        default=None,
        panel=USUAL,
        otherwise="off",
        help="Drop a prompt's incorrect rows if it has a correct one (column `correct`, null counting as incorrect).",
    )
    per_prompt: int | None = option(
        default=None,
        panel=USUAL,
        metavar="K",
        otherwise="all",
        at_least=1,
        help="Best rows kept of each prompt.",
    )
    top: int | None = option(
        default=None,
        panel="Trajectories",
        metavar="K",
        otherwise="all",
        at_least=1,
        help="Best rows kept over all prompts. Excludes --fraction, --max-tokens.",
    )
    fraction: float | None = option(
        default=None,
        panel="Trajectories",
        metavar="F",
        otherwise="all",
        above=0,
        at_most=1,
        help="Share kept of the rows that reach this last step, 0 < F <= 1, rounded down, at least one row.",
    )
    max_tokens: int | None = option(
        default=None,
        panel="Trajectories",
        unit="tokens",
        otherwise="all",
        at_least=1,
        help="Keep the longest prefix of the ranked rows with at most so many scored tokens in all.",
    )
    quota: Sequence[str] | None = option(
        default=None,
        panel="Trajectories",
        metavar="COLUMN[:VALUE]=LIMIT",
        help="At most this share (0.3) of the kept rows, or this number (200) of them, may have the same value in a column, "
        "or this one value; all hold. For example teacher=0.3 or teacher:QwQ-32B=200.",
    )
    weight: Literal["softmax", "rank", "lark", "paced", "draws"] | None = option(
        default=None,
        panel="Weights",
        otherwise="not written",
        help="Write sample_weight, mean 1 over the kept rows: softmax of the ranking value, linear in the rank, LARK's, "
        "p(1-p) of a pass rate, or the draws of --metric stat.",
    )
    weight_within: Literal["corpus", "prompt"] | None = option(
        default=None,
        panel="Weights",
        otherwise="corpus",
        help="The kept rows that softmax and rank compare.",
    )
    temperature: float | None = option(
        default=None,
        panel="Weights",
        metavar="T",
        otherwise="1",
        above=0,
        help="Of --weight softmax, in the unit of the ranking value.",
    )
    weight_column: str | None = option(
        default=None,
        panel="Weights",
        metavar="COLUMN",
        otherwise="pass_rate",
        help="Pass rates of the student for --weight paced.",
    )
    seed: int = option(
        default=0,
        panel="Trajectories",
        metavar="N",
        help="Of --order random, a draw per id, and of the draws of --metric stat.",
    )
    out: str | Path | None = option(
        panel=USUAL,
        default=None,
        metavar="FILE",
        otherwise="not written",
        help="Kept rows, .parquet or .jsonl, replaced whole.",
        writes=True,
    )
    pairs: float | None = option(
        default=None,
        panel="Output",
        metavar="GAP",
        otherwise="off",
        at_least=0,
        help="--out (.jsonl) holds prompt, chosen and rejected for preference training: of each prompt the best and the worst "
        "ranked candidate, where their ranking values differ by at least this.",
    )
    card: bool = option(
        default=False,
        panel="Output",
        help="Write a dataset card, README.md, beside --out: what was kept and how, without paths, hosts or keys.",
    )
    decisions: str | Path | None = option(
        default=None,
        metavar="FILE",
        otherwise="not written",
        help="One line per input row, kept or dropped and by which step: .jsonl, .parquet or .csv.",
        writes=True,
    )
    explain: str | None = option(
        default=None,
        metavar="ID",
        help="Say why this row was kept or dropped, beside the candidates that it competed with.",
        harmless="it only tells",
    )


class DiffOptions(Options):
    """Everything `diff` can be told."""

    a: str | Path = argument(
        kw_only=False,
        metavar="A",
        help="A file that `trajscore select --out` wrote, .parquet or .jsonl.",
        harmless="it is only read",
    )
    b: str | Path = argument(kw_only=False, metavar="B", help="Another one.", harmless="it is only read")
