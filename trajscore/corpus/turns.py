"""The value of a column -> turns as chat templates read them: a role, content, thoughts, calls of tools.

However a data set writes messages (keys, speakers, JSON text, pairs, marks in a text), they leave here in one form, or the row
is refused. Which column is read, and what the turns of several make together, is `trajectories`' business.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import Any

from trajscore.corpus import layouts
from trajscore.corpus.columns import FREE_FORM, Observed
from trajscore.corpus.identity import MAX_DEPTH, without_nulls
from trajscore.corpus.storable import first_half, nesting
from trajscore.rendering.phases import ANSWER, phase_starts

UNKNOWN_ROLE = "unknown_role"
INVALID_MESSAGES = "invalid_messages"
NOT_TEXT = "not_text"
CONFLICT = "conflicting_text"

_CHAT = re.compile(r"^\s*(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):\s*", re.MULTILINE)
_CHAT_END = "<|endoftext|>"


class RefusedRowError(Exception):
    """Why a row cannot be read, on its way up to `trajectories.read_trajectory`, which makes a refused trajectory of it."""

    def __init__(self, status: str, detail: str) -> None:
        self.status = status
        self.detail = detail
        super().__init__(detail)


def messages_in(text: str) -> Any:
    """The list of messages that a text is, as JSON or as Python writes it; else the text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, list) and value and all(_is_turn(item) for item in value):
            return value
    return text


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(value.get(key), str) for key in ("role", "from"))


