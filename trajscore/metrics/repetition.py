"""Loops: compression, repeated lines and repeated n-grams, from row columns that `score` takes from the text
(`rendering/loops.py`).

A model caught in a loop finds every token certain: its perplexity looks excellent and its rank-surprisal ratio explodes. So
these are for `--where`, beside whatever ranks, and `select` counts the rows that look like loops. All are null for refused
rows; per dataset each is the mean over trajectories.
"""

from __future__ import annotations

import polars as pl

from trajscore.metrics.base import Metric

_COMPRESSION, _LINES, _NGRAMS = "response_compression", "repeated_lines", "repeated_ngrams"

LOOP_LIMITS = {_COMPRESSION: 7.0, _LINES: 0.65, _NGRAMS: 0.5}
"""Above any of these a response counts as a loop.

Found on 5,194 responses: the shipped corpus, and real ones to GSM8K and MATH-500 (DeepSeek-R1 and 15 other models), of tool
use and of agents. The five that are loops when read have 9.4 to 28 (compression), 0.68 (lines) or 0.58 to 0.95 (n-grams);
all others have at most 5.1, 0.62 and 0.37. Long chains without loops compress by up to 5, which is why the 2.4 that speech
recognition uses would drop most of them.
"""


def compression_ratio() -> pl.Expr:
    """Bytes of the scored text over bytes of its zlib compression. Lower is better: less repetition.

    Grows with length, too: compare responses of similar length, or take a high limit.

    Returns:
        float64 per row, no unit; null for an empty text.

    Source: arXiv 2212.04356, section 4.5, where transcripts of speech above 2.4 count as loops.

    >>> pl.DataFrame({"response_compression": [2.5, None]}).select(compression_ratio()).to_series().to_list()
    [2.5, None]
    """
    return _COMPRESSION_RATIO.value()


def repeated_line_ratio() -> pl.Expr:
    """Share of the non-empty lines that repeat an earlier line. Lower is better.

    Returns:
        float64 per row, in [0, 1), no unit; null where no line holds anything.

    Source: arXiv 2112.11446, Appendix A, which drops documents above 0.3.

    >>> pl.DataFrame({"repeated_lines": [0.5, None]}).select(repeated_line_ratio()).to_series().to_list()
    [0.5, None]
    """
    return _REPEATED_LINE_RATIO.value()


def repeated_ngram_ratio() -> pl.Expr:
    """Share of the n-grams of 20 bytes that stood in the same line before. Lower is better.

    Returns:
        float64 per row, in [0, 1), no unit; null where no line has 20 bytes.

    Source: arXiv 2112.11446, Appendix A, has such shares of words; bytes also see loops without spaces.

    >>> pl.DataFrame({"repeated_ngrams": [0.5, None]}).select(repeated_ngram_ratio()).to_series().to_list()
    [0.5, None]
    """
    return _REPEATED_NGRAM_RATIO.value()


def loop() -> pl.Expr:
    """1 where the response looks like a loop: a value above its limit in `LOOP_LIMITS`; else 0. Lower is better.

    `--where "loop = 0"` drops loops. Per dataset it is the share of loops.

    Returns:
        float64 per row, no unit; null where all three values are.

    Source: the quantities are those of arXiv 2112.11446 and 2212.04356; the limits are ours, see `LOOP_LIMITS`.

    >>> rows = pl.DataFrame({"response_compression": [17.6, 2.0], "repeated_lines": [0.0, None], "repeated_ngrams": [0.9, 0.1]})
    >>> rows.select(loop()).to_series().to_list()
    [1.0, 0.0]
    """
    return _LOOP.value()


def _row(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float64)


def _loop() -> pl.Expr:
    # NaN is above everything in polars, and is no sign of a loop.
    values = {name: _row(name).fill_nan(None) for name in LOOP_LIMITS}
    above = pl.any_horizontal(values[name] > limit for name, limit in LOOP_LIMITS.items()).fill_null(False)
    known = pl.any_horizontal(value.is_not_null() for value in values.values())
    return pl.when(known).then(above.cast(pl.Float64))


_COMPRESSION_RATIO = Metric(
    name="compression_ratio",
    numerator=lambda: _row(_COMPRESSION),
    unit="",
    direction="lower",
    columns=(_COMPRESSION,),
    source="arXiv 2212.04356, section 4.5",
    meaning="bytes of the scored text over its compressed bytes; a loop stands out, and so do long texts",
)
_REPEATED_LINE_RATIO = Metric(
    name="repeated_line_ratio",
    numerator=lambda: _row(_LINES),
    unit="",
    direction="lower",
    columns=(_LINES,),
    source="arXiv 2112.11446, Appendix A",
    meaning="share of the non-empty lines that repeat an earlier one",
)
_REPEATED_NGRAM_RATIO = Metric(
    name="repeated_ngram_ratio",
    numerator=lambda: _row(_NGRAMS),
    unit="",
    direction="lower",
    columns=(_NGRAMS,),
    source="arXiv 2112.11446, Appendix A, over bytes in place of words",
    meaning="share of the n-grams of 20 bytes that stood in the same line before",
)
_LOOP = Metric(
    name="loop",
    numerator=_loop,
    unit="",
    direction="lower",
    columns=tuple(LOOP_LIMITS),
    source="the limits are ours; the shares are those of arXiv 2112.11446 and 2212.04356",
    meaning="1 where the text looks like a loop: compression above 7, repeated lines above 0.65 or n-grams above 0.5",
)

REPETITION = (
    _COMPRESSION_RATIO,
    _REPEATED_LINE_RATIO,
    _REPEATED_NGRAM_RATIO,
    _LOOP,
)
"""The metrics of this family, in the order in which they are listed."""
