"""Each sentence after the prompt and few sentences: against the model on just those tokens, by hand, and at the edges."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import trajscore as ts
from tests.helpers.oracles import model_logits
from tests.helpers.paths import DATA
from tests.helpers.tiny_models import exact_model
from trajscore.engines import TokenScores, TokenSequence
from trajscore.options.groups import RenderOptions
from trajscore.rendering.alignment import Response
from trajscore.rendering.renderer import Rendered, Renderer
from trajscore.scoring.local_context import LOCAL, read_locally, tokens_again, windows
from trajscore.scoring.rows import ScoredRow

STUDENT = DATA / "models" / "student"
FIRST = "Let us see. First 7. Then 3. So 7 + 3 = 10.\nThe last digit is 0."
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Start with 7. Then plus 3. Last digit?"},
    {"role": "assistant", "content": f"<think>\n{FIRST}\n</think>\n\nAnswer: 0"},
    {"role": "user", "content": "And double?"},
    {"role": "assistant", "content": "Double it. That is 20. Its last digit is 0.\nAnswer: 0"},
]
ROWS: list[dict[str, Any]] = [
    {"id": "turns", "messages": CHAT},
    {"id": "long", "messages": [*CHAT[1:2], {"role": "assistant", "content": FIRST * 5}]},
    {"id": "one", "messages": [*CHAT[1:2], {"role": "assistant", "content": "0"}]},
    {"id": "text", "text": FIRST},
    {"id": "empty", "messages": [*CHAT[1:2], {"role": "assistant", "content": ""}]},
]
LIMIT = 120
"""Tokens; the row `long` is cut."""


def _score(folder: Path, rows: Sequence[dict[str, Any]], k: int, **options: Any) -> pl.DataFrame:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = {"engine": "hf", "max_model_len": LIMIT, "on_overlong": "truncate", "max_refused": 1.0, **options}
    ts.score(folder / "rows.jsonl", STUDENT, folder / "out", extra=[f"local:{k}"], **settings)
    return ts.scan(folder / "out").collect()


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> dict[int, pl.DataFrame]:
    """Scores with windows of 1, 2 and very many sentences."""
    return {k: _score(tmp_path_factory.mktemp("local") / "k", ROWS, k) for k in (1, 2, 999)}


def _alone(row: dict[str, Any], k: int) -> list[float | None]:
    """Each sentence by itself: what stands before its turn, the k sentences before it, and it, read by the model."""
    ids, positions = row["input_ids"], row["positions"]
    markers = [p for p, kind in zip(row["scaffold_positions"], row["scaffold_kind"], strict=True) if kind == 1]
    turn_of = [sum(marker < position for marker in markers) for position in positions]
    found: list[float | None] = []
    for sentence in range(len(row["student_sentence_logprob"])):
        own = [n for n, s in enumerate(row["sentence"]) if s == sentence]
        if not own:
            found.append(None)
            continue
        turn = [n for n, t in enumerate(turn_of) if t == turn_of[own[0]]]
        seen = [n for n in turn if sentence - k <= row["sentence"][n] <= sentence]
        prompt = ids[: positions[turn[0]]]
        read = prompt + ids[positions[seen[0]] : positions[own[-1]] + 1]
        logprobs = torch.log_softmax(torch.from_numpy(model_logits(exact_model(STUDENT), np.array(read))), -1)
        places = range(len(read) - (positions[own[-1]] - positions[own[0]] + 1), len(read))
        assert len(places) == len(own), "no scaffold inside"
        found.append(math.fsum(logprobs[place - 1, read[place]].item() for place in places) / len(own))
    return found


@pytest.mark.parametrize("k", [1, 2])
def test_equals_each_sentence_alone_with_its_window(frames: dict[int, pl.DataFrame], k: int) -> None:
    for row in frames[k].filter(pl.col("status") == "ok").iter_rows(named=True):
        expected = _alone(row, k)
        np.testing.assert_allclose(np.array(row[LOCAL], float), np.array(expected, float), atol=1e-4)
        (lalp,) = frames[k].filter(id=row["id"]).select(ts.metrics.lalp()).to_series()
        defined = [value for value in expected if value is not None]
        assert lalp == pytest.approx(math.fsum(defined) / len(defined), abs=1e-4)
        # Controls: with the whole response before them, or one sentence more or less, the numbers are others.
        if row["id"] == "turns":
            for other in (row["student_sentence_logprob"], _alone(row, 3 - k)):
                assert np.nanmax(np.abs(np.array(other, float) - np.array(expected, float))) > 0.05


def test_edges(frames: dict[int, pl.DataFrame]) -> None:
    rows = {row["id"]: row for row in frames[1].iter_rows(named=True)}
    assert rows["empty"]["status"] == "empty_response"
    assert rows["empty"][LOCAL] is None
    assert rows["one"][LOCAL] == rows["one"]["student_sentence_logprob"]
    assert len(rows["one"][LOCAL]) == 1
    assert rows["long"]["truncated"]
    assert len(rows["long"][LOCAL]) == rows["long"]["sentence"][-1] + 1 < 5 * 5
    values = frames[1].select("id", ts.metrics.lalp())
    assert values.filter(pl.col("lalp").is_null())["id"].to_list() == ["empty"]
    # A window that leaves nothing out is the first reading itself.
    for row in frames[999].iter_rows(named=True):
        assert row[LOCAL] == row["student_sentence_logprob"]


def test_by_hand() -> None:
    """Two turns, of three sentences and of two; 90 stands between words, 99 ends the first turn."""
    ids = np.array([70, 71, 10, 11, 20, 90, 30, 99, 72, 40, 50, 51], np.int32)
    positions = np.array([2, 3, 4, 6, 9, 10, 11], np.uint32)
    turns, sentences, spans = (np.array(each, np.int64) for each in ([0, 4], [0, 2, 3, 4, 5], [[0, 1]] * 7))
    response = Response("abcdefg", turns, sentences, spans)
    rendered = Rendered(ids, positions, np.array([0, 0, 1, 2, 3, 4, 4], np.uint32), 5, response=response)
    found = {n: (s.input_ids_P.tolist(), s.positions_N.tolist()) for n, s in windows(rendered, 1)}
    assert found == {2: ([70, 71, 20, 90, 30], [4])}
    assert list(windows(rendered, 2)) == []
    row = ScoredRow(SimpleNamespace(), rendered)  # type: ignore[arg-type]
    assert tokens_again([row], 1) == 5 / 12
    assert tokens_again([], 1) == 0


def test_thoughts_and_answer_are_one_turn_and_a_later_turn_reads_the_earlier_ones() -> None:
    by = Renderer(str(STUDENT), RenderOptions())
    rendered = by.render_messages(CHAT)
    read = {n: by.decode(sequence.input_ids_P.tolist()) for n, sequence in windows(rendered, 1)}
    before = by.decode(rendered.input_ids_P[: rendered.positions_N[0]].tolist())
    assert read[2] == f"{before}Let us see. First 7. "
    assert read[7] == f"{before}</think>\n\nAnswer: 0"
    later = f"{before}{CHAT[2]['content']}<|im_end|>\n<|im_start|>user\nAnd double?<|im_end|>\n<|im_start|>assistant\n"
    assert read[10] == f"{later}That is 20. Its last digit is 0.\n"
    assert sorted(read) == [2, 3, 4, 5, 6, 7, 10, 11], "sentences 0 and 1 of each turn were read so already"


def test_neither_parts_nor_order_matter(frames: dict[int, pl.DataFrame], tmp_path: Path) -> None:
    found = _score(tmp_path / "k", ROWS[::-1], 1, part_rows=2)
    for row in found.iter_rows(named=True):
        (expected,) = frames[1].filter(id=row["id"])[LOCAL].to_list()
        assert (row[LOCAL] is None) == (expected is None)
        if expected is not None:
            np.testing.assert_allclose(np.array(row[LOCAL], float), np.array(expected, float), atol=1e-5)
    with pytest.raises(ts.UsageError, match=r"extra.*local:1.*local:2"):
        _score(tmp_path / "k", ROWS[::-1], 2, part_rows=2)
    assert ts.read_manifest(tmp_path / "k" / "out").settings["extra"] == ["local:1"]


@pytest.mark.parametrize("wrong", [["local"], ["local:0"], ["local:1.5"], ["local:-1"], ["local:2", "local:4"]])
def test_what_is_no_window_is_refused(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(ts.UsageError, match="local"):
        ts.score(DATA / "trajectories.jsonl", STUDENT, tmp_path / "s", extra=wrong)


def test_the_dry_run_says_what_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]), "utf-8")
    plan = ts.score_plan(
        tmp_path / "rows.jsonl", STUDENT, tmp_path / "s", engine="hf", extra=["local:1"], calibration_seconds=0.01
    )
    rendered = Renderer(str(STUDENT), RenderOptions()).render_messages(CHAT)
    read = sum(len(sequence.input_ids_P) for _, sequence in windows(rendered, 1)) / len(rendered.input_ids_P)
    assert read > 1
    assert f"--extra local:1 lets the student read {read:.3g} times" in " ".join(plan.warnings)


class _Overflows:
    """An engine that gives NaN for sequences of one length, as a model in low precision may."""

    def __init__(self, length: int) -> None:
        self.length = length

    def run(self, sequences: Sequence[TokenSequence], _: Any) -> Iterator[tuple[int, TokenScores]]:
        for index, sequence in enumerate(sequences):
            value = np.nan if len(sequence.input_ids_P) == self.length else 1.0
            filled = np.full(len(sequence.positions_N), value, np.float32)
            yield index, TokenScores(np.ones(len(filled), np.uint32), filled, filled, filled)


def test_a_row_without_finite_numbers_has_no_column() -> None:
    by = Renderer(str(STUDENT), RenderOptions())
    rows = [ScoredRow(SimpleNamespace(), by.render_messages(each)) for each in (CHAT, CHAT[1:3])]  # type: ignore[arg-type]
    for row in rows:
        row.values["student_sentence_logprob"] = np.zeros(row.rendered.n_sentences, np.float32)
    *_, (last, sequence) = windows(rows[0].rendered, 1)
    engine: Any = _Overflows(len(sequence.input_ids_P))
    assert read_locally(engine, rows, 1) == {"the student gives NaN or infinity after few sentences": 1}
    assert LOCAL not in rows[0].values
    assert rows[1].values[LOCAL].tolist() == [0.0, 0.0, *[-1.0] * (rows[1].rendered.n_sentences - 2)]
    assert read_locally(_Overflows(-1), rows, 1)  # type: ignore[arg-type]
    assert rows[0].values[LOCAL][last] == -1.0
