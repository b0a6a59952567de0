"""One row and how its kind is read -> its trajectories: which columns make the conversation, and what else is known of it.

A row that lacks what its kind has, or holds it in another form, is refused with a status and a sentence, never repaired by
guessing; text that stands in two places is used once if it agrees, and refuses the row if it does not. `turns` reads the
messages inside a column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, NamedTuple

from trajscore.corpus import layouts
from trajscore.corpus.identity import USUAL_NAMES, FieldNames, digest, name_text, value_at
from trajscore.corpus.kinds import kind_of
from trajscore.corpus.recognition import Branch, Reading, recognise
from trajscore.corpus.token_ids import GivenTokens, MisfitError, TokenColumns, given_tokens
from trajscore.corpus.turns import (
    CONFLICT,
    INVALID_MESSAGES,
    NOT_TEXT,
    ONLY_TEXT,
    RefusedRowError,
    cleaned,
    kind_name,
    messages_in,
    parse_nested,
    read_calls,
    read_history,
    read_marked_chat,
    read_turns,
    with_thoughts,
    without_weights,
)
from trajscore.rendering.rendered_text import NO_MARKS, RenderedMarks

UNKNOWN_LAYOUT = "no_known_layout"
INVALID_TOOLS = "invalid_tools"
NOT_STORABLE = "not_storable"
DUPLICATE_ID = "duplicate_id"
PLACEHOLDER = "placeholder_prompt"
EMPTY = "empty_response"
NOTHING_TRAINED = "no_trained_turn"
RENDERED = "rendered_text"
INCOMPLETE = "incomplete_prompt"


@dataclass(frozen=True)
class Trajectory:
    """One response with the conversation it ends, or the reason why it cannot be scored.

    Attributes:
        id: its name; a hash of the row's content where it has none.
        prompt_id: the prompt's name; a hash of everything before the first assistant turn where it has none.
        teacher: who wrote it, None when unknown.
        messages: the turns, each with `role`, `content` and what else chat templates read; None for a bare text and for a
            refused row.
        text: a bare text, else None.
        tools: tool definitions for the chat template, None when there are none.
        refusal: empty, or the status of a trajectory that cannot be scored.
        detail: a sentence that says which value was refused and what was allowed.
        chat_template_kwargs: what the row gives the chat template, as TRL does; None when it gives nothing.
        weights: index of an assistant's message -> its weight in training, where the row gives one. A turn of weight 0 is
            context: rendered, not scored.
        correct: whether it is right, None when unknown; a number where the data has other numbers than 0 and 1.
        made_from: the columns out of which the messages were made; None where they are the column `messages` as it stands.
        as_given: whether the messages are the column `messages` of the row.
        rendered_from: where the response begins in a text to which a chat template was applied already: what stands before is
            context. None for any other text.
        tokens: the trajectory in token ids, where it was given so; messages are then what stood beside them, if any.
        said_beside: what the assistant says in the text beside token ids, part by part; None where there is none.
        teacher_messages: the prompt that a teacher reads in place of this one's; None for the same.
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
    correct: bool | float | None = None
    made_from: str | None = None
    as_given: bool = True
    rendered_from: int | None = None
    tokens: GivenTokens | None = None
    said_beside: tuple[str, ...] | None = None
    teacher_messages: list[dict[str, Any]] | None = None

    def normalised(self) -> list[dict[str, Any]] | None:
        """The messages as other tools can read them: with each turn's `weight` where the row gives one."""
        if self.messages is None or not self.weights:
            return self.messages
        return [
            {**message, "weight": self.weights[i]} if i in self.weights else message
            for i, message in enumerate(self.messages)
        ]


