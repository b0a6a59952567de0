"""The command `inspect`: finds single trajectories of a score folder and prepares them token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from trajscore.display.charts import Axis, axis_of, small_lines
from trajscore.display.notebook import Shown
from trajscore.errors import DataError, UsageError, did_you_mean
from trajscore.io.atomic import replacing
from trajscore.io.outputs import check_suffix, spare_inputs_of
from trajscore.metrics import METRICS, Metric, find, missing_columns
from trajscore.metrics.measure import boolean_correct, collect, measure
from trajscore.options import keywords_of
from trajscore.rendering.decoding import Decoder
from trajscore.schema import COLUMNS, NO_LOSS, OK
from trajscore.scores import scan
from trajscore.scores.source import UNREADABLE, ScoreSource, open_scores
from trajscore.viewing.options import InspectOptions
from trajscore.viewing.tokens import TokenView, find_statistic, statistics_of

_PLACES = 50
"""Pieces of equal length into which a picture cuts a trajectory."""


@dataclass(frozen=True, repr=False)
class Inspection(Shown):
    """Trajectories to look at.

    Attributes:
        views: the trajectories, in the order asked for.
        by: the statistic that colours them.
        student: the student's name; None where the scores name none.
    """

    views: tuple[TokenView, ...]
    by: str
    student: str | None

    @property
    def frame(self) -> pl.DataFrame:
        """One row per scored token: `id`, `position`, `text` and every statistic that a trajectory here has."""
        tables = [
            pl.DataFrame(
                {
                    "id": [view.id] * len(view.positions),
                    "position": list(view.positions),
                    "text": [view.texts[position] for position in view.positions],
                    **{name: list(each.values) for name, each in view.statistics.items()},
                },
                strict=False,
            )
            for view in self.views
        ]
        return pl.concat(tables, how="diagonal_relaxed") if tables else pl.DataFrame()

    def lines(self) -> list[str]:
        """The trajectories by name."""
        return [f"{view.id}: {len(view.positions):,} scored tokens, {view.status}" for view in self.views]

    def preview(self) -> pl.DataFrame:
        """The tokens with what colours them."""
        table = self.frame
        return table.select(name for name in ("id", "position", "text", self.by) if name in table.columns)

    def pictures(self) -> dict[str, Callable[[], Any]]:
        """Each statistic along every trajectory, the one that colours them first."""
        quantities = {name for view in self.views for name, each in view.statistics.items() if not each.categories}
        names = sorted(quantities, key=lambda name: (name != self.by, name))
        return {name: partial(self._draw_along, name) for name in names}

    def _draw_along(self, name: str) -> Any:
        frame = self.frame.select("id", y=pl.col(name).cast(pl.Float64)).filter(pl.col("y").is_not_null())
        place = (pl.int_range(pl.len()) * _PLACES // pl.len()).over("id") * (100 / _PLACES)
        rows = (
            frame.group_by(pl.col("id").alias("name"), place.alias("x"), maintain_order=True)
            .agg(pl.col("y").mean())
            .to_dicts()
        )
        unit = next((view.statistics[name].unit for view in self.views if name in view.statistics), "")
        y = axis_of((row["y"] for row in rows), f"{name}, {unit}" if unit else name, log="rank" in name)
        title = f"{name} along each trajectory, means of {_PLACES} pieces"
        return None if y is None else small_lines(rows, Axis(0.0, 100.0, "place in the trajectory, %"), y, title)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {"student": self.student, "by": self.by, "trajectories": [asdict(view) for view in self.views]}


@keywords_of(InspectOptions)
def inspect(options: InspectOptions) -> Inspection:
    """Look at single trajectories, token by token.

    Returns:
        The trajectories in the order asked for.

    Raises:
        UsageError: not exactly one of id, worst and best, or an unknown id, statistic or metric.
        DataError: a file cannot be read.
        TrajscoreError: the page cannot be written.
    """
    spare_inputs_of(options)
    page = None if options.out is None else check_suffix(options.out, (".html", ".htm"), "--out")
    folders = [options.scores] if isinstance(options.scores, str | Path) else list(options.scores)
    source = open_scores(folders)
    (ranked,) = find([options.metric])
    if options.id is None:
        if ranked.direction is None:
            raise UsageError(
                f"{ranked.name} has no direction: no source shows which end is better.", "Name another --metric."
            )
        count = options.worst if options.worst is not None else options.best
        names = _extreme(source, ranked, int(count or 0), options.best is not None)
    else:
        names = list(dict.fromkeys(options.id))
    metrics = [m for m in METRICS.values() if m.kind == "row" and not missing_columns(m, source.columns)]
    views = tuple(view for name in names for view in _views(folders, name, metrics, options.mask))
    made = Inspection(views, find_statistic(options.by, views), source.student_name)
    if page is not None:
        from trajscore.viewing.token_page import render

        with replacing(page) as temporary:
            temporary.write_text(render(views, made.by, made.student), "utf-8")
    return made


def _extreme(source: ScoreSource, metric: Metric, count: int, best: bool) -> list[str]:
    table = measure(source, [metric]).filter(pl.col(metric.name).is_not_null())
    falling = (metric.direction == "lower") != best
    names: list[str] = table.sort(metric.name, "id", descending=[falling, False])["id"].head(count).to_list()
    if not names:
        raise UsageError(f"no trajectory has a value of {metric.name}.", "Look at one with --id.")
    return names


def _views(
    folders: Sequence[str | Path], name: str, metrics: Sequence[Metric], mask: str | Path | None
) -> list[TokenView]:
    for folder in folders:
        frame = scan(folder).filter(pl.col("id") == name)
        # Not the corpus's own columns: they may hold what Python cannot (a date after the year 9999).
        wanted = [name for name in frame.collect_schema() if name in COLUMNS or name == "correct"]
        values = [metric.value().alias(f"trajscore.{metric.name}") for metric in metrics]
        rows = collect(frame.select(*wanted, *values))
        if rows.height:
            decoder = Decoder(folder) if (rows["status"] == OK).any() else None
            return [_view(row, decoder, metrics, mask) for row in rows.iter_rows(named=True)]
    known = collect(scan(folders).select(pl.col("id").drop_nulls().unique()))["id"].to_list()
    near = did_you_mean(name, known)
    raise UsageError(
        f"no trajectory has the id {name!r}.",
        near if near.startswith("Did") else f"There are {len(known)} others, such as {min(known, default='none')}.",
    )


def _view(
    row: dict[str, Any], decoder: Decoder | None, metrics: Sequence[Metric], mask: str | Path | None
) -> TokenView:
    scored = row["status"] == OK and decoder is not None
    ids = row["input_ids"] if scored else []
    weights = _weights(Path(mask), row) if mask is not None and scored else None
    return TokenView(
        id=row["id"],
        prompt_id=row["prompt_id"],
        teacher=row.get("teacher"),
        status=row["status"],
        detail=row.get("status_detail"),
        correct=_correct(row.get("correct")),
        metrics={metric.name: row[f"trajscore.{metric.name}"] for metric in metrics},
        texts=tuple(decoder.texts(ids)) if decoder is not None and scored else (),
        positions=tuple(row["positions"]) if scored else (),
        statistics=statistics_of(row, weights),
    )


def _correct(value: Any) -> bool | None:
    try:
        return boolean_correct(pl.Series("correct", [value]))[0]  # type: ignore[no-any-return]
    except UsageError:
        return None


def _weights(path: Path, row: dict[str, Any]) -> list[float]:
    """Each scored token's weight in the loss, from a mask file.

    Raises:
        UsageError: the file holds no such trajectory, or one of other tokens.
        DataError: it cannot be read.
    """
    check_suffix(path, (".parquet", ".jsonl"), "--mask")
    try:
        frame = pl.scan_parquet(path, glob=False) if path.suffix == ".parquet" else pl.scan_ndjson(path)
        kinds = {"input_ids": pl.Int64, "labels": pl.Int64, "loss_weight": pl.Float64}
        wanted = [pl.col(name).cast(pl.List(kinds[name])) for name in kinds if name in frame.collect_schema()]
        found = frame.filter(pl.col("id") == row["id"]).select(wanted).collect(engine="streaming")
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}).", "Give a file that `trajscore mask` wrote.") from error
    if not found.height:
        raise UsageError(f"{path}: holds no mask of {row['id']!r}.", "Mask the same scores.")
    (line,) = found.head(1).iter_rows(named=True)
    if line.get("input_ids") != row["input_ids"] or "labels" not in line:
        raise UsageError(f"{path}: the mask of {row['id']!r} is for other tokens.", "Mask the same scores.")
    soft = line.get("loss_weight")
    given = line["labels"] if soft is None else soft
    if given is None or len(given) != len(row["input_ids"]) or None in given:
        raise DataError(f"{path}: the mask of {row['id']!r} has no number for each token.", "Mask again.")
    every = [float(label != NO_LOSS) for label in given] if soft is None else given
    return [every[position] for position in row["positions"]]
