"""Compression and repeated lines, two flags for loops, from the row columns that `score` takes from the text.

A model caught in a loop finds every token certain: its perplexity looks excellent and its rank-surprisal ratio explodes. So
these are for `--where`, beside whatever ranks. Both are null for refused rows; per dataset each is the mean over trajectories.
"""

from __future__ import annotations

import polars as pl

from trajscore.metrics.base import Metric, one, ratio

_COMPRESSION, _LINES = "response_compression", "repeated_lines"


def compression_ratio() -> pl.Expr:
    """Bytes of the scored text over bytes of its zlib compression. Lower is better: less repetition.

    Grows with length, too: compare responses of similar length, or take a high limit.

    Returns:
        float64 per row, no unit; null for an empty text.

    Source: arXiv 2212.04356, section 4.5, where transcripts of speech above 2.4 count as loops.

    >>> pl.DataFrame({"response_compression": [2.5, None]}).select(compression_ratio()).to_series().to_list()
    [2.5, None]
    """
    return ratio(_row(_COMPRESSION), one()).alias("compression_ratio")


def repeated_line_ratio() -> pl.Expr:
    """Share of the non-empty lines that repeat an earlier line. Lower is better.

    Returns:
        float64 per row, in [0, 1), no unit; null where no line holds anything.

    Source: arXiv 2112.11446, Appendix A, which drops documents above 0.3.

    >>> pl.DataFrame({"repeated_lines": [0.5, None]}).select(repeated_line_ratio()).to_series().to_list()
    [0.5, None]
    """
    return ratio(_row(_LINES), one()).alias("repeated_line_ratio")


def _row(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float64)


REPETITION = (
    Metric(
        name="compression_ratio",
        numerator=lambda: _row(_COMPRESSION),
        unit="",
        direction="lower",
        columns=(_COMPRESSION,),
        source="arXiv 2212.04356, section 4.5",
        meaning="bytes of the scored text over its compressed bytes; a loop stands out, and so do long texts",
    ),
    Metric(
        name="repeated_line_ratio",
        numerator=lambda: _row(_LINES),
        unit="",
        direction="lower",
        columns=(_LINES,),
        source="arXiv 2112.11446, Appendix A",
        meaning="share of the non-empty lines that repeat an earlier one",
    ),
)
"""The metrics of this family, in the order in which they are listed."""
