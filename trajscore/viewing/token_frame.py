"""`ts.tokens`: scores as a long table, one row per scored token, with the token's text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from trajscore.errors import UsageError, did_you_mean
from trajscore.rendering.decoding import Decoder
from trajscore.schema import COLUMNS, OK
from trajscore.scores import scan
from trajscore.scores.source import reading

_NAMES = ("id", "prompt_id", "teacher")


def tokens(scores: str | Path | Sequence[str | Path], id: str | Sequence[str] | None = None) -> pl.DataFrame:
    """One row per scored token of every scored trajectory, or of those named.

    All of it is in memory: a hundred million tokens take some 10 GiB, so name trajectories of a large corpus.

    Args:
        scores: folders that `trajscore score` wrote.
        id: ids of the trajectories; None for all.

    Returns:
        `id`, `prompt_id`, `teacher`, `position` (in the rendered conversation), `token_id`, `text` (joined, the scored text)
        and every statistic of tokens that the scores hold, such as `student_rank` and `student_surprisal`; in the order of the
        scores.

    Raises:
        UsageError: no trajectory has such an id, or it was refused.
        DataError: the scores or their tokenizer cannot be read.
    """
    folders = [scores] if isinstance(scores, str | Path) else list(scores)
    names = None if id is None else [id] if isinstance(id, str) else list(id)
    with reading():
        found = [_tokens(folder, names) for folder in folders]
        table = pl.concat(found, how="diagonal_relaxed")
    missing = sorted(set(names or []) - set(table["id"].unique()))
    if missing:
        with reading():
            known = scan(folders).filter(pl.col("status") == OK).select(pl.col("id").unique()).collect()["id"].to_list()
        raise UsageError(f"no scored trajectory has the id {missing[0]!r}.", did_you_mean(missing[0], known))
    return table


def _tokens(folder: str | Path, names: Sequence[str] | None) -> pl.DataFrame:
    frame = scan(folder).filter(pl.col("status") == OK)
    if names is not None:
        frame = frame.filter(pl.col("id").is_in(names))
    schema = frame.collect_schema()
    known = dict.fromkeys([*COLUMNS, *(name for name in schema.names() if name in COLUMNS)])
    statistics = [name for name in known if COLUMNS[name].axis == "scored token" and name in schema]
    statistics.remove("positions")
    teacher = pl.col("teacher") if "teacher" in schema else pl.lit(None, pl.String).alias("teacher")
    rows = frame.select(*_NAMES[:2], teacher, "input_ids", pl.col("positions").alias("position"), *statistics).collect()
    decoder = Decoder(folder) if rows.height else None
    texts = []
    for ids, positions in rows.select("input_ids", "position").iter_rows():
        whole = decoder.texts(ids) if decoder else []
        texts.append([whole[position] for position in positions])
    lists = ["position", "token_id", "text", *statistics]
    rows = rows.with_columns(
        pl.Series("text", texts, dtype=pl.List(pl.String)),
        pl.col("input_ids").list.gather(pl.col("position")).alias("token_id"),
    )
    # A column that is null for a row (a teacher that could not read it) is null for each of its tokens.
    empty = pl.col("position").list.eval(pl.lit(None))
    filled = [pl.when(pl.col(name).is_null()).then(empty).otherwise(pl.col(name)).alias(name) for name in statistics]
    return rows.with_columns(filled).select(*_NAMES, *lists).explode(lists).filter(pl.col("position").is_not_null())
