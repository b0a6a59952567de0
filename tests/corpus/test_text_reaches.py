"""Words of their own in every place of a row where text can stand, followed to the trainers' files.

T words are trained on, C words are context, U words are read by nobody. Each T is in the scored text, each C in `input_ids` and
not in the scored text, each U in no token and in a column or under a key that the manifest names; and so on through `select`,
`mask` and every export.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

import trajscore as ts
from tests.helpers.paths import DATA
from trajscore.corpus import decoded_rows
from trajscore.exporters.table import EXPORTERS
from trajscore.rendering.renderer import Renderer

STUDENT = DATA / "models" / "student"
WORD = re.compile(r"\b[TCU]\d+[a-z]\b")

TOOL = {"type": "function", "function": {"name": "look", "description": "C12a", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"x": "T13a", "y": ["T14a", {"z": "T15a"}]}}}
ASKED = (("user", "C85i"), ("assistant", "C86i"), ("user", "C87i"))
ROWS: list[dict[str, Any]] = [
    {
        "id": "messages",
        "messages": [
            {"role": "system", "content": "C10a"},
            {"role": "user", "content": [{"type": "text", "text": "C16a"}, {"type": "text", "text": " C17a"}]},
            {"role": "assistant", "content": "T18a", "tool_calls": [CALL], "info": {"deep": ["U1a"]}},
            {"role": "tool", "content": "C19a", "name": "look"},
            {"role": "assistant", "content": "T20a", "reasoning_content": "T21a", "header": "U2a"},
        ],
        "tools": [TOOL],
        "note": "U3a",
    },
    {
        "id": "beside",
        "messages": [{"role": "user", "content": "C30b"}, {"role": "assistant", "content": "T31b"}],
        "system_prompt": "C32b",
        "thinking": "T33b",
        "solution": "U4b",
        "meta": {"deep": [{"text": "U5b"}]},
    },
    {
        "id": "spoken",
        "conversations": [
            {"from": "human", "value": "C40c"},
            {"from": "gpt", "value": "C41c", "train": False},
            {"from": "human", "value": "C42c"},
            {"from": "gpt", "value": "T43c", "think": "T44c"},
        ],
        "system": "C45c",
    },
    {
        "id": "alpaca",
        "instruction": "C50d",
        "input": "C51d",
        "output": "T52d",
        "system": "C53d",
        "history": [["C54d", "C55d"]],
        "answer": "U6d",
    },
    {"id": "lists", "question": "C60e", "attempt": ["T61e", "T62e"], "thinking_trajectories": ["T63e", "T64e"]},
    {
        "id": "calls",
        "query": "C70f",
        "answers": json.dumps([{"name": "T71f", "arguments": {"x": "T72f"}}]),
        "tools": [TOOL],
    },
    {
        "id": "rendered",
        "text": "<|im_start|>user\nC80g<|im_end|>\n<|im_start|>assistant\nT81g<|im_end|>\n",
        "status": "U7g",
    },
    {
        "id": "continued",
        "prompt": "<|im_start|>user\nC82h<|im_end|>\n<|im_start|>assistant\nC83h<|im_end|>\n<|im_start|>assistant\n",
        "completion": "T84h<|im_end|>",
    },
    {
        "id": "thoughts alone beside messages",
        "messages": [{"role": "user", "content": "C90j"}, {"role": "assistant", "content": "T91j"}],
        "reasoning": "T92j",
    },
    {
        "id": "messages in text",
        "prompt": json.dumps([{"role": role, "content": said} for role, said in ASKED]),
        "response": [{"role": "assistant", "content": "T88i"}],
        "label": "U8i",
    },
]


class Scored:
    """The rows' scores, and the text of tokens."""

    def __init__(self, folder: Path) -> None:
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
        self.folder = folder / "scores"
        self.summary = ts.score(rows, STUDENT, self.folder, engine="hf", rendered="accept")
        self.frame = pl.read_parquet(self.folder / "*.parquet")
        self._renderer = Renderer(str(STUDENT))

    def text(self, ids: Any) -> str:
        return self._renderer.decode([int(each) for each in ids])


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return Scored(tmp_path_factory.mktemp("text"))


