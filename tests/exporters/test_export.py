"""`export`: what is written for each trainer, what is left out and refused. No trainer is needed: theirs are other files."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.helpers.mask_files import write_mask
from tests.helpers.paths import DATA
from trajscore import export
from trajscore.cli import app
from trajscore.errors import DataError, UsageError
from trajscore.exporters.check import check_messages, check_tokens, expected_messages, expected_tokens
from trajscore.exporters.export import systematic_counts
from trajscore.exporters.rows import ConversationFile, Mask
from trajscore.exporters.table import EXPORTERS, find
from trajscore.io.atomic import files_in

STUDENT = DATA / "models" / "student"
CONFIG = {
    "trl": "sft.yaml", "llamafactory": "sft.yaml", "axolotl": "data.yaml", "verl": "overrides.txt", "skyrl": "overrides.txt",
    "distillkit": "distill.yaml",
}  # fmt: skip
CHATS = [name for name in EXPORTERS if "messages" in find(name).forms]
runner = CliRunner()


def _mask_rows(
    count: int, *, soft: bool = False, weighted: bool = False, seed: int = 5, to: str = "trl", topk: int = 0
) -> list[dict[str, Any]]:
    """Random rows of a mask; with a teacher's best entries where `topk` says how many, or the trainer `to` needs some."""
    draw = random.Random(seed)
    topk = topk or (3 if find(to).soft_targets == "needed" else 0)
    rows = []
    for number in range(count):
        ids = [draw.randrange(1, 500) for _ in range(draw.randrange(2, 40))]
        labels = [-100, *(token if draw.random() < 0.5 else -100 for token in ids[1:-1]), ids[-1]]
        row: dict[str, Any] = {"id": f"r{number}", "input_ids": ids, "labels": labels}
        if soft:
            row["loss_weight"] = [round(draw.random() + 0.01, 3) for _ in ids]
        if weighted:
            row["sample_weight"] = round(draw.random() * 2, 3)
        rows.append(row | (_entries(labels, topk, draw) if topk else {}))
    return rows


def _entries(labels: list[int], k: int, draw: random.Random) -> dict[str, Any]:
    """Best entries of a teacher at each label: other ids and probabilities everywhere, an impossible one now and then."""
    ids, logprobs, tails = list[list[int]](), list[list[float]](), list[float | None]()
    for label in labels:
        shares = sorted((draw.random() + 0.01 for _ in range(k + 1)), reverse=True)
        best = [math.log(each / sum(shares)) for each in shares[:k]]
        if draw.random() < 0.2:
            best[-1] = -math.inf
        ids.append([draw.randrange(500) for _ in range(k)] if label != -100 else [])
        logprobs.append(best if label != -100 else [])
        tails.append(math.log(shares[k] / sum(shares)) if label != -100 else None)
    return {"teacher_topk_ids": ids, "teacher_topk_logprobs": logprobs, "teacher_log_tail": tails}


def _weights(row: dict[str, Any], sample: bool = True) -> list[float]:
    """Plain-Python oracle: what each token of a mask row weighs in the loss."""
    weight = row.get("loss_weight", [1.0] * len(row["labels"]))
    factor = row.get("sample_weight", 1.0) if sample else 1.0
    return [w * factor if label != -100 else 0.0 for label, w in zip(row["labels"], weight, strict=True)]


def _read(to: str, folder: Path) -> list[tuple[list[int], list[float]]]:
    return [(row.input_ids_P.tolist(), row.weight_P.tolist()) for row in find(to).read_tokens(folder)]


def _chat(number: int, **values: Any) -> dict[str, Any]:
    said = f"<think>\nWell.\n</think>\n\n{number}"
    messages = [{"role": "user", "content": f"Say {number}."}, {"role": "assistant", "content": said}]
    return {"id": f"c{number}", "messages": messages, **values}


def _jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