def trajectory_from_row(row: Mapping[str, Any], fields: FieldNames = USUAL_NAMES, fault: str = "") -> Trajectory:
    """Reads one row that stands for itself; of several trajectories the first.

    Args:
        row: column name -> value, as JSON or `to_pylist` gives it.
        fields: remapped columns.
        fault: what of the row could not be stored; empty for a row that is whole.

    Raises:
        DataError: if the row is nested too deeply to be walked.
        AmbiguousError: if two columns could be the response.

    >>> trajectory_from_row({"id": 7, "question": "2+2?", "answer": "4"}).messages
    [{'role': 'user', 'content': '2+2?'}, {'role': 'assistant', 'content': '4'}]
    """
    named = [name for name, value in row.items() if value is not None]
    reading = recognise(kind_of(row, fields.paths()), named, fields)
    part, branch = next(iter(parts_of(row, reading)))
    return read_trajectory(part, reading, branch, name=RowNames(fields).of(row), fault=fault)


def parts_of(row: Mapping[str, Any], reading: Reading) -> Iterator[tuple[Mapping[str, Any], Branch | None]]:
    """The row once for each of its trajectories, with its own element in place of each list that goes with the responses."""
    branches: Sequence[Branch | None] = reading.branches or (None,)
    if not reading.exploded:
        for branch in branches:
            yield row, branch
        return
    counting = row.get(reading.exploded[0])
    count = max(1, len(counting)) if isinstance(counting, list) else 1
    tokens = reading.tokens or TokenColumns()
    # A mask that is missing would be one that trains on everything: what does not go with the ids is what nothing accepts.
    unfit: dict[str, Any] = {
        name: None if name in tokens.ids else -1 if name == tokens.length else []
        for name in tokens.used()
        if name in reading.exploded and isinstance(row.get(name), list | tuple) and len(row[name]) != count
    }
    for k in range(count):
        own = {name: _element(row.get(name), k) for name in reading.exploded if name in row} | unfit
        for branch in branches:
            yield {**row, **own}, branch


def _element(value: Any, k: int) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return value[k] if k < len(value) else None


def read_trajectory(
    row: Mapping[str, Any],
    reading: Reading,
    branch: Branch | None = None,
    *,
    name: str,
    number: int | None = None,
    prompt_id: str = "",
    fault: str = "",
    rendered: bool = False,
    marks: RenderedMarks = NO_MARKS,
) -> Trajectory:
    """One trajectory of a row.

    Args:
        row: the row, lists of responses replaced by the trajectory's own element.
        reading: how its kind is read.
        branch: its columns, where the reading has branches.
        name: the row's id.
        number: of the trajectory in the row, None where it is the only one.
        prompt_id: where the row names none.
        fault: what of the row could not be stored.
        rendered: whether text to which a chat template was applied already is read.
        marks: what shows that one was.
    """
    tokens = teacher_messages = None
    words, refusal, detail = _Words(), "", ""
    try:
        if fault:
            raise RefusedRowError(NOT_STORABLE, fault)
        tokens = None if reading.tokens is None else given_tokens(row, reading.tokens)
        teacher_messages = _teacher_messages(row, reading.teacher_messages)
        if tokens is None:
            _refuse_pictures(row, reading)
            words = _words(row, reading, branch, rendered=rendered, marks=marks)
        else:
            words = _words_beside(row, reading, branch)
    except (RefusedRowError, MisfitError) as refused:
        tokens, refusal, detail = None, refused.status, refused.detail
    messages, text, rendered_from = words.messages, words.text, words.rendered_from
    # The hash of a refused row is that of the row, so that no two are taken for answers to the same prompt.
    return Trajectory(
        id=name if number is None else f"{name}#{number}",
        prompt_id=_given_prompt(row, reading)
        or prompt_id
        or _prompt_hash(row, words, text if rendered_from is None else marks.prompt(text or ""), tokens, reading),
        teacher=_teacher(row, reading, branch),
        messages=messages,
        text=text,
        tools=words.tools,
        refusal=refusal,
        detail=detail,
        chat_template_kwargs=words.kwargs,
        weights=words.weights or {},
        correct=_correct(row, reading, branch),
        made_from=_made_from(row, reading, branch, words.folded) if messages is not None else None,
        as_given=messages is None or (reading.messages == "messages" and not words.folded),
        rendered_from=rendered_from,
        tokens=tokens,
        said_beside=None if tokens is None else _said_beside(row, branch, messages),
        teacher_messages=teacher_messages,
    )


class _Words(NamedTuple):
    """The text of a row, or nothing; as the attributes of `Trajectory`."""

    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    tools: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    weights: Mapping[int, float] | None = None
    folded: bool = True
    rendered_from: int | None = None


