"""How much samples of one prompt differ: by hand, against plain Python, and independent of order and parts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import trajscore as ts
from tests.helpers.score_tables import refused, trajectory, write_folder
from trajscore.errors import UsageError
from trajscore.ranking.diversity import ALIKE, ALL, NGRAM


def _row(number: int, prompt: str, teacher: str, tokens: list[int], answer: int) -> dict[str, Any]:
    """A sample whose last `answer` tokens are its answer."""
    n = len(tokens)
    row = trajectory(number, [1] * n, [1.0] * n, prompt_id=prompt, teacher=teacher)
    return row | {"input_ids": [0, *tokens], "phase": [0] * (n - answer) + [2] * answer}


def _by_part(folder: Path) -> dict[tuple[str, str], Any]:
    found = ts.report(folder, metrics=["length"], diversity=True).students[0].diversity
    return {(each.teacher, each.part): each for each in found}


def test_by_hand(tmp_path: Path) -> None:
    rows = [
        _row(0, "p", "A", [1, 2, 3, 4, 5], 1),
        _row(1, "p", "A", [1, 2, 3, 4, 5], 1),  # says the same
        _row(2, "p", "A", [1, 2, 3, 4, 6], 1),  # one 4-gram of three is common
        _row(3, "q", "A", [7, 8], 0),  # too short for a 4-gram, and without an answer
        _row(4, "q", "A", [7, 9], 0),
        _row(5, "p", "B", [1, 2, 3, 4], 1),  # one sample only
        refused(6, "too_long", prompt_id="p", teacher="B"),
    ]
    found = _by_part(write_folder(tmp_path / "s", rows))
    assert set(found) == {("A", ALL), ("A", "p"), ("A", "q")}
    p, q, every = (found["A", part] for part in ("p", "q", ALL))
    # 1234 2345 | 1234 2345 | 1234 2346: three distinct of six; answers 5 5 6.
    assert (p.rows, p.distinct_ngrams, p.distinct_answers, p.near_duplicates) == (3, 3 / 6, 2 / 3, 1 / 3)
    assert (q.rows, q.distinct_answers, q.near_duplicates) == (2, None, 0.0)
    assert (every.rows, every.distinct_answers, every.near_duplicates) == (5, 2 / 3, pytest.approx(1 / 6))


def test_against_plain_python_whatever_the_order_and_parts(tmp_path: Path) -> None:
    draw = random.Random(3)
    rows = []
    for number in range(60):
        tokens = [draw.randrange(3) for _ in range(draw.randrange(4, 12))]
        rows.append(_row(number, f"p{draw.randrange(6)}", draw.choice("AB"), tokens, draw.randrange(1, 4)))
    found = _by_part(write_folder(tmp_path / "s", rows, part_rows=7))
    assert found == _by_part(write_folder(tmp_path / "t", rows[::-1], part_rows=50))
    for (teacher, prompt), each in found.items():
        own = [row for row in rows if (row["teacher"], row["prompt_id"]) == (teacher, prompt)]
        if prompt == ALL:
            parts = [line for (name, part), line in found.items() if name == teacher and part != ALL]
            assert each.distinct_ngrams == pytest.approx(sum(line.distinct_ngrams for line in parts) / len(parts))
            continue
        texts = [row["input_ids"][1:] for row in own]
        grams = [[tuple(text[n : n + NGRAM]) for n in range(len(text) - NGRAM + 1)] for text in texts]
        pooled = [gram for each_grams in grams for gram in each_grams]
        assert each.distinct_ngrams == len(set(pooled)) / len(pooled)
        answers = {tuple(row["input_ids"][-row["phase"].count(2) :]) for row in own}
        assert each.distinct_answers == len(answers) / len(own)
        repeated = 0
        for number, mine in enumerate(map(set, grams)):
            earlier = [set(other) for other in grams[:number]]
            repeated += any(len(mine & other) / len(mine | other) >= ALIKE for other in earlier)
        assert each.near_duplicates == repeated / len(own)
        assert len(own) > 1


def test_a_table_has_no_samples(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("student,teacher,rsr\nS,A,1\n", "utf-8")
    with pytest.raises(UsageError, match="--diversity"):
        ts.report(table=tmp_path / "t.csv", diversity=True)