@pytest.mark.parametrize("to", EXPORTERS)
def test_a_hard_mask_comes_back_token_for_token(to: str, tmp_path: Path) -> None:
    rows = _mask_rows(50, to=to)
    done = export(write_mask(tmp_path / "m.parquet", rows), to, tmp_path / "out")
    assert _read(to, tmp_path / "out") == [(row["input_ids"], _weights(row)) for row in rows]
    assert (done.rows_in, done.rows_exported, done.rows_written, done.left_out) == (50, 50, 50, {})
    longest = max(len(row["input_ids"]) for row in rows)
    assert (done.longest, done.exact, done.max_length) == (longest, True, longest)
    assert str(longest) in (tmp_path / "out" / CONFIG[to]).read_text()
    readme = (tmp_path / "out" / "README.md").read_text()
    assert done.command in readme
    assert list(done.files) == files_in(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["about"]["rule"] == "entropy"


@pytest.mark.parametrize("to", ["trl", "axolotl"])
def test_a_mask_that_polars_wrote_is_a_mask(to: str, tmp_path: Path) -> None:
    """`ts.mask(...).frame` written by its user: polars has 64-bit offsets, and integers of Python are 64 bits wide."""
    rows = _mask_rows(5)
    frame = pl.DataFrame(rows)
    assert frame.schema["labels"] == pl.List(pl.Int64)
    frame.write_parquet(tmp_path / "m.parquet")
    assert pa.types.is_large_list(pq.read_schema(tmp_path / "m.parquet").field("labels").type)
    export(tmp_path / "m.parquet", to, tmp_path / "out", check=True)
    assert _read(to, tmp_path / "out") == [(row["input_ids"], _weights(row)) for row in rows]
    frame.with_columns(labels=pl.lit("x")).write_parquet(tmp_path / "text.parquet")
    with pytest.raises(UsageError, match="must be a list"):
        export(tmp_path / "text.parquet", to, tmp_path / "none")


def test_a_mask_in_json_lines_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a mask in JSON Lines") as caught:
        export(_jsonl(tmp_path / "m.jsonl", _mask_rows(2)), "trl", tmp_path / "out")
    assert ".parquet" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["trl", "verl"])
@pytest.mark.parametrize(("soft", "weighted"), [(True, False), (False, True), (True, True)])
def test_weights_come_back(to: str, soft: bool, weighted: bool, tmp_path: Path) -> None:
    rows = _mask_rows(30, soft=soft, weighted=weighted)
    done = export(write_mask(tmp_path / "m.parquet", rows), to, tmp_path / "out")
    assert (done.token_weights, done.sample_weights) == (soft, weighted)
    for (ids, weights), row in zip(_read(to, tmp_path / "out"), rows, strict=True):
        assert ids == row["input_ids"]
        assert weights == pytest.approx(_weights(row), rel=1e-6)


def test_a_weight_by_hand(tmp_path: Path) -> None:
    """Token weight 0.5, sample weight 3: 1.5 on the trained token, nothing on the weighted token without a label."""
    row = {
        "id": "a",
        "input_ids": [7, 8, 9],
        "labels": [-100, -100, 9],
        "loss_weight": [0.0, 0.25, 0.5],
        "sample_weight": 3.0,
    }
    export(write_mask(tmp_path / "m.parquet", [row]), "verl", tmp_path / "out")
    written = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert written == [{"input_ids": [7, 8, 9], "loss_mask": [0.0, 0.0, 1.5]}]


def test_columns_and_types_are_exactly_the_trainers(tmp_path: Path) -> None:
    for to in EXPORTERS:
        export(write_mask(tmp_path / f"{to}.parquet", _mask_rows(5, to=to)), to, tmp_path / to)
    ids = pa.list_(pa.int32())
    assert pq.read_schema(tmp_path / "trl" / "data" / "train.parquet").names == ["input_ids", "labels"]
    axolotl = pq.read_schema(tmp_path / "axolotl" / "train.parquet")
    assert [(field.name, field.type.value_type) for field in axolotl] == [
        (name, ids.value_type) for name in ("input_ids", "attention_mask", "labels")
    ]
    table = pq.read_table(tmp_path / "axolotl" / "train.parquet").to_pylist()
    assert all(row["attention_mask"] == [1] * len(row["input_ids"]) for row in table)
    verl = pq.read_schema(tmp_path / "verl" / "train.parquet")
    assert [str(field.type.value_type) for field in verl] == ["int32", "float"]
    skyrl = pq.read_schema(tmp_path / "skyrl" / "train.parquet")
    assert [(field.name, str(field.type.value_type)) for field in skyrl] == [
        ("input_ids", "int32"),
        ("loss_mask", "int8"),
    ]
    config = (tmp_path / "axolotl" / "data.yaml").read_text()
    assert "type:\n" in config
    assert "excess_length_strategy: raise" in config


