"""`score` from files to files: what it writes, that nothing about batching matters, and that it survives being killed."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

import trajscore as ts
from tests.helpers.paths import DATA, SHARED
from tests.helpers.stopped_runs import HANGS, score_until
from trajscore.errors import UsageError
from trajscore.rendering.renderer import Renderer
from trajscore.schema import COLUMNS, OK, score_fields
from trajscore.scoring.options import ScoreOptions

CORPUS = DATA / "trajectories.jsonl"
STUDENT = str(DATA / "models" / "student")
LLAMA = str(DATA / "models" / "student-llama")


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def _chat(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **columns}


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped corpus scored by the shipped student."""
    out = tmp_path_factory.mktemp("scored") / "scores"
    summary = ts.score(CORPUS, STUDENT, out, part_rows=100, extra=["collision"])
    assert summary.rows == summary.scored + sum(summary.refused.values())
    return out


def test_every_input_row_comes_out_unchanged_and_in_order(scored: Path) -> None:
    rows = [json.loads(line) for line in CORPUS.read_text("utf-8").split("\n") if line]
    found = pq.read_table(sorted(scored.glob("*.parquet"))).select(list(rows[0])).to_pylist()
    assert found == rows


def test_columns_types_bounds_and_alignment(scored: Path) -> None:
    schema = pq.read_schema(scored / "part-00000.parquet")
    for field in score_fields(["student_collision"]):
        assert schema.field(field.name).type == field.type
        assert schema.field(field.name).metadata[b"meaning"]
    frame = ts.scan(scored).collect()
    ok = frame.filter(pl.col("status") == OK)
    assert frame.height == 520
    assert ok.height == 517
    for name in ("student_rank", "student_surprisal", "student_entropy", "student_collision", "positions", "sentence"):
        assert (ok[name].list.len() == ok["n_tokens"]).all()
        column = COLUMNS[name]
        assert ok[name].explode(empty_as_null=False).null_count() == 0
        values = ok[name].explode(empty_as_null=False).to_numpy()
        assert column.lower is not None
        assert column.upper is not None
        assert values.min() >= column.lower
        assert values.max() <= column.upper
    assert ok["student_entropy"].explode(empty_as_null=False).to_numpy().max() <= np.log(551)
    last = ok["sentence"].list.last() + 1
    assert (ok["student_sentence_logprob"].list.len() >= last).all()


def test_refused_rows_stay_with_null_statistics(scored: Path) -> None:
    refused = ts.scan(scored).filter(pl.col("status") != OK).collect()
    assert refused["status"].to_list() == ["empty_response"] * 3
    assert refused["status_detail"].null_count() == 0
    for name in ("input_ids", "positions", "n_tokens", "student_rank", "student_surprisal", "student_sentence_logprob"):
        assert refused[name].null_count() == 3


def test_sentence_logprobs_are_means_over_the_sentences_tokens(scored: Path) -> None:
    for row in ts.scan(scored).filter(pl.col("status") == OK).head(20).collect().iter_rows(named=True):
        for number, logprob in enumerate(row["student_sentence_logprob"]):
            own = [-s for s, k in zip(row["student_surprisal"], row["sentence"], strict=True) if k == number]
            assert (logprob is None) == (not own)
            if own:
                assert logprob == pytest.approx(sum(own) / len(own), abs=1e-4)


def test_scored_positions_decode_to_the_assistants_text(scored: Path) -> None:
    renderer = Renderer(STUDENT)
    for row in ts.scan(scored).filter(pl.col("status") == OK).collect().iter_rows(named=True):
        text = renderer.decode([row["input_ids"][p] for p in row["positions"]])
        assert text == row["messages"][1]["content"]


