"""One row of a corpus -> one trajectory. It knows the five row layouts, and neither files nor chat templates.

Layouts, in order of recognition (a key counts when its value is not null): `messages`, `conversations`, `prompt` with
`completion`/`response`, `problem`/`question`/`instruction` with a response, `text`. A row that has a layout but not
what the layout asks for is refused with a status and a sentence, never repaired by guessing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trajscore.corpus.columns import FREE_FORM
from trajscore.corpus.identity import (
    MAX_DEPTH,
    USUAL_NAMES,
    FieldNames,
    digest,
    name_text,
    row_id,
    row_teacher,
    without_nulls,
)
from trajscore.corpus.storable import first_half, nesting

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
QUESTIONS = ("problem", "question", "instruction")
ANSWERS = ("solution", "response", "output", "generation", "answer")
COMPLETIONS = ("completion", "response")
LAYOUTS = (
    "messages [{role, content}]; conversations [{from, value}]; prompt with completion or response; "
    "problem, question or instruction with solution, response, output, generation or answer; text"
)

UNKNOWN_LAYOUT = "no_known_layout"
UNKNOWN_ROLE = "unknown_role"
INVALID_MESSAGES = "invalid_messages"
INVALID_TOOLS = "invalid_tools"
NOT_TEXT = "not_text"
NOT_STORABLE = "not_storable"
DUPLICATE_ID = "duplicate_id"


@dataclass(frozen=True)
class Trajectory:
    """One row as a conversation, or the reason why it is none.

    Attributes:
        id: the row's name; a hash of its content where it has none.
        prompt_id: the prompt's name; a hash of everything before the first assistant turn where it has none.
        teacher: who wrote it, None when unknown.
        messages: the turns, each with `role` and a string `content`; None for a bare `text` row and for a refused one.
        text: the text of a bare `text` row, else None.
        tools: tool definitions for the chat template, None when there are none.
        chat_template_kwargs: what the row gives the chat template, as TRL does; None when it gives nothing.
        weights: index of an assistant's message -> its weight in training, where the row gives one. A turn of weight 0 is
            context: rendered, not scored.
        refusal: empty, or the status of a row that cannot be scored.
        detail: a sentence that says which value was refused and what was allowed.
    """

    id: str
    prompt_id: str
    teacher: str | None
    messages: list[dict[str, Any]] | None
    text: str | None
    tools: list[Any] | None
    refusal: str = ""
    detail: str = ""
    chat_template_kwargs: dict[str, Any] | None = None
    weights: Mapping[int, float] = field(default_factory=dict)


class _RefusedRowError(Exception):
    """Carries a refusal up to `trajectory_from_row`; it never leaves this file."""

    def __init__(self, status: str, detail: str) -> None:
        self.status = status
        self.detail = detail
        super().__init__(detail)


def recognise(row: Mapping[str, Any], fields: FieldNames = USUAL_NAMES) -> str | None:
    """Name of the row's layout, None when it has none. `remapped` is a `--prompt-field` with a response column.

    >>> recognise({"messages": None, "question": "2+2?", "answer": "4"})
    'question'
    """
    if row.get(fields.messages or "messages") is not None:
        return "messages"
    if row.get("conversations") is not None:
        return "conversations"
    if row.get("prompt") is not None and _first(row, COMPLETIONS):
        return "prompt"
    if _first(row, QUESTIONS) and _first(row, ANSWERS):
        return "question"
    if row.get("text") is not None:
        return "text"
    if fields.prompt and row.get(fields.prompt) is not None and _first(row, ("completion", *ANSWERS)):
        return "remapped"
    return None


def trajectory_from_row(row: Mapping[str, Any], fields: FieldNames = USUAL_NAMES, fault: str = "") -> Trajectory:
    """Reads one row.

    Null-valued keys of messages and tools are dropped at every depth, because a Parquet file cannot tell them from
    missing ones (TRL drops them too, before it trains); a null or missing `content` becomes an empty string. A bare
    `text` row without `prompt_id` gets the hash of its text, a refused one the hash of the row, so that no two are
    taken for answers to the same prompt.

    Args:
        row: column name -> value, as JSON or `to_pylist` gives it.
        fields: remapped columns.
        fault: what of the row could not be stored; empty for a row that is whole.

    Returns:
        The trajectory; `refusal` is `not_storable`, `no_known_layout`, `unknown_role`, `invalid_messages`, `invalid_tools`
        or `not_text` for a row that cannot be scored.

    Raises:
        DataError: if the row is nested too deeply to be walked.

    >>> trajectory_from_row({"id": 7, "question": "2+2?", "answer": "4"}).messages
    [{'role': 'user', 'content': '2+2?'}, {'role': 'assistant', 'content': '4'}]
    """
    layout = recognise(row, fields)
    messages: list[dict[str, Any]] | None = None
    text = tools = None
    refusal = detail = ""
    try:
        if fault:
            raise _RefusedRowError(NOT_STORABLE, fault)
        if layout == "text":
            text = _text(row, "text")
        else:
            messages = _conversation(row, layout, fields)
            tools = _tools(row.get("tools"))
    except _RefusedRowError as refused:
        messages, refusal, detail = None, refused.status, refused.detail
    return Trajectory(
        id=row_id(row, fields),
        prompt_id=_given_prompt(row, layout, fields) or _prompt_hash(row, messages, text, tools),
        teacher=row_teacher(row, fields),
        messages=messages,
        text=text,
        tools=tools,
        refusal=refusal,
        detail=detail,
    )


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _given_prompt(row: Mapping[str, Any], layout: str | None, fields: FieldNames) -> str:
    """The row's own prompt id, empty when it has none (a remapped prompt that served as the text is none)."""
    given = None if layout == "remapped" else row.get(fields.prompt or "prompt_id")
    return "" if given is None else name_text(given)