def _words(
    row: Mapping[str, Any], reading: Reading, branch: Branch | None, *, rendered: bool, marks: RenderedMarks
) -> _Words:
    sign = _rendered_sign(row, reading, branch, marks)
    if sign and not rendered:
        raise RefusedRowError(
            RENDERED, f"{sign}: a chat template was applied to it already; {' (or '.join(_WAYS_OUT)})."
        )
    if sign:
        text, rendered_from = _rendered(row, reading, branch)
        return _Words(text=text, rendered_from=rendered_from)
    if reading.text is not None:
        return _Words(text=_text(row, reading.text))
    messages, folded = _conversation(row, reading, branch)
    messages, weights = without_weights(messages)
    _refuse_incomplete(row, reading)
    tools = _tools(None if reading.tools is None else row.get(reading.tools))
    kwargs = _kwargs(row.get(layouts.TEMPLATE_KWARGS))
    _refuse_placeholder(messages)
    if weights and not any(m["role"] == "assistant" and weights.get(i, 1) for i, m in enumerate(messages)):
        raise RefusedRowError(NOTHING_TRAINED, "every turn of the assistant is marked as not trained on.")
    return _Words(messages, None, tools, kwargs, weights, folded)


def _words_beside(row: Mapping[str, Any], reading: Reading, branch: Branch | None) -> _Words:
    """The conversation beside token ids; nothing where it is none: the ids are enough."""
    if not (reading.messages or reading.chat or (reading.prompt and branch)):
        return _Words()
    try:
        return _words(row, reading, branch, rendered=False, marks=NO_MARKS)
    except RefusedRowError:
        return _Words()


def _said_beside(
    row: Mapping[str, Any], branch: Branch | None, messages: Sequence[Mapping[str, Any]] | None
) -> tuple[str, ...] | None:
    """What the assistant says in the text beside token ids."""
    response = None if branch is None or branch.response is None else value_at(row, branch.response)
    if isinstance(response, str):
        return (response,)
    turns = [message for message in messages or [] if message["role"] == "assistant"]
    said = [turn.get(key) for turn in turns for key in ("reasoning_content", "content")]
    if any("tool_calls" in turn for turn in turns) or not all(isinstance(text or "", str) for text in said):
        return None
    return tuple(text for text in said if text) or None