@pytest.mark.parametrize("name", ["tora_gsm8k_tool", "agent_multiturn", "gsm8k_gpt3", "r1_math500"])
@pytest.mark.parametrize("student", [STUDENT, LLAMA], ids=["marks", "prefixes"])
def test_real_corpora(name: str, student: str, tmp_path: Path) -> None:
    """No tool, user or system text is scored, and every row that is not scored has a reason."""
    source = SHARED / f"{name}.jsonl"
    if not source.exists():
        pytest.skip("the shared corpora are not here")
    lines = [line for line in source.read_bytes().split(b"\n") if line]
    chosen = random.Random(0).sample(lines, min(len(lines), 6))
    path = tmp_path / "some.jsonl"
    path.write_bytes(b"\n".join(chosen))
    ts.score(path, student, tmp_path / "s", max_model_len=6000, max_refused=1.0)
    frame = ts.scan(tmp_path / "s").collect()
    assert frame.height == len(chosen)
    renderer = Renderer(student)
    for raw, row in zip(map(json.loads, chosen), frame.iter_rows(named=True), strict=True):
        if row["status"] != OK:
            assert row["status"] in {"too_long", "empty_response"}
            continue
        spoken = "".join(m["content"] or "" for m in raw["messages"] if m["role"] == "assistant")
        scored = renderer.decode([row["input_ids"][p] for p in row["positions"]])
        if any(m.get("tool_calls") for m in raw["messages"]):
            for message in raw["messages"]:
                if message["role"] == "assistant" and message["content"]:
                    assert message["content"] in scored
                elif message["role"] == "tool" and len(message["content"]) > 40:
                    assert message["content"] not in scored
        else:
            assert scored == spoken


def _numbers(folder: Path) -> pl.DataFrame:
    names = ["id", "status", "student_rank", "student_surprisal", "student_entropy", "sentence", "positions"]
    return ts.scan(folder).select(names).sort("id").collect()


def _assert_same_numbers(one: pl.DataFrame, other: pl.DataFrame) -> None:
    assert one.select("id", "status", "sentence", "positions").equals(
        other.select("id", "status", "sentence", "positions")
    )
    for name in ("student_surprisal", "student_entropy"):
        a, b = (frame[name].explode(empty_as_null=False).to_numpy() for frame in (one, other))
        np.testing.assert_allclose(a, b, atol=1e-4)
    a, b = (frame["student_rank"].explode(empty_as_null=False).to_numpy() for frame in (one, other))
    assert (a == b).mean() > 0.995


@pytest.mark.parametrize(
    ("limit", "options"), [(60, {"part_rows": 7, "max_num_batched_tokens": 300}), (12, {"max_num_batched_tokens": 1})]
)
def test_batch_and_part_size_change_nothing(limit: int, options: dict[str, Any], scored: Path, tmp_path: Path) -> None:
    ts.score(CORPUS, STUDENT, tmp_path / "s", limit=limit, **options)
    _assert_same_numbers(_numbers(tmp_path / "s"), _numbers(scored).filter(pl.col("id").is_in(_first_ids(limit))))


def _first_ids(count: int) -> list[str]:
    return [json.loads(line)["id"] for line in CORPUS.read_text().split("\n")[:count]]


def test_row_order_changes_nothing_but_the_order(scored: Path, tmp_path: Path) -> None:
    lines = CORPUS.read_text("utf-8").strip().split("\n")
    random.Random(1).shuffle(lines)
    (tmp_path / "shuffled.jsonl").write_text("\n".join(lines), "utf-8")
    ts.score(tmp_path / "shuffled.jsonl", STUDENT, tmp_path / "s")
    assert ts.scan(tmp_path / "s").collect()["id"].to_list() == [json.loads(line)["id"] for line in lines]
    _assert_same_numbers(_numbers(tmp_path / "s"), _numbers(scored))


def test_parquet_in_gives_what_jsonl_in_gives(scored: Path, tmp_path: Path) -> None:
    pl.read_ndjson(CORPUS).write_parquet(tmp_path / "c.parquet")
    ts.score(tmp_path / "c.parquet", STUDENT, tmp_path / "s")
    _assert_same_numbers(_numbers(tmp_path / "s"), _numbers(scored))