def words(value: Any, kind: str = "TCU") -> set[str]:
    """The words of a kind in a nested value."""
    if isinstance(value, str):
        return {word for word in WORD.findall(value) if word[0] in kind}
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*(words(each, kind) for each in inner))


def own(row: Mapping[str, Any], name: str) -> set[str]:
    """Words of one trajectory: of a row with lists, the element of its number."""
    number = int(name.partition("#")[2] or 0)
    parts = {key: value[number] if key in ("attempt", "thinking_trajectories") else value for key, value in row.items()}
    return words(parts)


def trajectories(scored: Scored) -> Iterator[tuple[dict[str, Any], set[str]]]:
    by_name = {row["id"]: row for row in ROWS}
    for each in scored.frame.iter_rows(named=True):
        yield each, own(by_name[each["id"].partition("#")[0]], each["id"])


def test_every_word_is_scored_or_context_or_named(scored: Scored) -> None:
    named = {
        name for each in scored.summary.columns for key in ("not_read", "unread_keys") for name in each.get(key, [])
    }
    assert scored.frame["status"].unique().to_list() == ["ok"], scored.frame.select("id", "status", "status_detail")
    assert scored.frame.height == len(ROWS) + 1
    for each, expected in trajectories(scored):
        ids = each["input_ids"]
        there, trained = words(scored.text(ids)), words(scored.text(ids[place] for place in each["positions"]))
        assert trained == {word for word in expected if word[0] == "T"}, each["id"]
        assert there == {word for word in expected if word[0] in "TC"}, each["id"]
    for row in ROWS:
        for column, value in row.items():
            for word in words(value, "U"):
                keys = [key for turn in value if word in words(turn) for key in turn] if column in SPOKEN else [column]
                assert named & set(keys), word
    assert {"note", "solution", "meta", "answer", "status", "label", "info", "header"} <= named


SPOKEN = ("messages", "conversations")


def test_a_selection_holds_all_that_was_scored(scored: Scored, tmp_path: Path) -> None:
    """Also what nobody read, under its own name."""
    ts.select(scored.folder, "length", out=tmp_path / "kept.parquet")
    kept = decoded_rows(pq.read_table(tmp_path / "kept.parquet"))
    assert len(kept) == scored.frame.height
    for each, (_, expected) in zip(kept, trajectories(scored), strict=True):
        assert expected <= words(each), each["id"]
        if each["messages"] is not None:
            said = words([each["messages"], each["tools"]])
            assert {word for word in expected if word[0] in "TC"} <= said, each["id"]
    assert [each["status"] for each in kept if each["id"] == "rendered"] == ["U7g"]


@pytest.mark.parametrize("to", sorted(name for name, each in EXPORTERS.items() if "messages" in each.forms))
def test_context_stays_context_in_every_export(to: str, scored: Scored, tmp_path: Path) -> None:
    ts.mask(scored.folder, "all", out=tmp_path / "mask.parquet")
    ts.export(tmp_path / "mask.parquet", to=to, out=tmp_path / "tokens")
    read = list(EXPORTERS[to].read_tokens(tmp_path / "tokens"))
    assert len(read) == scored.frame.height
    for row, (each, expected) in zip(read, trajectories(scored), strict=True):
        trained = words(scored.text(row.input_ids_P[row.weight_P > 0]))
        assert trained == {word for word in expected if word[0] == "T"}, each["id"]
        assert words(scored.text(row.input_ids_P)) == {word for word in expected if word[0] in "TC"}, each["id"]

    ts.select(scored.folder, "length", out=tmp_path / "kept.parquet")
    exported = ts.export(tmp_path / "kept.parquet", to=to, out=tmp_path / "chat")
    left_out = {
        json.loads(line)["id"]: json.loads(line)["reason"] for line in (tmp_path / "chat" / "left_out.jsonl").open()
    }
    assert {"rendered", "continued"} <= {name for name, reason in left_out.items() if reason == "rendered_text"}
    rows = [(each, expected) for each, expected in trajectories(scored) if each["id"] not in left_out]
    assert exported.rows_written == len(rows) >= 3
    for found, (each, expected) in zip(EXPORTERS[to].read_messages(tmp_path / "chat"), rows, strict=True):
        assert words([found["messages"], found.get("tools")]) == {word for word in expected if word[0] in "TC"}, each[
            "id"
        ]
