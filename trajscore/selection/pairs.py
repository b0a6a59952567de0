"""`select --pairs GAP`: the best and the worst candidate of a prompt as chosen and rejected, for preference training.

Candidates are the rows that were ranked: what `--where` and `--prefer` dropped is neither chosen nor rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from trajscore.errors import DataError, UsageError
from trajscore.scores.source import ScoreSource
from trajscore.selection.conversations import conversation
from trajscore.selection.decide import COMBINED

NO_RIVAL, GAP_TOO_SMALL = "one candidate", "gap too small"


def find_pairs(table: pl.DataFrame, ranking: str, gap: float) -> tuple[pl.DataFrame, dict[str, int]]:
    """The pairs of a selection, and why the other prompts give none.

    Args:
        table: what `decide` returned.
        ranking: the column that ranks: the first metric, or `combined`.
        gap: least difference of the two values, in the unit of that column, at least 0.

    Returns:
        `prompt_id`, `chosen` and `rejected` (row numbers), `chosen_value`, `rejected_value`, one line per pair, in the order of
        the chosen rows; and the number of prompts without a pair by reason: pairs + these = prompts whose best row was kept.

    Raises:
        UsageError: the gap is negative or no number.

    >>> rows = pl.DataFrame({"row": [0, 1], "id": ["a", "b"], "prompt_id": ["p", "p"], "kept": [True, False],
    ...                      "prompt_rank": [1, 2], "rsr": [2.0, 3.5]})
    >>> find_pairs(rows, "rsr", 1.0)[0].select("chosen", "rejected").rows(), find_pairs(rows, "rsr", 2.0)[1]
    ([(0, 1)], {'one candidate': 0, 'gap too small': 1})
    """
    if not 0 <= gap < float("inf"):
        raise UsageError(f"--pairs is {gap}.", "Give the least difference of the ranking value, at least 0.")
    ranked = table.filter(pl.col("prompt_rank").is_not_null()).sort("prompt_id", "prompt_rank")
    ends = ranked.group_by("prompt_id", maintain_order=True).agg(
        pl.col("kept").first(),
        pl.len(),
        *(pl.col("row").first().alias("chosen"), pl.col("row").last().alias("rejected")),
        *(pl.col(ranking).first().alias("chosen_value"), pl.col(ranking).last().alias("rejected_value")),
    )
    ends = ends.filter("kept").drop("kept")
    far = (pl.col("chosen_value") - pl.col("rejected_value")).abs() >= gap
    pairs = ends.filter(pl.col("len") > 1, far).drop("len").sort("chosen")
    alone = int((ends["len"] == 1).sum())
    return pairs, {NO_RIVAL: alone, GAP_TOO_SMALL: ends.height - alone - pairs.height}


def pair_rows(source: ScoreSource, pairs: pl.DataFrame, ranking: str) -> Iterator[dict[str, Any]]:
    """Each pair as a row of conversations: `prompt`, `chosen`, `rejected` (lists of messages), their ids and values.

    The prompt is everything before the first assistant's turn.

    Raises:
        DataError: a row is no conversation.
    """
    number = "trajscore.row"
    wanted = pl.concat([pairs["chosen"], pairs["rejected"]]).implode()
    frame = source.frame.select(source.output_columns).with_row_index(number).filter(pl.col(number).is_in(wanted))
    rows = {row.pop(number): row for row in frame.collect(engine="streaming").iter_rows(named=True)}
    for pair in pairs.iter_rows(named=True):
        prompt, chosen = _turns(rows[pair["chosen"]])
        _, rejected = _turns(rows[pair["rejected"]])
        yield {
            **{"prompt": prompt, "chosen": chosen, "rejected": rejected, "prompt_id": pair["prompt_id"]},
            **{f"{side}_id": rows[pair[side]]["id"] for side in ("chosen", "rejected")},
            **{f"{side}_{ranking}": pair[f"{side}_value"] for side in ("chosen", "rejected")},
        }


def _turns(row: Mapping[str, Any]) -> tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]]:
    """The messages before the first assistant's turn, and the others."""
    messages = conversation(row)
    if messages is None:
        raise DataError(f"row {row['id']!r} is no conversation, so it cannot be a pair.", "Leave --pairs out.")
    clean = [{key: value for key, value in message.items() if value is not None} for message in messages]
    first = next((place for place, message in enumerate(clean) if message["role"] == "assistant"), len(clean))
    return clean[:first], clean[first:]


def ranking_column(metrics: Sequence[str], combine: str | None) -> str:
    """The column that ranked."""
    return COMBINED if combine else metrics[0]
