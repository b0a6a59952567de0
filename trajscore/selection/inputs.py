"""The arguments of `select` as checked options, and the small table with every column that the steps read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from trajscore.errors import UsageError, did_you_mean, nearest_values
from trajscore.metrics import Metric, parse_metric, require
from trajscore.metrics.measure import boolean_correct, measure
from trajscore.options import as_flags
from trajscore.scores.source import ScoreSource
from trajscore.selection.decide import COMBINED, RESERVED, SAMPLE_WEIGHT, needed_columns
from trajscore.selection.options import SelectOptions
from trajscore.selection.policy import Policy, parse_quota
from trajscore.selection.presets import expand

_log = logging.getLogger("trajscore")


_DECIDE = (
    *("metric", "combine", "combine_within", "per_prompt", "top", "fraction", "max_tokens", "quota", "where", "prefer"),
    *("order", "weight", "weight_within", "temperature", "weight_column"),
)
"""The options that a preset may say, and that are None where they were not given."""


def settled(options: SelectOptions) -> dict[str, Any]:
    """What was given, over what the preset says, which is logged.

    Raises:
        UsageError: there is no such preset.
    """
    given = {name: getattr(options, name) for name in _DECIDE if getattr(options, name) is not None}
    if options.preset is None:
        return given
    settings = expand(options.preset, given)
    _log.info("preset %s: %s", options.preset, as_flags(settings))
    return settings


class ReadPolicy(NamedTuple):
    """What decides, and the metrics that it names."""

    policy: Policy
    metrics: tuple[Metric, ...]


def read_policy(
    settings: Mapping[str, Any], source: ScoreSource, options: SelectOptions, known: Mapping[str, Metric]
) -> ReadPolicy:
    """Settings as what decides: metrics with their weights and quotas are read.

    Args:
        settings: options by name, without those that were not given.
        source: the scores, whose columns quotas name.
        options: the seed, and the preset to be recorded.
        known: the metrics that can be named.

    Raises:
        UsageError: a setting is wrong, a metric's column is missing, or what ranks has no direction and none is given.
    """
    own = dict(settings)
    read = [parse_metric(each, known) for each in own.pop("metric", ("rsr",))]
    weights = {metric.name: weight for metric, weight in read}
    named = any(number is not None for number in weights.values())
    quotas = own.pop("quota", ())
    policy = Policy(
        metrics=tuple(weights),
        metric_weights=tuple(1.0 if number is None else number for number in weights.values()) if named else (),
        quotas=tuple(parse_quota(each, source.columns) for each in quotas),
        seed=options.seed,
        preset=options.preset,
        **own,
    )
    metrics = tuple({metric.name: metric for metric, _ in read}.values())
    require(metrics, source.columns)
    _check_directions(metrics, weights, policy)
    return ReadPolicy(policy, metrics)


def _check_directions(metrics: Sequence[Metric], weights: Mapping[str, float | None], policy: Policy) -> None:
    """A metric without a published direction ranks only where the user says which end is better."""
    for metric in metrics if policy.combine else metrics[:1]:
        if metric.direction is not None or policy.order is not None or weights[metric.name] is not None:
            continue
        hint = "Say which end is to be kept: --order asc or --order desc."
        if policy.combine:
            hint = f"Write --metric {metric.name}:1 if higher is to be better, --metric {metric.name}:-1 if lower."
        raise UsageError(f"metric {metric.name!r} has no direction: no source shows which end is better.", hint)


def check_names(metrics: Sequence[Metric]) -> None:
    """Check that no metric is called like a column of the selection.

    Raises:
        UsageError: one is.
    """
    for metric in metrics:
        if metric.name in RESERVED:
            raise UsageError(f"metric {metric.name!r}: a selection has a column of that name.", "Rename the metric.")


def prepared(
    source: ScoreSource, options: Policy, metrics: Sequence[Metric], known: Mapping[str, Metric]
) -> pl.DataFrame:
    """The small table with what the steps read, see `trajscore.selection.decide.decide`.

    Raises:
        UsageError: a column is missing or of the wrong type, or a quota names a value that no row has.
        DataError: the scores cannot be read.
    """
    if options.prefer == "correct":
        _check_correct(source)
    if options.max_tokens is not None and "n_tokens" not in source.columns:
        raise UsageError("--max-tokens reads the column 'n_tokens', which is missing.", "Give what `score` wrote.")
    columns = needed_columns(options)
    _check_columns(columns, source)
    for name in (*options.metrics, *added_columns(options)):
        column = source.metric_column(name)
        if column != name:
            _log.warning("the rows have a column %r already: ours is called %r", name, column)
    table = measure(source, metrics, options.where, columns, known=known)
    table = table.with_columns(pl.col(name).cast(pl.String) for name in columns if name.startswith("quota:"))
    _check_quota_values(table, options)
    if options.prefer == "correct":
        table = table.with_columns(boolean_correct(table["correct"]).alias("correct"))
    if "teacher" not in table.columns:
        table = table.with_columns(teacher=pl.lit(None, pl.String))
    return table


def _check_columns(columns: Mapping[str, str], source: ScoreSource) -> None:
    for use, name in columns.items():
        if name not in source.columns:
            raise UsageError(
                f"--weight reads the column {name!r}, which these scores do not hold.",
                f"Name another with --weight-column. {did_you_mean(name, source.columns)}",
            )
        kind = source.columns[name]
        if use.startswith("quota:") and (kind.is_nested() or kind == pl.Binary):
            raise UsageError(
                f"--quota: the column {name!r} is {kind}.", "Name a column of text, numbers or truth values."
            )
        if use == "weight_value" and not (kind.is_numeric() or kind == pl.Null):
            raise UsageError(f"--weight: the column {name!r} is {kind}.", "Name a column of numbers.")


def _check_quota_values(table: pl.DataFrame, options: Policy) -> None:
    """A value that no row has is a slip of the pen, and its quota would silently limit nothing."""
    for number, quota in enumerate(options.quotas):
        values = table[f"quota:{number}"].drop_nulls()
        if quota.value is not None and table.height and not (values == quota.value).any():
            near = nearest_values(quota.value, values.unique().sort().head(1000))
            raise UsageError(f"--quota {quota.text!r}: no row has this value in the column {quota.column!r}.", near)


def _check_correct(source: ScoreSource) -> None:
    if "correct" not in source.columns:
        raise UsageError(
            "--prefer correct reads the column 'correct', which these scores do not hold.",
            "Add a boolean `correct` to the corpus and score it again, or leave --prefer out.",
        )


def added_columns(options: Policy) -> list[str]:
    """Columns beside the metrics that this selection writes."""
    return [name for name, asked in ((COMBINED, options.combine), (SAMPLE_WEIGHT, options.weight)) if asked]