def _prompt_hash(
    row: Mapping[str, Any], messages: list[dict[str, Any]] | None, text: str | None, tools: list[Any] | None
) -> str:
    if messages is None:
        return digest(row if text is None else text)
    before = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return digest({"messages": messages[:before], "tools": tools})


def _conversation(row: Mapping[str, Any], layout: str | None, fields: FieldNames) -> list[dict[str, Any]]:
    if layout is None:
        columns = ", ".join(name for name, value in row.items() if value is not None) or "nothing"
        raise _RefusedRowError(UNKNOWN_LAYOUT, f"The row has {columns}; known layouts: {LAYOUTS}.")
    if layout == "messages":
        name = fields.messages or "messages"
        return _turns(_parsed(row[name], name, INVALID_MESSAGES), name)
    if layout == "conversations":
        messages = _turns(_parsed(row["conversations"], "conversations", INVALID_MESSAGES), "conversations")
    elif layout == "question":
        question = str(_first(row, QUESTIONS))
        prompt = _text(row, question)
        if question == "instruction" and row.get("input") not in (None, ""):
            prompt = f"{prompt}\n{_text(row, 'input')}"
        response = _text(row, str(_first(row, ANSWERS)))
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    else:
        prompt_name = "prompt" if layout == "prompt" else str(fields.prompt)
        answer_name = str(_first(row, COMPLETIONS if layout == "prompt" else ("completion", *ANSWERS)))
        messages = _side(row, prompt_name, "user") + _side(row, answer_name, "assistant")
    return _with_system(row, messages)