def read_history(value: Any, name: str) -> list[dict[str, Any]]:
    """Turns before a prompt: pairs of question and answer, or messages; none where the value is null or empty.

    Raises:
        RefusedRowError: it is something else.
    """
    if value is None or value in ("", []):
        return []
    value = parse_nested(value, name, INVALID_MESSAGES)
    if not isinstance(value, list | tuple):
        raise RefusedRowError(
            INVALID_MESSAGES, f"{name} is {kind_name(value)}; it must be a list of [question, answer]."
        )
    if all(isinstance(item, Mapping) for item in value):
        return read_turns(value, name)
    turns = []
    for i, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RefusedRowError(INVALID_MESSAGES, f"{name}[{i}] must be [question, answer], two strings.")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def read_marked_chat(text: str, name: str) -> list[dict[str, Any]]:
    """The turns of a text in which USER:, ASSISTANT: and FUNCTION RESPONSE: begin them, or RefusedRowError."""
    marks = list(_CHAT.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise RefusedRowError(INVALID_MESSAGES, f"{name} does not begin with USER:, ASSISTANT: or FUNCTION RESPONSE:.")
    roles = {"SYSTEM": "system", "USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
    messages = []
    for mark, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=True):
        said = text[mark.end() : end].replace(_CHAT_END, "").strip()
        messages.append({"role": roles[mark[1]], "content": said})
    return messages


def kind_name(value: Any) -> str:
    """What a JSON value is, for a sentence that says what it should have been."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")


def parse_nested(value: Any, name: str, status: str) -> Any:
    """The value, or what its JSON text holds: some corpora store nested columns as text, some as Python writes it."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError as error:
        parsed = _python_literal(value)
        if parsed is None:
            raise RefusedRowError(status, f"{name} is a string that is not JSON: {error}.") from None
    except RecursionError:
        raise _too_deep(name, status) from None
    if nesting(parsed) > MAX_DEPTH:
        raise _too_deep(name, status)
    if half := first_half(parsed):
        raise RefusedRowError(status, f"{name} is JSON text with {half}, half of a surrogate pair, which is no text.")
    return parsed


def _python_literal(text: str) -> Any:
    """A list or object as Python writes it; None for any other text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return value if isinstance(value, list | dict) else None


def _too_deep(name: str, status: str) -> RefusedRowError:
    return RefusedRowError(status, f"{name} is JSON text nested deeper than {MAX_DEPTH} levels.")


def cleaned(value: Any, name: str, status: str) -> Any:
    """The value without nulls, save where keys are free; RefusedRowError where it is too deep for that."""
    try:
        return without_nulls(value, FREE_FORM)
    except RecursionError:
        raise RefusedRowError(status, f"{name} is nested too deeply.") from None


def read_turns(value: Any, name: str) -> list[dict[str, Any]]:
    """The turns of a list of messages, at least one, and what they hold of others: earlier ones, observations of tools.

    Args:
        value: the column's value.
        name: the column's, for what is said of it.

    Raises:
        RefusedRowError: the value is no such list, or a message is none.
    """
    if not isinstance(value, list | tuple):
        raise RefusedRowError(INVALID_MESSAGES, f"{name} is {kind_name(value)}; it must be a list of messages.")
    if not value:
        raise RefusedRowError(INVALID_MESSAGES, f"{name} is an empty list; it must hold at least one message.")
    turns = list[dict[str, Any]]()
    for i, item in enumerate(value):
        turns += _told_first(item, name, turns) if isinstance(item, Mapping) and not _TOLD.isdisjoint(item) else []
        turns.append(_turn(item, f"{name}[{i}]"))
        if isinstance(item, Mapping) and item.get("observation") is not None:
            turns += _observed(item["observation"], f"{name}[{i}].observation")
    return turns


_TOLD = {*layouts.SYSTEMS, layouts.HISTORY}


def _told_first(item: Mapping[str, Any], name: str, turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a message says of the turns before it: a system prompt, earlier turns; nothing where they are there."""
    where, told = f"{name}[{len(turns)}]", list[dict[str, Any]]()
    if str(item.get("role")).lower() != "system":
        given = {key: item[key] for key in layouts.SYSTEMS if item.get(key)}
        if wrong := [key for key, text in given.items() if not isinstance(text, str)]:
            raise RefusedRowError(
                INVALID_MESSAGES, f"{where}.{wrong[0]} is {kind_name(given[wrong[0]])}; it must be a string."
            )
        systems = {text for text in given.values() if text.strip()}
        told += [{"role": "system", "content": text} for text in sorted(systems)]
    earlier = item.get(layouts.HISTORY)
    told += [{**turn, "weight": 0.0} if turn["role"] == "assistant" else turn for turn in read_history(earlier, where)]
    said = [turn.get("content") for turn in turns]
    told = [turn for turn in told if turn["content"] not in said]
    if told and (turns or len([turn for turn in told if turn["role"] == "system"]) > 1):
        raise RefusedRowError(CONFLICT, f"{where} holds a system prompt or earlier turns that are not before it.")
    return told


_PLAIN_TURN = {"role", "content"}
_PLAIN_ROLES = ("user", "assistant", "system", "tool")


def _turn(item: Any, where: str) -> dict[str, Any]:
    """One message: a known role first, then its content, then whatever else of it templates read, under the usual names."""
    if not isinstance(item, Mapping):
        raise RefusedRowError(
            INVALID_MESSAGES, f"{where} is {kind_name(item)}; it must be an object with role and content."
        )
    if item.keys() == _PLAIN_TURN and item["role"] in _PLAIN_ROLES and type(item["content"]) is str:
        return {"role": item["role"], "content": item["content"]}
    speaks = next((key for key in layouts.ROLE_KEYS if item.get(key) is not None), "role")
    speaker = item.get(speaks)
    role = _role(speaker, speaks, where)
    said = next((key for key in layouts.CONTENT_KEYS if item.get(key) is not None), "content")
    if role == "system" and item.get(said) is None and isinstance(item.get("system_prompt"), str):
        said = "system_prompt"
    turn: dict[str, Any] = {"role": role, "content": _content(item.get(said), where)}
    thoughts = [item[key] for key in layouts.REASONING_KEYS if item.get(key) is not None]
    if thoughts:
        turn = with_thoughts(turn, _thoughts(thoughts, where), f"{where}.{said} and its thoughts")
    elif item.get(said) is None:
        _refuse_hidden_text(item, where)
    for key in layouts.TURN_KEYS:
        if item.get(key) is not None:
            turn[key] = cleaned(item[key], where, INVALID_MESSAGES)
    for key in layouts.WEIGHT_KEYS:
        if (weight := _weight(item.get(key), f"{where}.{key}")) is not None:
            turn["weight"] = min(weight, turn.get("weight", weight))
    if role == "assistant" and isinstance(turn.get("function_call"), Mapping) and "tool_calls" not in turn:
        # As OpenAI's API wrote a single call before there were several.
        turn["tool_calls"] = [{"type": "function", "function": turn.pop("function_call")}]
    if "tool_calls" in turn:
        turn["tool_calls"] = _tool_calls(turn["tool_calls"], where)
        if not turn["tool_calls"]:
            # Templates ask whether the key is there, and then count the calls.
            del turn["tool_calls"]
    if isinstance(speaker, str) and speaker.lower() == "function_call" and isinstance(turn["content"], str):
        turn |= _spoken_call(turn["content"])
    return turn


def with_thoughts(turn: dict[str, Any], thoughts: Any, where: str) -> dict[str, Any]:
    """A turn with thoughts that stand beside it; as it is where it holds them already.

    Args:
        turn: the turn.
        thoughts: a text.
        where: the two places, for what is said of them.

    Raises:
        RefusedRowError: the turn holds other thoughts.
    """
    if not isinstance(thoughts, str):
        raise RefusedRowError(INVALID_MESSAGES, f"{where}: thoughts must be a string, not {kind_name(thoughts)}.")
    content, there, plain = turn.get("content"), turn.get("reasoning_content"), thoughts.strip()
    parts = content if isinstance(content, list) else []
    held = [there, *(part["thinking"] for part in parts if part.get("type") == "thinking")]
    if given := [text.strip() for text in held if text is not None]:
        if plain in given or plain == "\n\n".join(given):
            return turn
    elif isinstance(content, str) and plain and plain in content:
        return turn
    elif not plain or not isinstance(content, str) or phase_starts(content)[1][0] == ANSWER:
        return {**turn, "reasoning_content": thoughts}
    raise RefusedRowError(CONFLICT, f"{where} hold different thoughts.")


def _refuse_hidden_text(item: Mapping[str, Any], where: str) -> None:
    """Refuses a message without content, thoughts and calls that holds text under a key which nobody reads."""
    if any(item.get(key) is not None for key in (*layouts.TURN_KEYS, "observation", *_TOLD)):
        return
    for key in item:
        seen = Observed()
        seen.observe(item[key])
        if key not in (*layouts.ROLE_KEYS, *layouts.WEIGHT_KEYS, "id", "type", "status") and seen.holds_text():
            raise RefusedRowError(
                INVALID_MESSAGES,
                f"{where} has no content, and text under {key!r}; text is read under {', '.join(layouts.CONTENT_KEYS)}.",
            )


def _weight(value: Any, where: str) -> float | None:
    """What a turn counts in training; None where the value is no single one."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in layouts.YES | layouts.NO:
            return float(word in layouts.YES)
        try:
            return float(word)
        except ValueError:
            raise RefusedRowError(
                INVALID_MESSAGES, f"{where} is {value[:40]!r}; it must be a number, true or false."
            ) from None
    return float(value) if isinstance(value, int | float) and not isnan(value) else None


def _role(speaker: Any, key: str, where: str) -> str:
    if not isinstance(speaker, str):
        if key != "role":
            raise RefusedRowError(UNKNOWN_ROLE, f"{where} is from {speaker!r}; known: {', '.join(layouts.SPEAKERS)}.")
        raise RefusedRowError(INVALID_MESSAGES, f"{where} has {kind_name(speaker)} as its role; it must be a string.")
    role = speaker if key == "role" and speaker in layouts.ROLES else layouts.SPEAKERS.get(speaker.lower())
    if role is None:
        said = f"has the role {speaker!r}" if key == "role" else f"is from {speaker!r}"
        raise RefusedRowError(UNKNOWN_ROLE, f"{where} {said}; known: {', '.join(layouts.SPEAKERS)}.")
    return "tool" if key != "role" and role == "function" else role


def _thoughts(thoughts: Sequence[Any], where: str) -> str:
    if not all(isinstance(text, str) for text in thoughts):
        raise RefusedRowError(INVALID_MESSAGES, f"{where}.reasoning_content is no string.")
    if len({text.strip() for text in thoughts}) > 1:
        raise RefusedRowError(CONFLICT, f"{where} holds different thoughts under {', '.join(layouts.REASONING_KEYS)}.")
    return str(thoughts[0])


def _tool_calls(calls: Any, where: str) -> list[Any]:
    calls = (
        parse_nested(calls, f"{where}.tool_calls", INVALID_MESSAGES)
        if isinstance(calls, str) and calls[:1] == "["
        else calls
    )
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RefusedRowError(INVALID_MESSAGES, f"{where}.tool_calls must be a list of objects.")
    return [_named_call(call) if "function_name" in call else call for call in calls]


def _named_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["function_name"], "arguments": call.get("arguments")}
    return {key: value for key, value in call.items() if key not in ("function_name", "arguments")} | {
        "type": "function",
        "function": function,
    }


def _spoken_call(text: str) -> dict[str, Any]:
    """A call that is the text of a turn, as a call; nothing where the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return {}
    if any(call.keys() - {"name", "arguments"} for call in calls):
        return {}
    return {"content": "", "tool_calls": [{"type": "function", "function": call} for call in calls]}


def read_calls(value: Any, name: str) -> list[dict[str, Any]]:
    """Calls that are the response, each {name, arguments}."""
    value = parse_nested(value, name, INVALID_MESSAGES)
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise RefusedRowError(INVALID_MESSAGES, f"{name} must be a list of calls, each with name and arguments.")
    return [{"type": "function", "function": dict(call)} for call in calls]


def _observed(value: Any, where: str) -> Iterator[dict[str, Any]]:
    """What tools answered inside a step of the agent, as turns of theirs."""
    results = value.get("results") if isinstance(value, Mapping) else None
    for i, result in enumerate(results if isinstance(results, list) else [value]):
        content = result.get("content") if isinstance(result, Mapping) else result
        if content is not None:
            yield {"role": "tool", "content": _content(content, f"{where}.results[{i}]")}


def _content(value: Any, where: str) -> str | list[dict[str, str]] | None:
    """The content as trainers hand it to a template: a string, null, or its parts of text and thoughts as they are."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RefusedRowError(
            INVALID_MESSAGES,
            f"{where}.content is {kind_name(value)}; it must be a string, null or a list of text parts.",
        )
    return [_part(part, f"{where}.content[{i}]") for i, part in enumerate(value)]


def _part(part: Any, where: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind is None and isinstance(part, Mapping) and "text" not in part:
        kind = next((key for key in part if layouts.PICTURES.fullmatch(key)), None)
    if isinstance(part, Mapping) and kind in _TEXT_PARTS and isinstance(part.get(kind), str):
        if others := [key for key in _TEXT_PARTS if key != kind and part.get(key)]:
            raise RefusedRowError(CONFLICT, f"{where} is of type {kind!r} and holds {others[0]} too.")
        return {"type": kind, kind: part[kind]}
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        raise RefusedRowError(NOT_TEXT, f"{where} is of type {kind!r}; {ONLY_TEXT}.")
    raise RefusedRowError(INVALID_MESSAGES, f'{where} must be {{"type": "text", "text": a string}}.')


ONLY_TEXT = "only text can be scored, and what follows a picture needs a model that sees it"
_TEXT_PARTS = ("text", "thinking")
"""Kinds of parts that are text, which stands under the kind's own name."""


def without_weights(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[int, float]]:
    """The turns without their weights, and those of the assistant's that are not 1."""
    if not any("weight" in message for message in messages):
        return messages, {}
    weights = {
        i: message["weight"]
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight", 1.0) != 1.0
    }
    for i, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise RefusedRowError(INVALID_MESSAGES, f"message {i} has the weight {weight:g}; it must be 0 or more.")
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages], weights


