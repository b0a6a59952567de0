"""Which columns hold token ids in the layouts of trainers, which tokens of them are scored, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trajscore.corpus import FieldNames, SourceOptions, Trajectory, open_corpus
from trajscore.errors import UsageError

IDS = [5, 6, 7, 8, 9]
OF_THREE = [False, False, True, True, True]


def _read(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> list[Trajectory]:
    path = tmp_path / "rows.parquet"
    pl.DataFrame(rows, strict=False, infer_schema_length=None).write_parquet(path)
    corpus = open_corpus(path, SourceOptions(fields=FieldNames(**options)))
    return [each for chunk in corpus.chunks(100) for each in chunk.trajectories]


LAYOUTS: dict[str, dict[str, Any]] = {
    "TRL, labels": {"input_ids": IDS, "labels": [-100, -100, 7, 8, 9]},
    "TRL, two masks": {"input_ids": IDS, "completion_mask": [0, 0, 1, 1, 1], "assistant_masks": [1, 0, 1, 1, 1]},
    "SkyRL": {"input_ids": IDS, "loss_mask": [0, 0, 1, 1, 1]},
    "SkyRL, of floats": {"input_ids": IDS, "loss_mask": [0.0, 0.0, 1.0, 1.0, 1.0], "labels": None},
    "SkyRL, apart": {"prompt_token_ids": IDS[:2], "response_ids": IDS[2:], "loss_masks": [1, 1, 1]},
    "slime": {"tokens": IDS, "response_length": 3, "loss_mask": [1, 1, 1], "rollout_log_probs": [-1.0, -2.0, -3.0]},
    "slime without a mask": {"tokens": IDS, "response_length": 3},
    "verl": {
        "input_ids": [0, *IDS, 0],
        "attention_mask": [0, 1, 1, 1, 1, 1, 0],
        "response_mask": [1, 1, 1, 0],
    },
    "verl, of booleans": {"input_ids": IDS, "response_mask": [True, True, True]},
    "vLLM": {"prompt_token_ids": IDS[:2], "output_token_ids": IDS[2:]},
    "plain": {"prompt_ids": IDS[:2], "completion_ids": IDS[2:], "logprobs": [-1.0, -2.0, -3.0]},
    "TRL, filled up": {
        "prompt_ids": [0, 0, *IDS[:2]],
        "prompt_mask": [0, 0, 1, 1],
        "completion_ids": IDS[2:],
        "completion_mask": [1, 1, 1],
        "logprobs": [-1.0, -2.0, -3.0],
    },
    "apart, filled up at both ends": {
        "prompt_ids": [0, *IDS[:2]],
        "response_ids": [*IDS[2:], 0, 0],
        "attention_mask": [0, 1, 1, 1, 1, 1, 0, 0],
        "response_mask": [1, 1, 1, 0, 0],
        "rollout_log_probs": [-1.0, -2.0, -3.0, 0.0, 0.0],
    },
    "apart, the prompt's own attention mask": {
        "prompt_ids": [0, *IDS[:2]],
        "attention_mask": [0, 1, 1],
        "completion_ids": IDS[2:],
    },
    "all but the first token has a log-probability": {
        "input_ids": IDS,
        "loss_mask": [0, 0, 1, 1, 1],
        "logprobs": [-9.0, -1.0, -2.0, -3.0],
    },
    "plain, a mask of all": {"prompt_ids": IDS[:2], "completion_ids": IDS[2:], "completion_mask": [0, 0, 1, 1, 1]},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str, tmp_path: Path) -> None:
    row = {"prompt": "what it says is not read", **LAYOUTS[name]}
    (found,) = _read(tmp_path, row)
    assert not found.refusal, found.detail
    assert found.tokens is not None
    assert found.tokens.ids_P.tolist() == IDS
    assert found.tokens.scored_P.tolist() == OF_THREE
    given = found.tokens.sampler_P
    if "rollout_log_probs" in row or "logprobs" in row:
        assert given is not None
        assert given[2:].tolist() == [-1, -2, -3]
    else:
        assert given is None


BATCHES: dict[str, dict[str, Any]] = {
    "TRL": {
        "prompt_ids": IDS[:2],
        "completion_ids": [[7, 8, 9], [7]],
        "completion_mask": [[1, 1, 1], [1]],
        "completion_logprobs": [[-1.0, -2.0, -3.0], [-4.0]],
    },
    "TRL, a prompt that was filled up": {
        "prompt_ids": [0, *IDS[:2]],
        "prompt_mask": [0, 1, 1],
        "completion_ids": [[7, 8, 9], [7]],
        "logprobs": [[-1.0, -2.0, -3.0], [-4.0]],
    },
    "SkyRL": {
        "prompt_token_ids": [[5, 6], [5, 6]],
        "response_ids": [[7, 8, 9], [7]],
        "loss_masks": [[1.0, 1.0, 1.0], [1.0]],
        "rollout_logprobs": [[-1.0, -2.0, -3.0], [-4.0]],
    },
    "verl": {
        "input_ids": [[*IDS, 0], [0, 5, 6, 7]],
        "attention_mask": [[1, 1, 1, 1, 1, 0], [0, 1, 1, 1]],
        "response_mask": [[1, 1, 1, 0], [1]],
    },
    "slime": {
        "tokens": [IDS, IDS[:3]],
        "response_length": [3, 1],
        "rollout_log_probs": [[-1.0, -2.0, -3.0], [-4.0]],
    },
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_row_of_several_responses_is_taken_apart(name: str, suffix: str, tmp_path: Path) -> None:
    """One trajectory a response, each with its own mask, log-probabilities, text and grade; they share their prompt."""
    row = {"id": "a", "prompt": "p", "completion": ["one", "two"], "correct": [True, False], **BATCHES[name]}
    path = tmp_path / f"rows.{suffix}"
    frame = pl.DataFrame([row])
    frame.write_parquet(path) if suffix == "parquet" else frame.write_ndjson(path)
    corpus = open_corpus(path, SourceOptions())
    one, two = (each for chunk in corpus.chunks(1) for each in chunk.trajectories)
    assert (one.id, two.id) == ("a#0", "a#1")
    assert (corpus.rows_read, corpus.n_rows) == (1, 2)
    assert one.prompt_id == two.prompt_id
    assert (one.correct, two.correct) == (True, False)
    assert one.said_beside is not None
    assert two.said_beside is not None
    assert (one.said_beside[-1], two.said_beside[-1]) == ("one", "two")
    for found, ids, logprobs in ((one, IDS, [-1, -2, -3]), (two, IDS[:3], [-4])):
        assert found.tokens is not None, found.detail
        assert found.tokens.ids_P.tolist() == ids
        assert found.tokens.scored_P.tolist() == OF_THREE[: len(ids)]
        sampled = found.tokens.sampler_P
        assert (sampled is None) == (name == "verl")
        assert sampled is None or sampled[2:].tolist() == logprobs


APART: dict[str, tuple[dict[str, Any], str, str]] = {
    "one mask of two": ({"completion_mask": [[1, 1]]}, "mask_mismatch", "as many lists of it as it has responses"),
    "a mask for all": ({"completion_mask": [1, 1]}, "mask_mismatch", "completion_mask is no list of numbers"),
    "one list of log-probabilities": ({"logprobs": [[-1.0, -1.0]]}, "mask_mismatch", "logprobs has 0 values"),
    "one prompt of two": ({"prompt_ids": [[5, 6]]}, "invalid_ids", "prompt_ids is null"),
    "log-probabilities in objects": (
        {"completion_ids": [7, 8], "logprobs": [{"token": "a", "logprob": -1.0}] * 2},
        "mask_mismatch",
        "logprobs is no list of numbers. --ignore-columns logprobs scores without them",
    ),
    "prompts, and one response": ({"completion_ids": [7], "prompt_ids": [[5], [6]]}, "invalid_ids", "holds 2 lists"),
}


@pytest.mark.parametrize("name", APART)
def test_what_does_not_go_with_each_response_is_refused(name: str, tmp_path: Path) -> None:
    given, status, said = APART[name]
    found = _read(tmp_path, {"prompt_ids": [5, 6], "completion_ids": [[7, 8], [9, 7]], **given})
    assert {each.refusal for each in found} == {status}
    assert all(said in each.detail for each in found), found[0].detail


def test_grades_that_do_not_go_with_the_responses_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'a list' in its column 'correct'"):
        _read(tmp_path, {"prompt_ids": [5], "completion_ids": [[7], [8]], "correct": [True, False, True]})


def test_lists_of_one_length_in_arrow(tmp_path: Path) -> None:
    """As numpy's arrays of two dimensions and `datasets`' sequences of a length come."""
    lists = {"input_ids": IDS, "labels": [-100, -100, 7, 8, 9]}
    table = pa.table({name: pa.array([values], pa.list_(pa.int64(), 5)) for name, values in lists.items()})
    pq.write_table(table, tmp_path / "rows.parquet")
    (found,) = [
        each
        for chunk in open_corpus(tmp_path / "rows.parquet", SourceOptions()).chunks(9)
        for each in chunk.trajectories
    ]
    assert found.tokens is not None
    assert (found.tokens.ids_P.tolist(), found.tokens.scored_P.tolist()) == (IDS, OF_THREE)


def test_flags_name_other_columns(tmp_path: Path) -> None:
    row = {"seq": IDS, "on": [0, 0, 1, 1, 1], "labels": [-100] * 5}
    (found,) = _read(tmp_path, row, ids="seq", mask="on")
    assert found.tokens is not None
    assert found.tokens.scored_P.tolist() == OF_THREE


def test_the_first_token_is_never_scored_and_prompts_are_known_by_their_ids(tmp_path: Path) -> None:
    rows = [
        {"input_ids": IDS, "loss_mask": [1, 1, 1, 1, 1]},
        {"input_ids": IDS, "loss_mask": [0, 0, 1, 1, 1]},
        {"input_ids": [5, 6, 1, 2, 3], "loss_mask": [0, 0, 1, 0, 1]},
    ]
    whole, one, other = _read(tmp_path, *rows)
    assert whole.tokens is not None
    assert whole.tokens.scored_P.tolist() == [False, True, True, True, True]
    assert one.prompt_id == other.prompt_id != whole.prompt_id


MISFITS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a longer mask": ({"input_ids": IDS, "loss_mask": [1] * 6}, "mask_mismatch", "loss_mask has 6 values for 5 tokens"),
    "a cut mask": (
        {"input_ids": IDS, "loss_mask": [0, 0, 1, 1]},
        "mask_mismatch",
        "4 values for 5 tokens and begins with 0",
    ),
    "no mask": ({"input_ids": IDS, "loss_mask": None, "id": "a"}, "mask_mismatch", "loss_mask is null here"),
    "a mask of a fraction": ({"input_ids": IDS, "loss_mask": [0, 0, 1, 0.5, 1]}, "mask_mismatch", "holds 0.5"),
    "labels of the next token": (
        {"input_ids": IDS, "labels": [-100, 7, 8, 9, -100]},
        "mask_mismatch",
        "labels has 7 where the token is 6: labels are ids or -100; the labels are those of the next token",
    ),
    "two masks": (
        {"input_ids": IDS, "labels": [-100, -100, 7, 8, 9], "loss_mask": [0, 0, 0, 1, 1]},
        "mask_mismatch",
        "labels and loss_mask name different tokens; say which holds: --mask-field",
    ),
    "log-probabilities of another length": (
        {"prompt_ids": IDS[:2], "completion_ids": IDS[2:], "logprobs": [-1.0]},
        "mask_mismatch",
        "logprobs has 1 values for 5 tokens, 3 of them of the response",
    ),
    "log-probabilities of nobody knows which tokens": (
        {"input_ids": IDS, "loss_mask": [0, 0, 1, 1, 1], "logprobs": [-1.0, -2.0]},
        "mask_mismatch",
        "logprobs has 2 values for 5 tokens, 3 of them trained on; --ignore-columns logprobs scores without them",
    ),
    "probabilities": (
        {"prompt_ids": IDS[:2], "completion_ids": IDS[2:], "logprobs": [0.9, 0.5, 1.0]},
        "mask_mismatch",
        "logprobs has 0.9 for a token, and a log-probability is at most 0; --ignore-columns",
    ),
    "padding of another length": (
        {"prompt_ids": IDS[:2], "completion_ids": IDS[2:], "attention_mask": [1, 1, 1]},
        "mask_mismatch",
        "attention_mask has 3 values for 5 tokens, 2 of them of the prompt",
    ),
    "padding that is trained on": (
        {"input_ids": IDS, "attention_mask": [1, 1, 1, 1, 0], "loss_mask": [0, 0, 1, 1, 1]},
        "mask_mismatch",
        "where attention_mask is 0",
    ),
    "padding inside": (
        {"input_ids": IDS, "attention_mask": [1, 1, 0, 1, 1], "loss_mask": [0, 0, 0, 1, 1]},
        "mask_mismatch",
        "between tokens",
    ),
    "too long a response": ({"tokens": IDS, "response_length": 9}, "mask_mismatch", "response_length is 9"),
    "no token id": ({"input_ids": [5, -6, 7], "loss_mask": [0, 1, 1]}, "invalid_ids", r"input_ids\[1\] is -6"),
    "no ids": ({"prompt_ids": None, "completion_ids": IDS, "id": "a"}, "invalid_ids", "prompt_ids is null here"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_contradicts_itself_is_refused(name: str, tmp_path: Path) -> None:
    row, status, detail = MISFITS[name]
    whole = {"input_ids": IDS, "loss_mask": [0, 0, 1, 1, 1]} if "input_ids" in row else LAYOUTS["plain"]
    # Beside a row that is whole, so that the columns are those of token ids.
    whole = LAYOUTS["slime"] if "tokens" in row else whole
    found, *_ = _read(tmp_path, row, whole)
    assert found.refusal == status, (found.refusal, found.detail)
    assert pl.Series([found.detail]).str.contains(detail).all(), found.detail
    assert found.tokens is None


def test_columns_of_those_names_that_hold_no_ids_are_left_alone(tmp_path: Path) -> None:
    """A number of tokens, ids without a mask: the text is read, and no column is refused for its name."""
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tokens": 2}]
    (found,) = _read(tmp_path, *rows)
    assert found.tokens is None
    assert found.messages is not None
    (found,) = _read(tmp_path, {"prompt": "a", "response": "b", "input_ids": IDS})
    assert found.tokens is None
    assert found.messages is not None


def test_text_beside_ids_is_kept_for_comparing(tmp_path: Path) -> None:
    ids = {"prompt_ids": IDS[:2], "completion_ids": IDS[2:]}
    (found,) = _read(tmp_path, {**ids, "prompt": "<|im_start|>user\na<|im_end|>\n", "response": "b"})
    assert found.said_beside == ("b",)
    assert found.tokens is not None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]
    (found,) = _read(tmp_path, {**ids, "messages": turns})
    assert found.said_beside == ("c", "b")
    assert found.as_given
    assert found.messages is not None
    (found,) = _read(tmp_path, {**ids, "responses": ["b", "c"]})
    assert found.said_beside is None, "a text of several trajectories is not compared"