class RowNames:
    """Rows -> their names, by the columns that name one.

    Args:
        fields: remapped columns.
    """

    def __init__(self, fields: FieldNames) -> None:
        self._given = fields.id
        self._known: dict[tuple[str, ...], list[tuple[str, ...]]] = {}

    def columns(self, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Columns of a row that name it, the best first; those of one entry name it together."""
        if self._given is not None:
            return [(self._given,)]
        found = self._known.get(names)
        if found is None:
            by_lower = {name.lower(): name for name in sorted(names, reverse=True)}
            own = [tuple(by_lower.get(name, "") for name in together) for together in layouts.IDS]
            found = self._known[names] = [together for together in own if all(together)]
        return found

    def of(self, row: Mapping[str, Any]) -> str:
        """The row's name as text; the hash of the whole row where it has none, or an empty one."""
        for together in self.columns(tuple(row)):
            if len(together) == 1 and type(value := row.get(together[0])) is str and value:
                return value
            given = [value_at(row, name) for name in together]
            if all(value is not None and value != "" for value in given):
                return "/".join(map(name_text, given))
        return digest(row)


def _teacher(row: Mapping[str, Any], reading: Reading, branch: Branch | None) -> str | None:
    for name in reading.teachers:
        given = value_at(row, name)
        if given is not None and (isinstance(given, str) or name.lower() == "teacher" or len(reading.teachers) == 1):
            return name_text(given)
    return branch.teacher if branch else None


def _correct(row: Mapping[str, Any], reading: Reading, branch: Branch | None) -> bool | float | None:
    for name in (*((branch.correct,) if branch and branch.correct else ()), *reading.correct):
        value = judged(value_at(row, name))
        if value is not None:
            return value
    return None


def judged(value: Any) -> bool | float | None:
    """Whether a value says right or wrong: true/false, 1/0, a word; other numbers stay, -1 and anything else is unknown.

    >>> judged("Yes"), judged(0), judged(1.0), judged(0.3), judged(-1), judged("n/a")
    (True, False, True, 0.3, None, None)
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None if value == -1 or isnan(value) else float(value)
    word = value.strip().lower() if isinstance(value, str) else ""
    return True if word in layouts.YES else False if word in layouts.NO else None


def _given_prompt(row: Mapping[str, Any], reading: Reading) -> str:
    """The row's own prompt id, empty when it has none."""
    given = None if reading.prompt_id is None else value_at(row, reading.prompt_id)
    return "" if given is None else name_text(given)


def _prompt_hash(
    row: Mapping[str, Any], words: _Words, text: str | None, tokens: GivenTokens | None, reading: Reading
) -> str:
    if tokens is not None:
        return digest({"ids": tokens.before})
    messages, tools = words.messages, words.tools
    if messages is None:
        return digest(row if text is None else text)
    if reading.prompt_by_user:
        return digest([message["content"] for message in before_reply(messages) if message["role"] == "user"])
    return digest({"messages": before_reply(messages), "tools": tools})


def before_reply(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns before the assistant's first one."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return list(messages[:first])


def _made_from(row: Mapping[str, Any], reading: Reading, branch: Branch | None, folded: bool) -> str | None:
    if reading.covered:
        return row.get("messages_from")
    own = [name for name in (branch.reasoning, branch.response) if name] if branch else []
    sources = [
        *filter(
            None, (reading.system, reading.history, reading.messages, reading.chat, reading.reasoning, reading.calls)
        )
    ]
    named = list(dict.fromkeys([*sources, *reading.prompt, *own]))
    return None if reading.messages == "messages" and not folded else ", ".join(named)


# --- the conversation of a row ----------------------------------------------------------------------------------------------


def _conversation(row: Mapping[str, Any], reading: Reading, branch: Branch | None) -> tuple[list[dict[str, Any]], bool]:
    """The turns, and whether anything was folded into them or renamed on the way."""
    if reading.messages is not None:
        value = _given(row, reading.messages)
        turns = messages = read_turns(parse_nested(value, reading.messages, INVALID_MESSAGES), reading.messages)
        if branch is not None:
            messages = _answered(row, branch, messages, reading.messages)
        elif reading.reasoning:
            messages = _with_reasoning(row, reading.reasoning, messages)
        messages = _with_system(row, reading.system, messages)
        asis = messages == turns and branch is None and not isinstance(value, str) and _as_they_are(value, messages)
        return messages, not asis
    if reading.chat is not None:
        return _with_system(row, reading.system, read_marked_chat(_text(row, reading.chat), reading.chat)), True
    if not reading.prompt or (branch is None and reading.calls is None):
        columns = ", ".join(name for name, value in row.items() if value is not None) or "nothing"
        raise RefusedRowError(UNKNOWN_LAYOUT, f"The row has {columns}; known layouts: {KNOWN}.")
    # What the assistant says before the response is context: trainers mask the prompt.
    messages = [
        {**turn, "weight": 0.0} if turn["role"] == "assistant" else turn
        for turn in _history(row, reading.history) + _prompt(row, reading.prompt)
    ]
    if reading.calls is not None:
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": read_calls(_given(row, reading.calls), reading.calls)}
        )
    elif branch is not None:
        messages = _answered(row, branch, messages, reading.prompt[0])
    return _with_system(row, reading.system, messages), True


KNOWN = (
    "messages [{role, content}]; conversations [{from, value}]; input_ids or tokens with a mask, prompt_ids with "
    "completion_ids; prompt, problem, question, query, instruction or input with response, completion, output, "
    "generation(s), ..., or else solution or answer; text"
)


def _teacher_messages(row: Mapping[str, Any], name: str | None) -> list[dict[str, Any]] | None:
    """What a teacher reads before the response: turns, or one text of the user's."""
    value = None if name is None else value_at(row, name)
    if name is None or value is None:
        return None
    if isinstance(value, str):
        value = messages_in(value)
    turns = [{"role": "user", "content": value}] if isinstance(value, str) else read_turns(value, name)
    if turns[-1]["role"] == "assistant":
        raise RefusedRowError(
            INVALID_MESSAGES, f"{name} ends with a turn of the assistant; it is read before the response."
        )
    return without_weights(turns)[0]


def _as_they_are(value: Any, messages: Sequence[Mapping[str, Any]]) -> bool:
    for item, message in zip(value, messages, strict=True):
        if not isinstance(item, dict) and not isinstance(item, Mapping):
            return False
        if not item.keys() <= message.keys():
            held = {key for key, inner in item.items() if inner is not None and inner != []}
            if not held <= message.keys():
                return False
    return True


def _given(row: Mapping[str, Any], name: str) -> Any:
    value = value_at(row, name)
    if value is None:
        raise RefusedRowError(
            INVALID_MESSAGES, f"{name} is null here, and rows of this kind are read from it; no other column stands in."
        )
    return value


def _prompt(row: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """What the user says: a string is one turn, a list or JSON text of one is messages."""
    first = value_at(row, names[0])
    if first is None:
        raise RefusedRowError(PLACEHOLDER, f"{names[0]} is null: the prompt is not here.")
    if isinstance(first, str) and first.lstrip().startswith("["):
        first = messages_in(first)
    if isinstance(first, list | tuple):
        return read_turns(first, names[0])
    texts = [_text(row, name) for name in names if value_at(row, name) not in (None, "")]
    return [{"role": "user", "content": "\n".join(texts)}]


# --- text to which a chat template was applied already ----------------------------------------------------------------------

_WAYS_OUT = ("give messages", "--rendered accept reads it as it is")


def _rendered_sign(row: Mapping[str, Any], reading: Reading, branch: Branch | None, marks: RenderedMarks) -> str:
    """What shows that a template was applied to the text or prompt of a row; empty where none was.

    Applied once more, it would spell out control tokens.
    """
    name = reading.text or next(iter(reading.prompt), None)
    value = None if name is None else value_at(row, name)
    sign = marks.found(value) if isinstance(value, str) else ""
    if sign or not reading.prompt or branch is None or branch.response is None:
        return f"{name} holds {sign!r}" if sign else ""
    said = value_at(row, branch.response)
    if isinstance(said, str) and (sign := marks.begins(said)):
        raise RefusedRowError(
            RENDERED,
            f"{branch.response} begins with {sign!r}, a control token, and no template was applied to {name}; {_WAYS_OUT[0]}.",
        )
    return ""


def _rendered(row: Mapping[str, Any], reading: Reading, branch: Branch | None) -> tuple[str, int]:
    """The whole text, and where its response begins."""
    if reading.text is not None:
        return _text(row, reading.text), 0
    name = reading.prompt[0]
    if branch is None or branch.response is None:
        raise RefusedRowError(RENDERED, f"a chat template was applied to {name} already, and no text goes on from it.")
    prompt, response = _text(row, name), _text(row, branch.response)
    if not response:
        raise RefusedRowError(EMPTY, f"{branch.response} is empty.")
    for beside, text in _beside_rendered(row, reading, branch):
        if text.strip() and text.strip() not in prompt + response:
            raise RefusedRowError(
                CONFLICT,
                f"{beside} holds text that is not in {name}, to which a chat template was applied already: {text[:80]!r}.",
            )
    return prompt + response, len(prompt)


def _beside_rendered(row: Mapping[str, Any], reading: Reading, branch: Branch) -> Iterator[tuple[str, str]]:
    """Text that a template would have put into what it rendered, by its columns; of tools their names."""
    for name in (reading.system, reading.history, branch.reasoning, *reading.prompt[1:], layouts.TEMPLATE_KWARGS):
        for text in _leaves(None if name is None else value_at(row, name)):
            yield str(name), text
    for tool in _tools(None if reading.tools is None else row.get(reading.tools)) or []:
        named = tool.get("function", tool) if isinstance(tool, Mapping) else tool
        yield layouts.TOOLS, str(named.get("name", "") if isinstance(named, Mapping) else named)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _leaves(item)


# --- the parts of a conversation --------------------------------------------------------------------------------------------


def _answered(
    row: Mapping[str, Any], branch: Branch, messages: list[dict[str, Any]], where: str
) -> list[dict[str, Any]]:
    """The turns with the response after them; an assistant's turn that they end with is the response's beginning."""
    reply: list[dict[str, Any]]
    if branch.response is None:
        reply = [{"role": "assistant", "content": ""}]
    else:
        value = value_at(row, branch.response)
        if value is None:
            raise RefusedRowError(
                EMPTY,
                f"{branch.response} is null here, and it holds the response of rows of this kind; no other column stands in.",
            )
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = messages_in(value)
        if isinstance(value, list | tuple):
            reply = read_turns(value, branch.response)
        else:
            content = value if isinstance(value, str) else _text(row, branch.response)
            reply = [{"role": "assistant", "content": content}]
            entry = row.get(branch.response.partition(".")[0])
            if isinstance(entry, Mapping) and (beside := [key for key in layouts.REASONING_KEYS if entry.get(key)]):
                reply = [with_thoughts(reply[0], entry[beside[0]], f"{branch.response} and {beside[0]}")]
    if branch.reasoning is not None:
        reply = _with_reasoning(row, branch.reasoning, reply)
    if len(reply) > len(messages) and [_said(turn) for turn in reply[: len(messages)]] == list(map(_said, messages)):
        # The whole conversation, prompt included.
        reply = reply[len(messages) :]
    if messages[-1]["role"] == "assistant" and reply[0]["role"] == "assistant":
        return [*messages[:-1], _joined(messages[-1], reply[0], where), *reply[1:]]
    return [*messages, *reply]


def _said(turn: Mapping[str, Any]) -> tuple[Any, Any]:
    return turn["role"], turn.get("content")


def _joined(prefill: dict[str, Any], reply: dict[str, Any], where: str) -> dict[str, Any]:
    """One turn of a prefill that ends the prompt and of the response that goes on from it."""
    begun, rest = prefill.get("content"), reply.get("content")
    if not isinstance(begun or "", str) or not isinstance(rest or "", str):
        raise RefusedRowError(INVALID_MESSAGES, f"{where} ends in a turn of the assistant that is no string.")
    begun, rest = begun or "", rest or ""
    prefill = {key: value for key, value in prefill.items() if key != "weight"}
    return {**prefill, **reply, "content": rest if begun and rest.startswith(begun) else begun + rest}


def _with_reasoning(row: Mapping[str, Any], name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns with a column's thoughts in the assistant's last one, unless they are there."""
    thoughts = value_at(row, name)
    if thoughts is None or (isinstance(thoughts, str) and thoughts.strip().lower() in layouts.SWITCHES):
        return messages
    if isinstance(thoughts, bool):
        return messages
    if not isinstance(thoughts, str):
        raise RefusedRowError(INVALID_MESSAGES, f"{name} is {kind_name(thoughts)}; it must be a string.")
    places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not places:
        return messages
    turn = with_thoughts(messages[places[-1]], thoughts, f"{name} and the assistant's last turn")
    return [*messages[: places[-1]], turn, *messages[places[-1] + 1 :]]


def _with_system(row: Mapping[str, Any], name: str | None, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    system = None if name is None else value_at(row, name)
    if name is None or system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise RefusedRowError(INVALID_MESSAGES, f"{name} is {kind_name(system)}; it must be a string.")
    there = [message.get("content") for message in messages if message["role"] in ("system", "developer")]
    if any(isinstance(text, str) and system.strip() in text for text in there):
        return messages
    if there:
        raise RefusedRowError(CONFLICT, f"{name} and the system turn of the conversation are different texts.")
    return [{"role": "system", "content": system}, *messages]


def _history(row: Mapping[str, Any], name: str | None) -> list[dict[str, Any]]:
    """Turns before the prompt: pairs of question and answer, or messages."""
    return [] if name is None else read_history(value_at(row, name), name)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = value_at(row, name)
    if isinstance(value, str):
        return value
    raise RefusedRowError(INVALID_MESSAGES, f"{name} is {kind_name(value)}; it must be a string.")


def _tools(value: Any) -> list[Any] | None:
    if value in (None, "", []):
        return None
    tools = cleaned(parse_nested(value, "tools", INVALID_TOOLS), "tools", INVALID_TOOLS)
    if not isinstance(tools, list):
        raise RefusedRowError(INVALID_TOOLS, f"tools is {kind_name(tools)}; it must be a list, or JSON text of a list.")
    tools = [parse_nested(tool, f"tools[{i}]", INVALID_TOOLS) for i, tool in enumerate(tools)]
    return tools or None


def _kwargs(value: Any) -> dict[str, Any] | None:
    if value in (None, "", {}):
        return None
    value = cleaned(
        parse_nested(value, layouts.TEMPLATE_KWARGS, INVALID_MESSAGES), layouts.TEMPLATE_KWARGS, INVALID_MESSAGES
    )
    if not isinstance(value, dict):
        raise RefusedRowError(
            INVALID_MESSAGES, f"{layouts.TEMPLATE_KWARGS} is {kind_name(value)}; it must be an object."
        )
    return value or None


def _refuse_pictures(row: Mapping[str, Any], reading: Reading) -> None:
    for name in reading.pictures:
        if _is_picture(value_at(row, name)):
            raise RefusedRowError(
                NOT_TEXT,
                f"{name} holds a picture or another thing that is no text; {ONLY_TEXT}. Text alone, on purpose: "
                f"--ignore-columns {name}.",
            )


def _is_picture(value: Any) -> bool:
    """Whether a value is a picture, a film or a sound, or says where one lies."""
    if isinstance(value, list | tuple):
        return any(map(_is_picture, value))
    if isinstance(value, Mapping):
        return any(value.get(key) for key in ("bytes", "path", "url", "array", "image_url"))
    return isinstance(value, bytes) or (isinstance(value, str) and _PICTURE.match(value) is not None)


_PICTURE = re.compile(
    r"data:(?:image|video|audio)/|/9j/|iVBORw0KGgo|UklGR|R0lGOD"
    r"|[^\n]{1,1000}\.(?:png|jpe?g|webp|gif|bmp|tiff?|svg|heic|mp4|webm|mov|avi|mkv|wav|mp3|flac|ogg)(?:[?#][^\n]*)?\s*\Z",
    re.IGNORECASE,
)
"""A picture as text: its bytes in base64, or a path or address with the suffix of one."""


def _refuse_incomplete(row: Mapping[str, Any], reading: Reading) -> None:
    """Refuses a row whose prompt is a text that lacks what columns beside it hold."""
    given = [value_at(row, name) for name in reading.prompt]
    if not reading.beside_prompt or not all(isinstance(text or "", str) for text in given):
        return
    prompt = _squeezed("".join(text or "" for text in given))
    for name in reading.beside_prompt:
        value = row.get(name)
        # Choices as data sets keep them beside their letters.
        texts = value.get("text", value) if isinstance(value, Mapping) else value
        if left := [text for text in _leaves(texts) if _squeezed(text) not in prompt]:
            raise RefusedRowError(
                INCOMPLETE,
                f"{name} holds text that belongs to the prompt and is not in {' or '.join(reading.prompt)}: {left[0][:80]!r}. "
                f"Join them in one column; or, on purpose without it: --ignore-columns {name}.",
            )


_LABEL = re.compile(r"^\s*\(?[A-Za-z0-9][).:]\s*")


def _squeezed(text: str) -> str:
    """A text without white space and the letter of a choice."""
    return "".join(_LABEL.sub("", text).split())


def _refuse_placeholder(messages: Sequence[Mapping[str, Any]]) -> None:
    asked = [message["content"] for message in before_reply(messages) if message["role"] == "user"]  # type: ignore[arg-type]
    if asked and all(isinstance(text or "", str) and (text or "").strip() in layouts.PLACEHOLDERS for text in asked):
        shown = (asked[-1] or "").strip()
        raise RefusedRowError(
            PLACEHOLDER, f"the prompt is {shown!r}: its text was left out of the data set, and lies in another one."
        )
