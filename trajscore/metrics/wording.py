"""Quality of a response by rule, from its words alone: how many there are, and how often it checks, hedges and concludes.

The counts are row columns that `score` takes from the scored text (`rendering/wording.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from trajscore.metrics.base import Metric
from trajscore.rendering.wording import KEYWORDS

_WORDS = "response_words"
WEIGHTS: Mapping[str, float] = {
    _WORDS: 0.30,
    "verification_words": 0.20,
    "exploration_words": 0.25,
    "conclusion_words": 0.25,
}
"""What each criterion counts (arXiv 2601.14249, Appendix B)."""


def rule_quality() -> pl.Expr:
    """0.30 z(words) + 0.20 z(check, verify) + 0.25 z(perhaps, might) + 0.25 z(therefore, since). Higher is better.

    Keywords are counted per word, and z is in standard deviations (of the population) from the mean over all scored rows; a
    criterion that is the same everywhere adds 0. Whole words count, whatever their case: the source does not say. As an
    expression it is fitted on the frame that it is evaluated on; `select` and `report` fit it on all scored rows, before
    `--where`, and record means and deviations. RSR's strongest baseline: mean absolute correlation 0.65 where RSR has 0.86.

    Returns:
        float64 per row, no unit, mean 0 over the corpus. Null for refused rows and texts without a word.

    Source: arXiv 2601.14249, Appendix B, after LIMO (arXiv 2502.03387).

    >>> rows = {"response_words": [10, 30], "verification_words": [1, 3]}
    >>> rows |= dict.fromkeys(("exploration_words", "conclusion_words"), [0, 0])
    >>> pl.DataFrame(rows).select(rule_quality().round(6)).to_series().to_list()
    [-0.3, 0.3]
    """
    return _RULE_QUALITY.value()


def _criteria() -> dict[str, pl.Expr]:
    """The criteria by column: words, then keywords per word; null in a text without a word."""
    words = pl.col(_WORDS).cast(pl.Float64)
    words = pl.when(words > 0).then(words)
    return {_WORDS: words} | {name: pl.col(name).cast(pl.Float64) / words for name in WEIGHTS if name != _WORDS}


def _quality(**given: Any) -> pl.Expr:
    """The weighted sum, of criteria by name, their means and their deviations."""
    terms = []
    for name, weight in WEIGHTS.items():
        centre, spread = (given.get(f"{name}_{what}", math.nan) for what in ("mean", "deviation"))
        terms.append((given[name] - centre) * (0.0 if spread == 0 else weight / spread))
    # Not with +, whose last bits depend on how polars plans it.
    return pl.sum_horizontal(terms, ignore_nulls=False)


def _fit(features: pl.DataFrame) -> dict[str, float]:
    """Mean and standard deviation of each criterion, to the same bit for every order of the rows."""
    fitted: dict[str, float] = {}
    table = features.drop_nulls()
    for name in table.columns:
        values = table[name].to_list()
        same = not values or min(values) == max(values)
        centre = math.fsum(values) / len(values) if values else math.nan
        spread = 0.0 if same else math.sqrt(math.fsum((value - centre) ** 2 for value in values) / len(values))
        fitted |= {f"{name}_mean": centre, f"{name}_deviation": spread}
    return fitted


_RULE_QUALITY = Metric(
    name="rule_quality",
    numerator=_quality,
    unit="",
    direction="higher",
    columns=(_WORDS, *KEYWORDS),
    source="arXiv 2601.14249, Appendix B",
    meaning="words and keywords of checking, hedging and concluding, in standard deviations over the corpus",
    features=_criteria,
    fit=_fit,
)

WORDING = (_RULE_QUALITY,)
"""The metrics of this family, in the order in which they are listed."""