def test_llamafactory_folder_is_what_datasets_loads(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = _mask_rows(20)
    export(write_mask(tmp_path / "m.parquet", rows), "llamafactory", tmp_path / "out")
    loaded = datasets.load_from_disk(str(tmp_path / "out" / "tokenized"))
    assert list(loaded) == ["train"]
    assert loaded["train"].column_names == ["input_ids", "attention_mask", "labels"]
    assert loaded["train"].to_list() == [
        {"input_ids": row["input_ids"], "attention_mask": [1] * len(row["labels"]), "labels": row["labels"]}
        for row in rows
    ]


@pytest.mark.parametrize("to", CHATS)
def test_conversations_come_back(to: str, tmp_path: Path) -> None:
    rows = [_chat(number) for number in range(20)]
    rows[3]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    rows[4]["messages"] += [{"role": "user", "content": "Again."}, {"role": "assistant", "content": "<b>&'\"\u2028"}]
    done = export(_jsonl(tmp_path / "c.jsonl", rows), to, tmp_path / "out")
    found = [row["messages"] for row in find(to).read_messages(tmp_path / "out")]
    assert found == [row["messages"] for row in rows]
    assert done.form == "messages"
    assert not done.exact
    assert done.longest > 1024


def test_reasoning_is_kept_in_its_key_or_folded_in(tmp_path: Path) -> None:
    row = _chat(1)
    row["messages"][1] = {"role": "assistant", "content": "1", "reasoning_content": "Well."}
    path = _jsonl(tmp_path / "c.jsonl", [_chat(0), row])
    for to in CHATS:
        export(path, to, tmp_path / to)
        last = list(find(to).read_messages(tmp_path / to))[1]["messages"][1]
        folded = {"role": "assistant", "content": "<think>\nWell.\n</think>\n\n1"}
        assert last == (folded if to == "llamafactory" else row["messages"][1])


def test_single_turns_are_prompt_and_completion_for_trl(tmp_path: Path) -> None:
    """Then TRL trains on the completion with the model's own template, and swaps in none."""
    export(_jsonl(tmp_path / "c.jsonl", [_chat(1)]), "trl", tmp_path / "one")
    (row,) = [json.loads(line) for line in (tmp_path / "one" / "data" / "train.jsonl").read_text().splitlines()]
    assert row == {"prompt": _chat(1)["messages"][:1], "completion": _chat(1)["messages"][1:]}
    assert "assistant_only_loss" not in (tmp_path / "one" / "sft.yaml").read_text()
    two = _chat(2)
    two["messages"] *= 2
    export(_jsonl(tmp_path / "d.jsonl", [_chat(1), two]), "trl", tmp_path / "two")
    assert "assistant_only_loss: true" in (tmp_path / "two" / "sft.yaml").read_text()
    assert "max_length: null" in (tmp_path / "two" / "sft.yaml").read_text()


def test_every_layout_of_a_corpus(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "question": "2+2?", "answer": "4"},
        {"id": "b", "prompt": "2+2?", "completion": "4"},
        {"id": "c", "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    ]
    export(_jsonl(tmp_path / "c.jsonl", rows), "axolotl", tmp_path / "out")
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    assert [row["messages"] for row in find("axolotl").read_messages(tmp_path / "out")] == [turns] * 3
    named = _jsonl(tmp_path / "d.jsonl", [{"id": "a", "chat": turns}])
    export(named, "axolotl", tmp_path / "out", messages_field="chat")
    with pytest.raises(UsageError, match="No row of the corpus has a layout"):
        export(named, "axolotl", tmp_path / "out")


def test_tools_are_one_type_in_every_row_or_left_out(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "integer"}}}}
    row = {
        "id": "t",
        "tools": [tool],
        "messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": [call]}],
    }
    path = _jsonl(tmp_path / "c.jsonl", [_chat(1), row])
    for to in ("trl", "axolotl"):
        export(path, to, tmp_path / to)
        written = list(find(to).read_messages(tmp_path / to))[1]
        assert json.loads(written["tools"]) == [tool]
        assert written["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}'
    for to in ("llamafactory", "verl"):
        done = export(path, to, tmp_path / to)
        assert (done.rows_in, done.rows_exported, done.left_out) == (2, 1, {"tools": 1})
        (line,) = [json.loads(each) for each in (tmp_path / to / "left_out.jsonl").read_text().splitlines()]
        assert (line["row"], line["id"], line["reason"]) == (1, "t", "tools")


def test_rows_in_are_exported_or_left_out_with_a_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        _chat(0),
        {"id": "text", "text": "only text"},
        {"id": "bad", "messages": "no list"},
        {"id": "c0", "messages": _chat(0)["messages"]},
        {"id": "twice", "messages": [*_chat(1)["messages"], {"role": "assistant", "content": "more"}]},
        {"id": "asked", "messages": _chat(1)["messages"][:1]},
    ]
    done = export(_jsonl(tmp_path / "c.jsonl", rows), "llamafactory", tmp_path / "out")
    assert done.left_out == {"turns": 2, "text_only": 1, "invalid_messages": 1, "duplicate_id": 1}
    assert done.rows_in == 6 == done.rows_exported + sum(done.left_out.values())
    done = export(tmp_path / "c.jsonl", "trl", tmp_path / "trl", student=STUDENT)
    assert done.left_out == {"text_only": 1, "invalid_messages": 1, "duplicate_id": 1, "no_assistant_turn": 1}


