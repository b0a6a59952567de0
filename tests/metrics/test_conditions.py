"""What `--where` may say: expressions over one row and nothing else, of any size and form that somebody may type."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from trajscore.errors import UsageError
from trajscore.metrics.conditions import FUNCTIONS, parse_condition

FRAME = pl.DataFrame(
    {
        "rsr": [1.5, None, float("nan"), float("inf")],
        "teacher": ["A", "B\n", None, ""],
        "correct": [True, False, None, True],
        "n_tokens": [1, 2, 0, 2**20],
        "student_rank": [[1.0], [], None, [2.0, None]],
    }
)

ALLOWED = {
    "rsr < 3": [True, None, False, False],
    "teacher = 'A' AND NOT correct IS NULL": [True, False, False, False],
    "teacher IN ('A', 'read_csv(x)', 'it''s -- SELECT') OR n_tokens BETWEEN 2 AND 5": [True, True, None, False],
    "CAST(n_tokens AS DECIMAL(10, 2)) > 1.5": [False, True, False, True],
    "CASE WHEN (correct) THEN (n_tokens > 0) ELSE FALSE END": [True, False, False, True],
    "teacher IS DISTINCT FROM 'A'": [False, True, True, True],
    "LOWER(\"teacher\") LIKE 'a%'": [True, False, None, False],
    "COALESCE(n_tokens::INT, 0) + ABS(-1) >= 2": [True, True, False, True],
    "ARRAY_LENGTH(student_rank) > 1": [False, False, None, True],
}


@pytest.mark.parametrize("where", ALLOWED)
def test_expressions_of_one_row_by_hand(where: str) -> None:
    assert FRAME.select(w=parse_condition(where))["w"].to_list() == ALLOWED[where]


REFUSED = [
    "id IN (SELECT column_1 FROM read_csv('FILE'))",
    "id IN (select * from read_parquet('FILE'))",
    "EXISTS (SELECT 1 FROM read_ipc('FILE'))",
    "id = read_csv('FILE')",
    "id IN (FROM read_json('FILE'))",
    "id IN (FROM 'FILE')",
    "id IN (TABLE x)",
    "id IN (VALUES (1))",
    "\"read_csv\"('FILE') = 1",
    "id = '' OR E'\\'' = id OR id IN (SELECT 1)",
    "id = $$ ' $$ OR id IN (SELECT 1)",
    "id = `'` OR id IN (SELECT 1) OR id = `'`",
    "id = 1 --' \n OR id IN (SELECT 1)",
    "id = 1 /*' */ OR id IN (SELECT 1)",
    "id = X'00'",
    "id = 1; SELECT 1",
    "WITH a AS (SELECT 1) SELECT * FROM a",
    "AVG(rsr) > 1",
    "ROW_NUMBER() > 1",
    "SUM(rsr) OVER (PARTITION BY teacher) > 1",
    "COLUMNS('.*') > 1",
    "rsr > ALL (SELECT 1)",
    "UNNEST(student_rank) > 1",
    "GREATEST() > 1",
    "rsr // NULL > 1",
    "rsr > @x",
    "rsr > ?",
    "rsr > :x",
    "\x00",
    "",
    "(" * 1000 + "rsr" + ")" * 1000 + " > 1",
    "ABS(" * 39 + "rsr" + ")" * 39 + " > 1 AND" + " NOT" * 10_000 + " correct",
    " OR ".join(f"n_tokens = {i}" for i in range(500)),
    " OR ".join(f"n_tokens = {i}" for i in range(100_000)),
    "+".join(["rsr"] * 5000) + " > 1",
    "- " * 5000 + "rsr > 1",
    "rsr" + "::INT" * 30_000 + " > 1",
    "CASE WHEN correct THEN " * 3000 + "1" + " END" * 3000,
    "x" * 10_000_000,
    "[" * 5000,
    "rsr[" * 5000,
]


@pytest.mark.parametrize("where", REFUSED, ids=range(len(REFUSED)))
def test_everything_else_is_a_short_message_and_opens_no_file(where: str, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("secret\nsecret\n")
    with pytest.raises(UsageError, match="--where") as caught:
        parse_condition(where.replace("FILE", str(tmp_path / "secret.csv")))
    assert len(str(caught.value)) < 1500
    assert "secret\n" not in str(caught.value)


def test_hundreds_of_values_are_a_list() -> None:
    """What the message about too many ORs advises."""
    where = f"n_tokens IN ({', '.join(map(str, range(20_000)))})"
    assert FRAME.select(w=parse_condition(where))["w"].to_list() == [True, True, True, False]


def test_the_largest_allowed_conditions_run_in_a_process_of_their_own() -> None:
    """At the bounds polars' recursion must hold: where it does not, the process dies."""
    code = """
import polars as pl
from trajscore.metrics.conditions import parse_condition
frame = pl.DataFrame({"a": [0, 1]}).lazy()
for where in (" OR ".join("a = 1" for _ in range(200)), "+".join(["a"] * 399) + " > 9",
              "ABS(" * 39 + "a" + ")" * 39 + " > 0", "CASE WHEN a=1 THEN 1 " + "WHEN a=1 THEN 1 " * 120 + "ELSE 0 END = 1"):
    print(frame.filter(parse_condition(where)).collect(engine="streaming").height)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["1"] * 4), done.stderr


def _conditions(draw: random.Random, number: int) -> Iterator[str]:
    names = [*FRAME.columns, "'A'", "'it''s'", "3", "2.5", "1e300", "-1", "NULL", "TRUE", '"rsr"']
    noise = [
        *names,
        "(",
        ")",
        ",",
        "[",
        "]",
        "::",
        "SELECT",
        "FROM",
        "read_csv",
        "AS INT",
        "IS NOT",
        "DISTINCT",
        "--",
        "/*",
    ]
    noise += ["$$", "`x`", "E'\\'' OR", "\\", "?", "9" * 30, "COLUMNS", "*", "AVG", "OVER", "\u202e", "\x1b"]
    operators = ["+", "-", "*", "/", "%", "=", "<", "||", "AND", "OR", "LIKE", "IN", "//", "&", "<=>", "~", "IS"]
    functions = sorted(FUNCTIONS)

    def some(depth: int) -> str:
        form = draw.random()
        if depth == 0 or form < 0.3:
            return draw.choice(names)
        if form < 0.6:
            return f"{draw.choice(functions)}({', '.join(some(depth - 1) for _ in range(draw.randrange(1, 4)))})"
        if form < 0.9:
            return f"({some(depth - 1)} {draw.choice(operators)} {some(depth - 1)})"
        return f"CASE WHEN {some(depth - 1)} THEN {some(depth - 1)} ELSE {some(depth - 1)} END"

    for _ in range(number):
        yield some(4) if draw.random() < 0.6 else " ".join(draw.choices(noise + operators + functions, k=9))


def _fuzz(number: int) -> None:
    read = 0
    for where in _conditions(random.Random(3), number):
        try:
            parse_condition(where)
            read += 1
        except UsageError:
            continue
    assert number / 10 < read < number


def test_random_conditions_end_in_an_expression_or_a_message() -> None:
    _fuzz(20_000)


@pytest.mark.slow
def test_a_million_random_conditions() -> None:
    _fuzz(1_000_000)


def test_a_text_ends_where_polars_ends_it() -> None:
    """Where it did not, what polars takes for a query could hide in what the check takes for a text."""
    draw, seen = random.Random(7), 0
    for _ in range(3000):
        inner = "".join(draw.choices("''\\\"a$-/*; E(", k=draw.randrange(8)))
        if inner.replace("''", "").count("'"):
            continue
        seen += 1
        same = FRAME.select(teacher=pl.lit(inner.replace("''", "'"))).select(w=parse_condition(f"teacher = '{inner}'"))
        assert same["w"].to_list() == [True], inner
    assert seen > 500