def _with_system(row: Mapping[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = row.get("system")
    if system in (None, "") or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": _text(row, "system")}, *messages]


def _side(row: Mapping[str, Any], name: str, role: str) -> list[dict[str, Any]]:
    """A prompt or a completion: a string is one turn of that role, a list is messages."""
    if isinstance(row[name], list | tuple):
        return _turns(row[name], name)
    return [{"role": role, "content": _text(row, name)}]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if isinstance(value, str):
        return value
    raise _RefusedRowError(INVALID_MESSAGES, f"{name} is {_kind(value)}; it must be a string.")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")


def _parsed(value: Any, name: str, status: str) -> Any:
    """The value, or what its JSON text holds: some corpora store nested columns as text."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise _RefusedRowError(status, f"{name} is a string that is not JSON: {error}.") from None
    except RecursionError:
        raise _too_deep(name, status) from None
    if nesting(parsed) > MAX_DEPTH:
        raise _too_deep(name, status)
    if half := first_half(parsed):
        raise _RefusedRowError(status, f"{name} is JSON text with {half}, half of a surrogate pair, which is no text.")
    return parsed


def _too_deep(name: str, status: str) -> _RefusedRowError:
    return _RefusedRowError(status, f"{name} is JSON text nested deeper than {MAX_DEPTH} levels.")


def _tools(value: Any) -> list[Any] | None:
    if value in (None, "", []):
        return None
    tools = _walked(_parsed(value, "tools", INVALID_TOOLS), "tools", INVALID_TOOLS)
    if not isinstance(tools, list):
        raise _RefusedRowError(INVALID_TOOLS, f"tools is {_kind(tools)}; it must be a list, or JSON text of a list.")
    return tools or None


def _walked(value: Any, name: str, status: str) -> Any:
    try:
        return without_nulls(value, FREE_FORM)
    except RecursionError:
        raise _RefusedRowError(status, f"{name} is nested too deeply.") from None


def _turns(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        raise _RefusedRowError(INVALID_MESSAGES, f"{name} is {_kind(value)}; it must be a list of messages.")
    if not value:
        raise _RefusedRowError(INVALID_MESSAGES, f"{name} is an empty list; it must hold at least one message.")
    return [_turn(item, f"{name}[{i}]") for i, item in enumerate(value)]


def _turn(item: Any, where: str) -> dict[str, Any]:
    """One message, with a known role first, then a string content, then whatever else it carries."""
    if not isinstance(item, Mapping):
        raise _RefusedRowError(
            INVALID_MESSAGES, f"{where} is {_kind(item)}; it must be an object with role and content."
        )
    if item.get("role") is None and item.get("from") is not None:
        return _spoken_turn(item, where)
    turn = _walked(item, where, INVALID_MESSAGES)
    role = turn.pop("role", None)
    if not isinstance(role, str):
        raise _RefusedRowError(INVALID_MESSAGES, f"{where} has {_kind(role)} as its role; it must be a string.")
    if role not in ROLES:
        raise _RefusedRowError(UNKNOWN_ROLE, f"{where} has the role {role!r}; known: {', '.join(ROLES)}.")
    content = _content(turn.pop("content", None), where)
    if not isinstance(turn.get("reasoning_content", ""), str):
        raise _RefusedRowError(INVALID_MESSAGES, f"{where}.reasoning_content is no string.")
    calls = turn.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise _RefusedRowError(INVALID_MESSAGES, f"{where}.tool_calls must be a list of objects.")
    if not calls:
        # Templates ask whether the key is there, and then count the calls.
        turn.pop("tool_calls", None)
    return {"role": role, "content": content, **turn}


def _spoken_turn(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    speaker = item["from"]
    role = SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise _RefusedRowError(UNKNOWN_ROLE, f"{where} is from {speaker!r}; known: {', '.join(SPEAKERS)}.")
    return {"role": role, "content": _content(item.get("value"), where)}


def _content(value: Any, where: str) -> str:
    """The content as one string; a list of text parts is joined without a separator."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _RefusedRowError(
            INVALID_MESSAGES, f"{where}.content is {_kind(value)}; it must be a string, null or a list of text parts."
        )
    return "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(value))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(kind, str) and kind != "text":
        raise _RefusedRowError(NOT_TEXT, f"{where} is of type {kind!r}; only text can be scored.")
    raise _RefusedRowError(INVALID_MESSAGES, f'{where} must be {{"type": "text", "text": a string}}.')
