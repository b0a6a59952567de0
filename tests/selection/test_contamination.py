"""Rows whose prompt is in an evaluation set: planted overlaps are found, in whatever spelling, and no others."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trajscore import select
from trajscore.errors import UsageError
from trajscore.selection.contamination import EvaluationSet, words_of

WORDS = ["".join(random.Random(n).choices(string.ascii_lowercase, k=2 + n % 7)) for n in range(400)]


def _sentence(draw: random.Random, words: int) -> list[str]:
    return draw.choices(WORDS, k=words)


def _disguised(draw: random.Random, words: list[str]) -> str:
    """The same words with other case, punctuation and spacing."""
    marks = ["", ",", ";", " -", ".", "!", ")", "\n\n", "\u2014", "\t", " *"]
    return "".join(draw.choice((str.upper, str.title, str.lower))(word) + draw.choice(marks) + " " for word in words)


def _file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _scores(prompts: list[str], **columns: Any) -> pl.LazyFrame:
    rows = range(len(prompts))
    return pl.LazyFrame(
        {
            "id": [f"r{n}" for n in rows],
            "prompt_id": [f"p{n}" for n in rows],
            "status": ["ok" for _ in rows],
            "n_tokens": list(rows),
            "prompt": prompts,
            "response": ["yes" for _ in rows],
            **columns,
        }
    )


def _dropped(scores: pl.LazyFrame, file: Path, **options: Any) -> set[str]:
    made = select(scores, "length", exclude=[str(file)], **options)
    assert made.dropped.get("exclude", 0) == made.decisions.filter(pl.col("step") == "exclude").height
    return set(made.decisions.filter(pl.col("step") == "exclude")["id"])


def test_planted_overlaps_and_no_others(tmp_path: Path) -> None:
    draw = random.Random(0)
    questions = [_sentence(draw, 40) for _ in range(50)]
    prompts, planted = [], set()
    for number in range(200):
        words = _sentence(draw, 60)
        if number % 4 == 0:
            # Twelve words in a row are not enough, thirteen are.
            run = 13 if number % 8 == 0 else 12
            start = draw.randrange(40 - run)
            words[20 : 20 + run] = draw.choice(questions)[start : start + run]
            planted |= {f"r{number}"} if run == 13 else set()
        prompts.append(_disguised(draw, words))
    tests = _file(tmp_path / "test.jsonl", [{"question": _disguised(draw, words)} for words in questions])
    assert _dropped(_scores(prompts), tests) == planted
    assert len(_dropped(_scores(prompts), tests, exclude_ngram=12)) == 50
    assert _dropped(_scores(prompts), tests, exclude_ngram=14) < planted


def test_a_short_prompt_must_be_the_same_as_a_whole(tmp_path: Path) -> None:
    tests = _file(tmp_path / "t.jsonl", [{"problem": "What is 1,200 + 7?", "answer": "1207"}, {"problem": "Yes"}])
    prompts = ["what is 1200 + 7", "What is 1200 + 7 + 1?", "1207", "yes", "WHAT IS\n1200+7"]
    assert _dropped(_scores(prompts), tests) == {"r0", "r4"}


def test_every_text_of_an_evaluation_set_counts_but_its_instructions(tmp_path: Path) -> None:
    instruction = "you are a helpful assistant think step by step and put the final answer in a box"
    shared = "a train leaves the station at nine and travels for three hours at sixty miles"
    turns = [
        {"role": "system", "content": instruction},
        {"role": "user", "content": [{"type": "text", "text": shared}]},
    ]
    tests = _file(tmp_path / "t.jsonl", [{"meta": {"messages": turns}, "system": instruction}])
    conversations = [
        [{"role": "system", "content": instruction}, {"role": "user", "content": "Two and two?"}],
        [{"role": "user", "content": "So: " + shared}],
        [{"role": "user", "content": "And?"}, {"role": "assistant", "content": shared}],
    ]
    answered = [[*turns, {"role": "assistant", "content": "4"}] for turns in conversations]
    scores = _scores(["", "", ""]).drop("prompt", "response").with_columns(messages=pl.Series(answered))
    assert _dropped(scores, tests) == {"r1"}


def test_it_says_what_was_found_and_what_could_not_be_compared(tmp_path: Path) -> None:
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    tests = _file(tmp_path / "t.jsonl", [{"q": text}])
    made = select(_scores([text, text + " fourteen", "other"]), "length", exclude=[str(tests)], explain="r0")
    (note,) = (note for note in made.summary["notes"] if "--exclude" in note)
    assert note == f'2 prompts share words with --exclude, 2 of them "{text}"; are these words of an instruction?'
    assert "evaluation set" in str(made.explanation and made.explanation["reason"])
    ids_only = _scores(["x"]).drop("prompt", "response")
    assert any("no text" in note for note in select(ids_only, "length", exclude=[str(tests)]).summary["notes"])


def test_a_set_without_texts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no text"):
        EvaluationSet([_file(tmp_path / "t.jsonl", [{"label": 3}])], 13)


def test_words_of_scripts_without_spaces() -> None:
    assert words_of("\u4f60\u597d, \u4e16\u754c abc") == ["\u4f60", "\u597d", "\u4e16", "\u754c", "abc"]