def unread_keys(seen: Observed) -> list[str]:
    """Keys of turns, and paths of keys inside them, that nobody reads, in order.

    Args:
        seen: what a column of turns holds.
    """
    turns = seen.items or seen
    keys = turns.keys()
    read = {*layouts.REASONING_KEYS, *layouts.TURN_KEYS, *layouts.SYSTEMS, layouts.HISTORY, "observation"}
    read |= {key for key in layouts.WEIGHT_KEYS if key in keys and keys[key].says_how_much()}
    for choice in (layouts.ROLE_KEYS, layouts.CONTENT_KEYS):
        there = [key for key in choice if key in keys]
        # Of two keys that a turn has the first is read; of turns that have one each all are.
        apart = sum(keys[key].filled for key in there) <= turns.filled
        read |= set(there if apart else there[:1])
    found = [key for key in keys if key not in read]
    for key in layouts.CONTENT_KEYS:
        parts = keys[key].keys() if key in keys else {}
        found += [f"{key}.{part}" for part in parts if part not in ("type", *_TEXT_PARTS)]
    results = keys["observation"].keys() if "observation" in keys else {}
    found += [f"observation.{key}" for key in results if key not in ("results", "content")]
    inner = results["results"].keys() if "results" in results else {}
    found += [f"observation.results.{key}" for key in inner if key != "content"]
    return found + (["more than 64 keys"] if turns.has_many_keys else [])
