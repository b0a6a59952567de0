"""An SQL condition as an expression over one row: what it may be written with, that it looks at no other row, and what of it
the stored columns decide.

The text is checked before polars sees it, because polars' SQL opens files and URLs while it parses (`SELECT ... FROM
read_csv(...)`) and ends the process where a text nests too deeply: an expression is all that passes, of operators and of
functions that polars has for single rows. A condition such as `rsr < AVG(rsr)` would have another meaning for every set of
folders that is read together, so it is refused rather than guessed at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, NoReturn

import polars as pl

from trajscore.errors import UsageError, did_you_mean, first_line


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS = _words(
    """
    ABS ACOS ACOSD ASIN ASIND ATAN ATAN2 ATAN2D ATAND CBRT CEIL CEILING COS COSD COT COTD DEGREES EXP FLOOR LN LOG LOG10
    LOG1P LOG2 MOD PI POW POWER RADIANS ROUND SIGN SIN SIND SQRT TAN TAND BIT_COUNT
    BIT_LENGTH CHAR_LENGTH CHARACTER_LENGTH CONCAT CONCAT_WS ENDS_WITH INITCAP LEFT LENGTH LOWER LTRIM NORMALIZE OCTET_LENGTH
    REGEXP_LIKE REPLACE REVERSE RIGHT RTRIM SPLIT_PART STARTS_WITH STRPOS SUBSTR SUBSTRING TRIM UPPER
    COALESCE GREATEST IF IFNULL LEAST NULLIF
    DATE DATE_PART EXTRACT STRFTIME STRPTIME TIMESTAMP
    ARRAY_CONTAINS ARRAY_GET ARRAY_LENGTH ARRAY_MEAN ARRAY_REVERSE ARRAY_SUM ARRAY_TO_STRING ARRAY_UNIQUE
    CAST TRY_CAST
    """
)
"""The functions of polars' SQL whose value in a row is made of that row."""

_LINKS = _words("AND BETWEEN CASE ILIKE IN IS LIKE NOT OR REGEXP RLIKE THEN WHEN XOR")
_BEFORE_PARENTHESIS = _LINKS | _words("BY ELSE CHAR DECIMAL FLOAT NUMERIC STRING TEXT VARCHAR")
_REFUSED_WORDS = _words(
    """
    ALL ANY DESCRIBE EXCEPT EXISTS EXPLAIN FILTER HAVING INTERSECT INTO JOIN LATERAL LIMIT ORDER OVER PARTITION QUALIFY SELECT
    SHOW SOME TABLE UNION UNNEST VALUES WINDOW WITH WITHIN
    """
)
_WITH_FROM = ("EXTRACT", "SUBSTRING", "TRIM")
_MOST_CHARACTERS = 200_000
_MOST_OPERATORS = 400
_MOST_NESTING = 40

# Where this reads a text otherwise than polars' parser would, it must be the stricter one: prefixed strings (E'..', X'..'),
# dollar quotes, backticks, backslashes and comments are no tokens at all.
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<string>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")+")|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<word>[^\W\d]\w*)|(?P<bad>--|/\*|//)|(?P<operator><=>|<>|<=|>=|!=|==|\|\||!~\*?|~\*?|[-+*/%<>=&|^])|(?P<mark>::|[,.()\[\]])""",
    re.VERBOSE,
)

# What polars calls the nodes that see more than one row; what SQL can express was tried function by function.
_ACROSS_ROWS = frozenset(
    {"Agg", "CumSum", "Correlation", "Explode", "Implode", "Len", "Over", "Quantile", "Rank", "Shift", "SortBy"}
    | {"SubPlan", "Window"}
)


def check_text(where: str) -> None:
    """Check that a condition is an expression, of bounded size, with functions of one row only.

    Raises:
        UsageError: it holds a query, another function, a comment, or more than can be nested.

    >>> check_text("rsr < 3 AND teacher IN ('A', 'read_csv(x)') AND LOWER(id) LIKE 'a%'")
    """
    if len(where) > _MOST_CHARACTERS:
        _refuse(where, f"has {len(where):,} characters", f"At most {_MOST_CHARACTERS:,}.")
    open_names: list[str] = []
    before = ""
    operators = place = 0
    while place < len(where):
        token = _TOKEN.match(where, place)
        kind = "" if token is None else str(token.lastgroup)
        if token is None or kind == "bad":
            _refuse(where, f"{where[place : place + 20]!r} cannot stand there", _EXPRESSION)
        place = token.end()
        if kind == "space":
            continue
        text = token[0].upper() if kind == "word" else token[0]
        if kind == "word" and where[place : place + 1] == "'":
            _refuse(where, f"{token[0]}'...' is no text", "Put a space between a word and a text.")
        allowed_from = before == "DISTINCT" or (bool(open_names) and open_names[-1] in _WITH_FROM and before != "(")
        if text in _REFUSED_WORDS or (text == "FROM" and kind == "word" and not allowed_from):
            _refuse(where, f"{text} belongs to queries, which look at more than one row", _EXPRESSION)
        operators += kind == "operator" or text in _LINKS or text in ("::", "[", ".")
        if operators > _MOST_OPERATORS:
            _refuse(where, f"has more than {_MOST_OPERATORS} operators", "Many values are one: id IN ('a', 'b', ...).")
        if text == "(":
            open_names.append(_called(where, before, place))
            if len(open_names) > _MOST_NESTING:
                _refuse(where, f"nests more than {_MOST_NESTING} parentheses", "Write it flatter.")
        elif text == ")" and open_names:
            open_names.pop()
        before = text


