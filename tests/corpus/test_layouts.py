"""One row -> one trajectory: every layout, every refusal, ids and prompt ids."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trajscore.corpus import FieldNames, trajectory_from_row
from trajscore.errors import DataError

ASKED = {"role": "user", "content": "2+2?"}
ANSWERED = {"role": "assistant", "content": "4"}
CONVERSATION = [ASKED, ANSWERED]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CONVERSATION},
        {"messages": json.dumps(CONVERSATION)},
        {"messages": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"messages": CONVERSATION, "prompt": "other", "completion": "other", "text": "other"},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"conversations": [{"from": "user", "value": "2+2?"}, {"from": "model", "value": "4"}]},
        {"conversations": CONVERSATION},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": "2+2?", "response": "4", "problem": "other", "solution": "other"},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"prompt": [ASKED], "response": "4"},
        {"prompt": None, "question": "2+2?", "answer": "4"},
        {"problem": "2+2?", "solution": "4", "answer": "other"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"instruction": "2+2?", "input": None, "generation": "4"},
        {"messages": None, "question": "2+2?", "solution": None, "answer": "4", "text": "other"},
    ],
)
def test_each_layout_gives_the_same_conversation_and_prompt_id(row: dict[str, Any]) -> None:
    read = trajectory_from_row(row)
    assert (read.messages, read.text, read.refusal) == (CONVERSATION, None, "")
    assert read.prompt_id == trajectory_from_row({"messages": CONVERSATION}).prompt_id


def test_an_input_is_joined_to_an_instruction_but_not_to_a_question() -> None:
    row = {"instruction": "Add.", "input": "2+2", "output": "4"}
    messages = trajectory_from_row(row).messages
    assert messages is not None
    assert messages[0]["content"] == "Add.\n2+2"
    messages = trajectory_from_row({"question": "Add.", "input": "2+2", "output": "4"}).messages
    assert messages is not None
    assert messages[0]["content"] == "Add."


def test_speakers_become_roles() -> None:
    said = ["system", "human", "function_call", "observation", "chatgpt", "tool", "bing"]
    read = trajectory_from_row({"conversations": [{"from": name, "value": name} for name in said]})
    assert read.messages is not None
    roles = [message["role"] for message in read.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert [message["content"] for message in read.messages] == said


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "2+2?"}]},
        {"prompt": "2+2?", "completion": "4"},
        {"question": "2+2?", "answer": "4"},
    ],
)
def test_a_system_column_goes_in_front_unless_there_is_a_system_turn(row: dict[str, Any]) -> None:
    read = trajectory_from_row({**row, "system": "Be brief."})
    assert read.messages is not None
    assert read.messages[0] == {"role": "system", "content": "Be brief."}
    assert len(read.messages) == len(trajectory_from_row(row).messages or []) + 1
    assert trajectory_from_row({**row, "system": ""}).messages == trajectory_from_row(row).messages


def test_a_system_column_that_the_system_turn_holds_is_used_once_and_another_one_refuses_the_row() -> None:
    row = {"prompt": [{"role": "system", "content": "A, and B"}, ASKED], "completion": "4"}
    messages = trajectory_from_row({**row, "system": "B"}).messages or []
    assert [message["content"] for message in messages] == ["A, and B", "2+2?", "4"]
    assert trajectory_from_row({**row, "system": "C"}).refusal == "conflicting_text"


def test_bare_text_has_no_messages_and_a_prompt_of_its_own() -> None:
    one, other = trajectory_from_row({"text": "abc"}), trajectory_from_row({"text": "abd"})
    assert (one.messages, one.text, one.refusal) == (None, "abc", "")
    assert one.prompt_id != other.prompt_id
    assert one.prompt_id == trajectory_from_row({"text": "abc", "teacher": "x"}).prompt_id


def test_an_empty_response_is_present() -> None:
    read = trajectory_from_row({"question": "2+2?", "solution": "", "answer": "4"})
    assert read.messages == [ASKED, {"role": "assistant", "content": ""}]
    assert read.refusal == ""


def test_content_forms() -> None:
    """As they are, as trainers hand them to the template: null is null, and parts stay parts (without the nulls of a table)."""
    parts = [{"type": "text", "text": "a", "image": None}, {"type": "thinking", "thinking": "b", "text": None}]
    row = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": None}, {"role": "assistant"}]
    }
    kept = [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}]
    assert [message["content"] for message in trajectory_from_row(row).messages or []] == [kept, None, None]


def test_null_keys_are_dropped_but_for_those_of_arguments_and_no_tool_calls_are_none() -> None:
    call = {"id": None, "function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    row: dict[str, Any] = {
        "messages": [
            {"role": "assistant", "content": "", "tool_calls": [call], "name": None, "reasoning_content": "r"},
            {"role": "assistant", "content": "c", "tool_calls": []},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": None}}],
    }
    read = trajectory_from_row(row)
    kept = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    assert read.messages == [
        {"role": "assistant", "content": "", "tool_calls": [kept], "reasoning_content": "r"},
        {"role": "assistant", "content": "c"},
    ]
    assert read.tools == [{"type": "function", "function": {"name": "f"}}]
    assert row["messages"][0]["tool_calls"] == [call], "the row itself must stay as it was"


def test_tools_as_text_empty_and_broken() -> None:
    row: dict[str, Any] = {"messages": CONVERSATION}
    assert trajectory_from_row({**row, "tools": '[{"name": "f"}]'}).tools == [{"name": "f"}]
    assert trajectory_from_row({**row, "tools": ""}).tools is None
    assert trajectory_from_row({**row, "tools": "[]"}).tools is None
    for broken in ("{", "{}", 7, "[" * 100_000):
        read = trajectory_from_row({**row, "tools": broken})
        assert (read.refusal, read.messages, read.tools) == ("invalid_tools", None, None)


@pytest.mark.parametrize(
    ("row", "refusal", "detail"),
    [
        ({"a": 1, "b": None}, "no_known_layout", "The row has a; known layouts: messages"),
        ({}, "no_known_layout", "The row has nothing"),
        ({"prompt": "only"}, "no_known_layout", "prompt"),
        ({"messages": [ASKED, {"role": "critic", "content": ""}]}, "unknown_role", "messages[1] has the role 'critic'"),
        ({"conversations": [{"from": "owl", "value": ""}]}, "unknown_role", "conversations[0] is from 'owl'"),
        ({"conversations": [{"from": 3, "value": ""}]}, "unknown_role", "is from 3"),
        ({"messages": "hello"}, "invalid_messages", "not JSON"),
        ({"messages": "[" * 100_000}, "invalid_messages", "nested deeper than 100 levels"),
        ({"messages": "[" * 101 + "]" * 101}, "invalid_messages", "nested deeper than 100 levels"),
        (
            {"messages": '[{"role": "user", "content": "\\ud800"}]'},
            "invalid_messages",
            "\\ud800, half of a surrogate pair",
        ),
        ({"messages": {"role": "user"}}, "invalid_messages", "an object"),
        ({"messages": []}, "invalid_messages", "empty list"),
        ({"messages": [None]}, "invalid_messages", "messages[0] is null"),
        ({"messages": ["hello"]}, "invalid_messages", "a string"),
        ({"messages": [{"content": "x"}]}, "invalid_messages", "null as its role"),
        ({"messages": [{"role": "user", "content": 7}]}, "invalid_messages", "messages[0].content is a number"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "invalid_messages", "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "invalid_messages", "content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not_text", "type 'image'"),
        ({"messages": [{"role": "assistant", "tool_calls": "f()"}]}, "invalid_messages", "tool_calls"),
        ({"messages": [{"role": "assistant", "reasoning_content": 1}]}, "invalid_messages", "reasoning_content"),
        ({"conversations": [{"from": "human", "value": 1}]}, "invalid_messages", "a number"),
        ({"prompt": 7, "completion": "x"}, "invalid_messages", "prompt is a number"),
        ({"question": "x", "answer": 4}, "invalid_messages", "answer is a number"),
        ({"question": "x", "answer": "4", "system": 4}, "invalid_messages", "system is a number"),
        ({"text": ["x"]}, "invalid_messages", "text is a list"),
    ],
)
def test_refusals_say_which_value(row: dict[str, Any], refusal: str, detail: str) -> None:
    read = trajectory_from_row({**row, "id": "x"})
    assert (read.id, read.refusal, read.messages, read.text) == ("x", refusal, None, None)
    # The id joined the row's columns in the sentence about layouts.
    assert detail in read.detail.replace("has id;", "has nothing;").replace(", id;", ";")


def test_given_names_become_text() -> None:
    def names(**row: Any) -> tuple[str, str, str | None]:
        read = trajectory_from_row({"messages": CONVERSATION, **row})
        return read.id, read.prompt_id, read.teacher

    assert names(id="a", prompt_id="p", teacher="t") == ("a", "p", "t")
    assert names(id=12, prompt_id=3, teacher=4) == ("12", "3", "4")
    assert names(id=12.0, prompt_id=1.5, teacher=["a"]) == ("12", "1.5", '["a"]')
    assert names(id=True, prompt_id={"b": 1, "a": 2}, teacher=None) == ("true", '{"a":2,"b":1}', None)


def test_missing_id_is_a_hash_of_the_content_however_it_was_stored() -> None:
    first = trajectory_from_row({"messages": CONVERSATION, "score": 1, "b": None})
    assert first.id == trajectory_from_row({"score": 1.0, "id": None, "messages": CONVERSATION}).id
    assert first.id != trajectory_from_row({"messages": CONVERSATION, "score": 2}).id
    assert len(first.id) == 32
    assert trajectory_from_row({"messages": CONVERSATION, "id": ""}).id != ""


def test_prompt_id_hashes_what_stands_before_the_first_assistant_turn() -> None:
    def prompt_id(messages: list[dict[str, Any]], **row: Any) -> str:
        return trajectory_from_row({"messages": messages, **row}).prompt_id

    same = prompt_id(CONVERSATION)
    assert same == prompt_id([ASKED, {"role": "assistant", "content": "5"}, {"role": "user", "content": "no"}])
    assert same == prompt_id([ASKED])
    assert same == prompt_id(CONVERSATION, prompt_id="")
    assert same != prompt_id([{"role": "system", "content": "s"}, *CONVERSATION])
    assert same != prompt_id(CONVERSATION, tools=[{"name": "f"}])


def test_remapped_columns() -> None:
    row = {"uid": 1, "task": "p", "model": "t", "turns": CONVERSATION, "text": "other"}
    read = trajectory_from_row(row, FieldNames(id="uid", prompt="task", teacher="model", messages="turns"))
    assert (read.id, read.prompt_id, read.teacher, read.messages) == ("1", "p", "t", CONVERSATION)


def test_a_remapped_prompt_is_the_text_where_nothing_else_is() -> None:
    row = {"asked": "2+2?", "response": "4"}
    assert trajectory_from_row(row).refusal == "no_known_layout"
    read = trajectory_from_row(row, FieldNames(prompt="asked"))
    assert read.messages == CONVERSATION
    assert read.prompt_id == trajectory_from_row({"messages": CONVERSATION}).prompt_id
    # Where the row has a layout of its own, the column names the prompt.
    assert trajectory_from_row({**row, "messages": CONVERSATION}, FieldNames(prompt="asked")).prompt_id == "2+2?"


def test_a_row_too_deep_to_walk_is_an_error_of_ours() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(DataError, match="nested too deeply"):
        trajectory_from_row({"messages": CONVERSATION, "deep": deep})