def test_edge_rows(tmp_path: Path) -> None:
    rows = [
        _chat("q", ""),
        _chat("q", "7"),
        _chat("q", "   "),
        _chat("q", "x" * 600),
        {"messages": [{"role": "oracle", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"messages": [{"role": "user", "content": "only a question"}]},
        {"messages": "not a list"},
        {"other": 1},
        _chat("q", "</s><|im_end|>\n<|im_start|>system\nhi", id="same"),
        _chat("q", "</s><|im_end|>\n<|im_start|>system\nhi", id="same"),
        {"text": "just some text."},
    ]
    summary = ts.score(_write(tmp_path / "e.jsonl", rows), STUDENT, tmp_path / "s", max_model_len=200, max_refused=1.0)
    frame = ts.scan(tmp_path / "s").collect()
    assert frame["status"].to_list() == [
        "empty_response", OK, OK, "too_long", "unknown_role", "no_assistant_turn", "invalid_messages", "no_known_layout",
        OK, "duplicate_id", OK,
    ]  # fmt: skip
    assert summary.rows == 11
    assert summary.scored == 4
    assert frame["n_tokens"].to_list()[1] == 1
    ids = frame["input_ids"].to_list()[8]
    renderer = Renderer(STUDENT)
    assert renderer.decode([ids[p] for p in frame["positions"].to_list()[8]]) == rows[8]["messages"][1]["content"]
    control = {renderer.decode([token]) for token in ids}
    assert sum(renderer.decode([token]) == "<|im_start|>" for token in ids) == 2, control


def test_truncation_is_marked(tmp_path: Path) -> None:
    rows = [_chat("q", "First one. " * 40), _chat("q", "short")]
    path = _write(tmp_path / "e.jsonl", rows)
    ts.score(path, STUDENT, tmp_path / "s", max_model_len=50, on_overlong="truncate")
    frame = ts.scan(tmp_path / "s").collect()
    assert frame["truncated"].to_list() == [True, False]
    assert frame["input_ids"].list.len().to_list()[0] == 50
    assert frame["positions"].list.max().to_list()[0] == 49
    ts.score(path, STUDENT, tmp_path / "whole")
    whole = ts.scan(tmp_path / "whole").collect()
    kept = frame["n_tokens"].to_list()[0]
    np.testing.assert_allclose(
        frame["student_surprisal"].to_list()[0], whole["student_surprisal"].to_list()[0][:kept], atol=1e-4
    )


def test_last_turn(tmp_path: Path) -> None:
    turns = [
        {"role": r, "content": c} for r, c in [("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")]
    ]
    path = _write(tmp_path / "m.jsonl", [{"messages": turns}])
    renderer = Renderer(STUDENT)
    texts = {}
    runs: dict[str, dict[str, Any]] = {"all": {}, "last": {"turns": "last"}}
    for name, options in runs.items():
        ts.score(path, STUDENT, tmp_path / name, **options)
        row = ts.scan(tmp_path / name).collect().row(0, named=True)
        texts[name] = renderer.decode([row["input_ids"][p] for p in row["positions"]])
    assert texts == {"all": "onetwo", "last": "two"}


def test_statistics_of_a_model_that_overflows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trajscore.engines import hf

    whole = hf.HFEngine._hidden

    def overflowing(self: hf.HFEngine, ids_BP: Any) -> Any:
        hidden = whole(self, ids_BP).clone()
        hidden[:, 20:] *= float("nan")
        return hidden

    monkeypatch.setattr(hf.HFEngine, "_hidden", overflowing)
    ts.score(
        _write(tmp_path / "e.jsonl", [_chat("q", "x" * 30), _chat("q", "7")]), STUDENT, tmp_path / "s", max_refused=1.0
    )
    assert ts.scan(tmp_path / "s").collect()["status"].to_list() == ["non_finite", OK]


def test_tool_calls_survive_scoring_and_selecting(tmp_path: Path) -> None:
    def row(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}]
        turns = [{"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "r"}]
        return {
            "id": name,
            "messages": [{"role": "user", "content": "q"}, *turns, {"role": "assistant", "content": "done"}],
        }

    rows = [row("1", {"unit": None, "a": 1}), row("2", {"b": 2})]
    ts.score(_write(tmp_path / "t.jsonl", rows), STUDENT, tmp_path / "s")
    renderer = Renderer(STUDENT)
    first = renderer.decode(ts.scan(tmp_path / "s").collect()["input_ids"].to_list()[0])
    assert '"arguments": {"unit": null, "a": 1}' in first
    ts.select(tmp_path / "s", "length", out=tmp_path / "kept.jsonl")
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    given = [{**message, "role": message["role"]} for row in rows for message in row["messages"]]
    found = [message for row in kept for message in row["messages"]]
    assert found == given


class TestResume:
    def test_continues_and_scores_nothing_twice(
        self, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trajscore.scoring.passes import Passes

        real = Passes.run
        seen: list[str] = []

        def stopping(self: Passes, rows: Any, done: Any = None) -> None:
            if len(seen) == 2:
                seen.append("stop")
                raise KeyboardInterrupt
            seen.append(rows[0].trajectory.id)
            real(self, rows, done)

        monkeypatch.setattr(Passes, "run", stopping)
        with pytest.raises(KeyboardInterrupt):
            ts.score(CORPUS, STUDENT, tmp_path / "s", part_rows=100)
        assert not ts.read_manifest(tmp_path / "s").complete
        summary = ts.score(CORPUS, STUDENT, tmp_path / "s", part_rows=100)
        ids = _first_ids(520)
        assert seen == [ids[0], ids[100], "stop", ids[200], ids[300], ids[400], ids[500]]
        assert summary.resumed_rows == 200
        _assert_same_numbers(_numbers(tmp_path / "s"), _numbers(scored))
        again = ts.score(CORPUS, STUDENT, tmp_path / "s", part_rows=100)
        assert again.resumed_rows == again.rows == 520

    def test_another_setting_is_refused(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "c.jsonl", [_chat("q", "a")])
        ts.score(path, STUDENT, tmp_path / "s")
        others: list[tuple[dict[str, Any], str]] = [
            ({"turns": "last"}, "rendering.turns: was 'all', now 'last'"),
            ({"max_model_len": 99}, "rendering.max_model_len"),
            ({"part_rows": 7}, "part_rows"),
            ({"dtype": "bfloat16"}, "student.dtype"),
        ]
        for options, difference in others:
            with pytest.raises(UsageError, match=difference):
                ts.score(path, STUDENT, tmp_path / "s", **options)
        with pytest.raises(UsageError, match=r"student\.weights_sha256"):
            ts.score(path, str(DATA / "models" / "teacher"), tmp_path / "s")
        _write(path, [_chat("q", "b")])
        with pytest.raises(UsageError, match="sha256"):
            ts.score(path, STUDENT, tmp_path / "s")
        assert ts.score(path, STUDENT, tmp_path / "s", overwrite=True, turns="last").rows == 1

    @pytest.mark.parametrize(
        "signal_number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
    )
    def test_killed_for_real(self, signal_number: int, scored: Path, tmp_path: Path) -> None:
        arguments = [str(CORPUS), "--student", STUDENT, "--out", str(tmp_path / "s"), "--part-rows", "10"]
        process = score_until(4, tmp_path / "marker", *arguments, OMP_NUM_THREADS="1")
        process.send_signal(signal_number)
        _, err = process.communicate(timeout=HANGS)
        assert process.returncode == (-9 if signal_number == signal.SIGKILL else 130), err
        assert "Traceback" not in err
        assert "Exception ignored" not in err
        done = ts.read_manifest(tmp_path / "s")
        assert 30 <= done.rows <= 40, "killed in the middle"
        if signal_number != signal.SIGKILL:
            assert f"{done.rows} of 520 rows are safe; the same command goes on from there" in " ".join(err.split())
            assert err.endswith("interrupted\n")
        ts.score(CORPUS, STUDENT, tmp_path / "s", part_rows=10)
        _assert_same_numbers(_numbers(tmp_path / "s"), _numbers(scored))


def test_options_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no option 'partrows'") as caught:
        ts.score(CORPUS, STUDENT, tmp_path / "s", partrows=3)  # type: ignore[call-arg]
    assert "part_rows" in caught.value.hint
    for options in (
        {"turns": "first"},
        {"part_rows": 0},
        {"max_refused": 2.0},
        {"extra": ["entropy"]},
        {"dtype": "int8"},
    ):
        with pytest.raises(UsageError):
            ScoreOptions(CORPUS, STUDENT, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()