_EXPRESSION = "Write a condition on columns of one row, for example \"rsr < 3 AND teacher = 'QwQ-32B'\"."


def _called(where: str, before: str, place: int) -> str:
    """The function that a parenthesis belongs to, empty if none."""
    name = before[1:-1].upper() if before.startswith('"') else before
    if not (name[:1].isalpha() or name[:1] == "_") or (name in _BEFORE_PARENTHESIS and not before.startswith('"')):
        return ""
    if name not in FUNCTIONS:
        _refuse(
            where,
            f"{name[:40]} is none of the functions of one row (it looks at more than one row, reads files, or is unknown)",
            did_you_mean(name[:40], FUNCTIONS),
        )
    if name != "PI" and where[place:].lstrip()[:1] == ")":
        _refuse(where, f"{name}() lacks its argument", _EXPRESSION)
    return name


def _refuse(where: str, problem: str, hint: str) -> NoReturn:
    raise UsageError(f"--where {_short(where)}: {problem}.", hint)


def _short(where: str) -> str:
    return repr(where if len(where) <= 200 else f"{where[:200]}...")


def check_per_row(where: str, condition: pl.Expr) -> None:
    """Check that the value of a condition in a row depends on that row alone.

    Raises:
        UsageError: it aggregates, ranks, looks at other rows or holds a subquery.

    >>> check_per_row("rsr < 3 AND teacher = 'AVG(x)'", pl.sql_expr("rsr < 3 AND teacher = 'AVG(x)'"))
    """
    try:
        tree = json.loads(condition.meta.serialize(format="json"))
    except RecursionError:
        _refuse(where, "nests too deeply", "Write it flatter.")
    except pl.exceptions.PolarsError:
        # A subquery has no form as JSON.
        tree = "SubPlan"
    if _ACROSS_ROWS.intersection(_names(tree)):
        _refuse(
            where,
            "looks at more than one row (an aggregate such as AVG, a window, or a subquery)",
            "Compare values of the row itself, for example rsr < 3; --fraction and --per-prompt compare rows.",
        )


def parse_condition(where: str) -> pl.Expr:
    """An SQL condition as an expression.

    Raises:
        UsageError: it is no expression, cannot be read, or its value in a row depends on other rows.
    """
    check_text(where)
    try:
        condition = pl.sql_expr(where)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UsageError(f"--where {_short(where)}: {first_line(error)[:300]}.", _EXPRESSION) from error
    check_per_row(where, condition)
    return condition


def decided_by(condition: pl.Expr, columns: Collection[str]) -> pl.Expr | None:
    """What of a condition the given columns decide: those of its terms joined by AND that read nothing else.

    A row for which it is not true does not meet the condition, whatever the other terms say.

    Args:
        condition: what `parse_condition` gives.
        columns: names of columns.

    Returns:
        The terms, joined by AND; None where every term reads another column or none at all.

    >>> print(decided_by(pl.sql_expr("rsr < 3 AND teacher = 'A' AND (correct OR rsr < 2)"), {"teacher", "correct"}))
    [(col("teacher")) == ("A")]
    """
    terms = [term for term in _terms(condition) if _reads_only(term, columns)]
    return pl.all_horizontal(terms) if len(terms) > 1 else next(iter(terms), None)


def _reads_only(term: pl.Expr, columns: Collection[str]) -> bool:
    names = term.meta.root_names()
    return bool(names) and all(name in columns for name in names)


def _terms(condition: pl.Expr) -> Iterator[pl.Expr]:
    """The terms that AND joins, the last one first."""
    tree = json.loads(condition.meta.serialize(format="json"))
    if isinstance(tree, dict) and tree.get("BinaryExpr", {}).get("op") == "And":
        for term in condition.meta.pop():
            yield from _terms(term)
    else:
        yield condition


def _names(tree: Any) -> Iterator[str]:
    """Names of nodes; those of columns and the text of literals are the user's and are left out."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name not in {"Column", "Literal"}:
                yield name
                yield from _names(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _names(value)
    elif isinstance(tree, str):
        yield tree