def test_mask_rows_that_train_nothing_are_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "input_ids": [1, 2], "labels": [-100, 2], "loss_weight": [0.0, 1.0]},
        {"id": "b", "input_ids": [1, 2], "labels": [-100, -100], "loss_weight": [0.0, 1.0]},
        {"id": "c", "input_ids": [], "labels": [], "loss_weight": []},
        {"id": "d", "input_ids": [1, 2], "labels": [-100, 2], "loss_weight": [1.0, 0.0]},
    ]
    done = export(write_mask(tmp_path / "m.parquet", rows), "trl", tmp_path / "out")
    assert done.left_out == {"no_trained_token": 2, "no_weight": 1}
    assert (done.rows_exported, done.longest) == (1, 2)
    with pytest.raises(UsageError, match="no row can be exported"):
        export(write_mask(tmp_path / "n.parquet", rows[1:]), "trl", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": [-100, 3]}, "neither the token at its place nor -100"),
        ({"labels": [1, 2]}, "the first token has a label"),
        ({"labels": [-100]}, "labels and input_ids differ in length"),
        ({"labels": None}, "labels is null"),
        ({"input_ids": [1, None]}, "input_ids holds a null"),
        ({"loss_weight": [0.0, -1.0]}, "loss_weight is negative"),
        ({"loss_weight": [0.0, float("nan")]}, "loss_weight is negative, NaN"),
        ({"loss_weight": [1.0]}, "loss_weight and input_ids differ"),
        ({"sample_weight": None}, "sample_weight is None"),
        ({"sample_weight": -1.0}, "sample_weight is -1.0"),
        ({"sample_weight": float("inf")}, "sample_weight is inf"),
    ],
)
def test_a_wrong_mask_is_named_and_nothing_is_written(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {"id": "good", "input_ids": [1, 2], "labels": [-100, 2], "loss_weight": [0.0, 1.0], "sample_weight": 1.0}
    path = write_mask(tmp_path / "m.parquet", [good] * 9 + [good | {"id": "bad"} | changed])
    result = runner.invoke(app, ["export", str(path), "--to", "trl", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "row 9" in result.stderr
    assert "Traceback" not in result.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["m.parquet"]


@pytest.mark.parametrize("to", EXPORTERS)
def test_weights_that_a_trainer_cannot_take_are_refused_with_what_to_do(to: str, tmp_path: Path) -> None:
    """Never dropped without a word: either the weights are in the export, or there is none."""
    exporter = find(to)
    soft = write_mask(tmp_path / "soft.parquet", _mask_rows(4, soft=True, to=to))
    weighted = write_mask(tmp_path / "weighted.parquet", _mask_rows(4, weighted=True, to=to))
    chats = _jsonl(tmp_path / "c.jsonl", [_chat(number, sample_weight=0.5 + number) for number in range(4)])
    able = {
        soft: exporter.token_weights,
        weighted: "tokens" in exporter.sample_weights,
        chats: "messages" in exporter.sample_weights,
    }
    for path, takes in able.items():
        if path == chats and to not in CHATS:
            with pytest.raises(UsageError, match="holds conversations"):
                export(path, to, tmp_path / "refused")
            continue
        if takes:
            done = export(path, to, tmp_path / "out")
            assert done.token_weights or done.sample_weights
            continue
        with pytest.raises(UsageError) as error:
            export(path, to, tmp_path / "refused")
        assert "--to trl" in error.value.hint
        assert ("--resample" in error.value.hint) == (path != soft)
        assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("to", EXPORTERS)
def test_negative_weights_go_to_trainers_that_take_them(to: str, tmp_path: Path) -> None:
    """Only a file that says it is signed may hold them; a trainer that takes none is named, with who does."""
    rows = _mask_rows(6, soft=True, to=to)
    for row in rows:
        row["loss_weight"] = [weight - 0.5 for weight in row["loss_weight"]]
    signed = write_mask(tmp_path / "signed.parquet", rows, rule="opd_reward", signed=True)
    if find(to).signed_weights:
        assert export(signed, to, tmp_path / "out").rows_written == 6
        for (_, weights), row in zip(_read(to, tmp_path / "out"), rows, strict=True):
            assert weights == pytest.approx(_weights(row), rel=1e-6)
        with pytest.raises(UsageError, match="loss_weight is negative"):
            export(write_mask(tmp_path / "plain.parquet", rows), to, tmp_path / "refused")
    else:
        with pytest.raises(UsageError, match=find(to).trainer) as error:
            export(signed, to, tmp_path / "refused")
        assert "--to trl" in error.value.hint
    assert not (tmp_path / "refused").exists()


SOFT = [name for name in EXPORTERS if find(name).soft_targets != "no"]


def _taught(row: dict[str, Any], place: int) -> dict[int, float]:
    """What the teacher says of a token over its K entries, by hand: id -> share."""
    shares = [math.exp(value) for value in row["teacher_topk_logprobs"][place]]
    return {
        token: share / sum(shares)
        for token, share in zip(row["teacher_topk_ids"][place], shares, strict=True)
        if share > 0
    }


@pytest.mark.parametrize("to", SOFT)
def test_a_teachers_entries_come_back_at_their_tokens(to: str, tmp_path: Path) -> None:
    """Ids may repeat only by chance; each label's distribution is the one of its own token, whatever the format's shift."""
    rows = _mask_rows(20, topk=4)
    export(write_mask(tmp_path / "m.parquet", rows), to, tmp_path / "out", check=True)
    for found, row in zip(find(to).read_tokens(tmp_path / "out"), rows, strict=True):
        assert found.targets is not None
        assert found.targets.there_P.tolist() == [label != -100 for label in row["labels"]]
        for place in np.flatnonzero(found.targets.there_P):
            shares = np.exp(found.targets.normalised().logprobs_PK[place])
            pairs = zip(found.targets.ids_PK[place].tolist(), shares.tolist(), strict=True)
            assert {token: share for token, share in pairs if share > 0} == pytest.approx(
                _taught(row, int(place)), rel=1e-4
            )


def test_axolotl_reads_a_teacher_one_place_earlier(tmp_path: Path) -> None:
    """By hand: the entries of token 2 stand in row 1, sum to 1, and hold no infinity; the last row is of no token."""
    row = {
        "id": "a", "input_ids": [7, 8, 9], "labels": [-100, -100, 9], "teacher_topk_ids": [[], [], [9, 5]],
        "teacher_topk_logprobs": [[], [], [math.log(0.25), -math.inf]], "teacher_log_tail": [None, None, math.log(0.75)],
    }  # fmt: skip
    export(write_mask(tmp_path / "m.parquet", [row]), "axolotl", tmp_path / "out")
    (written,) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert written["target_token_ids"] == [[0, 0], [9, 5], [0, 0]]
    assert written["target_mask"] == [[0, 0], [1, 0], [0, 0]]
    assert written["target_logprobs"] == [[-1e9, -1e9], [0.0, -1e9], [-1e9, -1e9]]
    assert "kd_trainer: true" in (tmp_path / "out" / "data.yaml").read_text()


def test_distillkit_reads_a_teacher_one_place_earlier(tmp_path: Path) -> None:
    """Its mask is `labels` at the row itself; rows are padded to one length; probabilities are the whole vocabulary's."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {"id": "a", "input_ids": [7, 8, 9], "labels": [-100, -100, 9], "teacher_topk_ids": [[], [], [9, 5]],
         "teacher_topk_logprobs": [[], [], [-1.0, -2.0]], "teacher_log_tail": [None, None, -0.7]},
        {"id": "b", "input_ids": [7, 8], "labels": [-100, 8], "teacher_topk_ids": [[], [6, 8]],
         "teacher_topk_logprobs": [[], [-0.5, -math.inf]], "teacher_log_tail": [None, -0.9]},
    ]  # fmt: skip
    export(write_mask(tmp_path / "m.parquet", rows), "distillkit", tmp_path / "out")
    first, second = datasets.load_from_disk(str(tmp_path / "out" / "data")).to_list()
    assert first["labels"] == [-100, 9, -100]
    assert (first["token_ids"][1], first["top_values"][1]) == ([9, 5], [-1.0, -2.0])
    assert second["input_ids"] == [7, 8, 0]
    assert second["attention_mask"] == [1, 1, 0]
    assert second["labels"] == [8, -100, -100]
    assert second["top_values"][0] == [-0.5, -10000.0]
    assert np.isfinite(np.array(second["top_values"])).all()
    config = yaml.safe_load((tmp_path / "out" / "distill.yaml").read_text())
    assert config["sequence_length"] == 3
    assert config["teacher"]["logprob_compressor"]["k"] == 2


@pytest.mark.parametrize("to", [name for name in EXPORTERS if name not in SOFT])
def test_a_teachers_entries_are_never_dropped_without_a_word(to: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="distils from none") as error:
        export(write_mask(tmp_path / "m.parquet", _mask_rows(4, topk=2)), to, tmp_path / "out")
    assert "--to distillkit" in error.value.hint


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher_topk_ids": [[], [1]]}, "best entries of the teacher"),
        ({"teacher_topk_ids": [[], []], "teacher_topk_logprobs": [[], []]}, "best entries of the teacher"),
        ({"teacher_topk_logprobs": [[], [0.5, -1.0]]}, "NaN or above 0"),
        ({"teacher_topk_logprobs": [[], [float("nan"), -1.0]]}, "NaN or above 0"),
        ({"teacher_topk_ids": [[1, 2]], "teacher_topk_logprobs": [[-1.0, -2.0]]}, "differ in length"),
    ],
)
def test_wrong_entries_are_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {
        "id": "a", "input_ids": [1, 2], "labels": [-100, 2], "teacher_topk_ids": [[], [1, 2]],
        "teacher_topk_logprobs": [[], [-1.0, -2.0]], "teacher_log_tail": [None, -1.0],
    }  # fmt: skip
    with pytest.raises(UsageError, match=message):
        export(write_mask(tmp_path / "m.parquet", [good, good | changed]), "trl", tmp_path / "out")
    assert export(write_mask(tmp_path / "n.parquet", [good]), "trl", tmp_path / "ok").rows_written == 1


def test_a_mask_without_entries_is_nothing_for_distillkit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no entries of a teacher") as error:
        export(write_mask(tmp_path / "m.parquet", _mask_rows(4)), "distillkit", tmp_path / "out")
    assert "--soft-targets" in error.value.hint


def _plain_counts(weights: list[float], draws: int, offset: float) -> list[int]:
    """Oracle: walk the grid offset, offset + 1, ... along the line of shares."""
    total, counts, end, point = sum(weights), [], 0.0, offset
    for weight in weights:
        end += weight / total * draws
        counts.append(0)
        while point < end - 1e-9:
            counts[-1] += 1
            point += 1
    return counts


@given(
    st.lists(st.floats(0, 100).filter(lambda w: w == 0 or w > 1e-3), min_size=1, max_size=30).filter(any),
    st.integers(0, 50),
)
def test_systematic_resampling(weights: list[float], seed: int) -> None:
    counts = systematic_counts(np.array(weights), len(weights), seed)
    assert counts.sum() == len(weights)
    for weight, count in zip(weights, counts.tolist(), strict=True):
        expected = weight / sum(weights) * len(weights)
        assert expected - 1 - 1e-9 < count < expected + 1 + 1e-9
        assert count == 0 or weight > 0


def test_resampling_against_an_oracle_and_in_expectation() -> None:
    weights = [0.5, 0.0, 2.0, 1.0, 3.7]
    seen = np.zeros(5)
    for seed in range(2000):
        counts = systematic_counts(np.array(weights), 5, seed)
        offset = np.random.default_rng(seed).random()
        assert counts.tolist() == _plain_counts(weights, 5, offset)
        seen += counts
    assert seen / 2000 == pytest.approx(np.array(weights) / sum(weights) * 5, abs=0.05)


@pytest.mark.parametrize("to", EXPORTERS)
def test_resample_draws_rows_and_counts_them(to: str, tmp_path: Path) -> None:
    rows = _mask_rows(12, weighted=True, to=to)
    rows[0]["sample_weight"], rows[1]["sample_weight"] = 0.0, 6.0
    path = write_mask(tmp_path / "m.parquet", rows)
    done = export(path, to, tmp_path / "out", resample=True, seed=3)
    counts = systematic_counts(np.array([row["sample_weight"] for row in rows]), 12, 3).tolist()
    wanted = [
        (row["input_ids"], _weights(row, sample=False))
        for row, count in zip(rows, counts, strict=True)
        for _ in range(count)
    ]
    assert _read(to, tmp_path / "out") == wanted
    assert done.rows_written == 12
    assert done.rows_exported == sum(count > 0 for count in counts)
    assert done.left_out == {"not_drawn": sum(count == 0 for count in counts)}
    assert not done.sample_weights
    again = export(path, to, tmp_path / "again", resample=True, seed=3)
    assert _read(to, tmp_path / "again") == wanted
    assert again.left_out == done.left_out
    if to not in CHATS:
        return
    chats = _jsonl(tmp_path / "c.jsonl", [_chat(number, sample_weight=float(number)) for number in range(4)])
    export(chats, to, tmp_path / "chats", resample=True)
    found = [row["messages"] for row in find(to).read_messages(tmp_path / "chats")]
    counts = systematic_counts(np.array([0.0, 1.0, 2.0, 3.0]), 4, 0).tolist()
    assert found == [_chat(number)["messages"] for number in range(4) for _ in range(counts[number])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MASK", "--to", "trll"], "Did you mean trl?"),
        (["nowhere.jsonl", "--to", "trl"], "no such file"),
        (["SCORES", "--to", "trl"], "a folder of scores"),
        (["PART", "--to", "trl"], "tokens without labels"),
        (["CHATS", "--to", "trl", "--check"], "--student"),
        (["MASK", "--to", "trl", "--messages-field", "chat"], "--messages-field"),
        (["MASK", "--to", "trl", "--resample"], "sample_weight"),
        (["CHATS", "--to", "trl", "--student", "./nowhere"], "no such folder"),
        (["BROKEN", "--to", "trl"], "not readable"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "manifest.json").write_text("{}")
    pq.write_table(pa.table({"id": ["a"], "input_ids": [[1]], "positions": [[0]]}), scores / "part-00000.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    names = {
        "MASK": write_mask(tmp_path / "m.parquet", _mask_rows(2)),
        "CHATS": _jsonl(tmp_path / "c.jsonl", [_chat(1)]),
        "SCORES": scores,
        "PART": scores / "part-00000.parquet",
        "BROKEN": tmp_path / "broken.parquet",
    }
    words = ["export", *(str(names.get(word, word)) for word in arguments), "--out", str(tmp_path / "out")]
    result = runner.invoke(app, words)
    assert result.exit_code == (1 if "BROKEN" in arguments else 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_replaced_whole_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = write_mask(tmp_path / "m.parquet", _mask_rows(3))
    export(mask, "verl", tmp_path / "out")
    export(mask, "trl", tmp_path / "out")
    assert not (tmp_path / "out" / "overrides.txt").exists()

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    before = files()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trajscore.exporters.trl.write_batches", full)
    result = runner.invoke(app, ["export", str(mask), "--to", "trl", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert files() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.parquet", "out"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="did not write"):
        export(mask, "verl", foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("link", [False, True])
def test_checkpoints_of_a_trainer_survive(tmp_path: Path, link: bool) -> None:
    """The README of an export tells people to train in its folder."""
    mask = write_mask(tmp_path / "m.parquet", _mask_rows(3))
    (tmp_path / "real").mkdir()
    out = tmp_path / "real" / "out"
    export(mask, "verl", out)
    if link:
        (tmp_path / "out").symlink_to(out)
        out = tmp_path / "out"
    (out / "checkpoint-10").mkdir()
    (out / "checkpoint-10" / "model.safetensors").write_text("weights")
    before = {name: (out / name).read_bytes() for name in files_in(out)}
    with pytest.raises(UsageError, match=r"did not write: checkpoint-10/model.safetensors \(1 such\)") as caught:
        export(mask, "trl", out)
    assert "--keep-foreign" in caught.value.hint
    assert {name: (out / name).read_bytes() for name in files_in(out)} == before
    done = export(mask, "trl", out, keep_foreign=True)
    assert sorted([*done.files, "checkpoint-10/model.safetensors"]) == files_in(out)
    assert not (out / "overrides.txt").exists(), "of the earlier export"
    assert out.is_symlink() == link
    export(mask, "verl", out, keep_foreign=True)
    assert files_in(out) == sorted(
        ["checkpoint-10/model.safetensors", *json.loads((out / "export.json").read_text())["files"]]
    )
    assert not (out / "data").exists(), "an empty folder of the earlier export"


def test_files_of_others_with_our_names_are_not_replaced(tmp_path: Path) -> None:
    """Also where the record is somebody else's, or names what lies outside."""
    mask = write_mask(tmp_path / "m.parquet", _mask_rows(3))
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").write_text("mine")
    for record in (
        '{"files": ["README.md", "export.json"]}',
        "[]",
        "{",
        '{"trajscore": "1", "files": ["../precious"]}',
    ):
        (out / "export.json").write_text(record)
        (out / "README.md").write_text("mine")
        for keep in (False, True):
            with pytest.raises(UsageError, match=r"did not write|was not written"):
                export(mask, "verl", out, keep_foreign=keep)
        assert (out / "README.md").read_text() == (tmp_path / "precious").read_text() == "mine"


def test_json_and_lists(tmp_path: Path) -> None:
    chats = _jsonl(tmp_path / "c.jsonl", [_chat(1, id="[bold]\x1b[2J"), {"id": "\x1b[2J", "text": "x"}])
    out = str(tmp_path / "out")
    result = runner.invoke(app, ["export", str(chats), "--to", "verl", "--out", out, "--json"])
    summary = json.loads(result.stdout)
    assert (summary["rows_in"], summary["rows_exported"], summary["left_out"]) == (2, 1, {"text_only": 1})
    result = runner.invoke(app, ["export", str(chats), "--to", "verl", "--out", out])
    assert "2 rows in = 1 exported + 1 left out" in result.stdout
    assert "\x1b" not in result.stdout
    listed = json.loads(runner.invoke(app, ["list", "exporters", "--json"]).stdout)["exporters"]
    assert [each["name"] for each in listed] == list(EXPORTERS)
    plain = runner.invoke(app, ["list", "exporters"]).stdout
    assert all(each.trainer in plain for each in EXPORTERS.values())


def test_lengths_are_those_of_the_students_tokens(tmp_path: Path) -> None:
    from trajscore.rendering.renderer import Renderer

    chats = [_chat(number) for number in range(5)]
    path = _jsonl(tmp_path / "c.jsonl", chats)
    lengths = [len(Renderer(str(STUDENT)).render_messages(row["messages"]).input_ids_P) for row in chats]
    for to in CHATS:
        done = export(path, to, tmp_path / to, student=STUDENT)
        assert (done.longest, done.exact) == (max(lengths), True)
        assert max(lengths) < done.max_length <= max(lengths) + 128
        assert str(done.max_length) in (tmp_path / to / CONFIG[to]).read_text()
        bound = export(path, to, tmp_path / f"{to}-bound")
        assert bound.longest >= max(lengths)


def test_the_format_check_passes_and_its_controls_fail(tmp_path: Path) -> None:
    rows = _mask_rows(6, weighted=True)
    path = write_mask(tmp_path / "m.parquet", rows)
    export(path, "verl", tmp_path / "out")
    every = np.ones(6, np.int64)

    def found(other: list[dict[str, Any]]) -> Any:
        mask = Mask(write_mask(tmp_path / "other.parquet", other))
        return check_tokens(find("verl"), tmp_path / "out", expected_tokens(mask.batches(every[: len(other)]), True))

    assert found(rows).passed
    assert not found(rows[:5]).passed
    assert not found([*rows[:5], rows[0]]).passed
    token = rows[2] | {"input_ids": [*rows[2]["input_ids"][:-1], 777], "labels": [*rows[2]["labels"][:-1], 777]}
    assert "tokens differ" in found([*rows[:2], token, *rows[3:]]).differences[0]
    label = rows[2] | {"labels": [*rows[2]["labels"][:-1], -100]}
    assert "were not scored get loss" in found([*rows[:2], label, *rows[3:]]).differences[0]
    weight = rows[2] | {"sample_weight": rows[2]["sample_weight"] + 0.01}
    assert "the weight of token" in found([*rows[:2], weight, *rows[3:]]).differences[0]


def test_message_checks_and_their_controls(tmp_path: Path) -> None:
    from trajscore.rendering.renderer import Renderer

    chats = [_chat(number) for number in range(3)]
    path = _jsonl(tmp_path / "c.jsonl", chats)
    export(path, "verl", tmp_path / "out")
    every = np.ones(3, np.int64)
    ours = ConversationFile(path, find("verl"))
    assert check_messages(find("verl"), tmp_path / "out", ours.rows(every, False)).passed
    chats[1]["messages"][1]["content"] += "!"
    other = ConversationFile(_jsonl(tmp_path / "d.jsonl", chats), find("verl"))
    assert "c1" in check_messages(find("verl"), tmp_path / "out", other.rows(every, False)).differences[0]
    one, two = (
        [each.row.input_ids_P.tolist() for each in expected_messages(ours.rows(every, False), Renderer(model))]
        for model in (str(STUDENT), str(STUDENT) + "-llama")
    )
    assert one != two


@pytest.mark.parametrize("to", ["verl", "llamafactory", "axolotl"])
def test_a_template_that_the_trainer_cannot_be_given_is_refused(to: str, tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "c.jsonl", [_chat(1)])
    with pytest.raises(UsageError, match="takes no chat template"):
        export(path, to, tmp_path / "out", student=STUDENT, chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(UsageError, match="--student"):
        export(path, "trl", tmp_path / "out", chat_template="trl")


def test_a_selection_goes_through(tmp_path: Path) -> None:
    """select -> export, Parquet and JSONL alike: the metric columns do not get in the way."""
    from tests.helpers.score_tables import random_rows, write_folder
    from trajscore import select

    scores = write_folder(tmp_path / "scores", random_rows(40, seed=3))
    for suffix in ("jsonl", "parquet"):
        kept = select([scores], "rsr", per_prompt=1, out=tmp_path / f"kept.{suffix}")
        done = export(tmp_path / f"kept.{suffix}", "axolotl", tmp_path / suffix)
        assert done.rows_in == kept.rows_kept
    one, two = ((tmp_path / suffix / "train.jsonl").read_bytes() for suffix in ("jsonl", "parquet"))
    assert one == two


def test_a_damaged_mask_is_an_error_with_a_hint(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.parquet", _mask_rows(300))
    content = bytearray(path.read_bytes())
    content[100:400] = b"\0" * 300
    path.write_bytes(content)
    with pytest.raises((DataError, UsageError)):
        export(path, "trl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_polars_reads_what_was_written(tmp_path: Path) -> None:
    export(write_mask(tmp_path / "m.parquet", _mask_rows(5, soft=True)), "trl", tmp_path / "out")
    frame = pl.read_parquet(tmp_path / "out" / "data" / "train.parquet")
    assert dict(frame.schema) == {
        "input_ids": pl.List(pl.Int32),
        "labels": pl.List(pl.Int32),
        "loss_weight": pl.List(pl.Float32),
    }


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "4"}]])
def test_llamafactory_leaves_out_what_its_templates_cannot_take(content: Any, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        {"id": "b", "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": content}]},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = export(tmp_path / "c.jsonl", to="llamafactory", out=tmp_path / "out")
    assert (made.rows_in, made.rows_written) == (2, 1)
    (left,) = (json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines())
    assert (left["id"], left["reason"]) == ("b", "content")
