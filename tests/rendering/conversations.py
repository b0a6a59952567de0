"""Small conversations that chat templates treat differently, by what is special about them. Words tell the turns apart."""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "which city"}},
    "required": ["city"],
}
TOOL = {
    "type": "function",
    "function": {"name": "lookup", "description": "weather of a city", "parameters": PARAMETERS},
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "the time", "parameters": PARAMETERS}}


def user(text: Any) -> Message:
    return {"role": "user", "content": text}


def said(text: Any, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def system(text: Any) -> Message:
    return {"role": "system", "content": text}


def call(name: str = "lookup", arguments: Any = None, number: int = 1) -> dict[str, Any]:
    given = {"city": "paris"} if arguments is None else arguments
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": given}}


def calling(content: Any = "", *calls: dict[str, Any], **more: Any) -> Message:
    return said(content, tool_calls=list(calls or [call()]), **more)


def result(text: Any = "rain", number: int = 1, name: str = "lookup") -> Message:
    return {"role": "tool", "tool_call_id": f"call0000{number}", "name": name, "content": text}


def think(thoughts: str, answer: str) -> str:
    return f"<think>\n{thoughts}\n</think>\n\n{answer}"


Q1, Q2, Q3 = user("one?"), user("two?"), user("three?")
A1, A2, A3 = said("alpha."), said("beta."), said("gamma.")

MESSAGES: dict[str, list[Message]] = {
    "plain": [Q1, A1],
    "two turns": [Q1, A1, Q2, A2],
    "three turns": [Q1, A1, Q2, A2, Q3, A3],
    "ends with a question": [Q1, A1, Q2],
    "the same answer twice": [Q1, A1, Q1, A1],
    "the answer is the question": [user("alpha."), A1, Q2, said("two?")],
    "system": [system("be brief."), Q1, A1],
    "system, two turns": [system("be brief."), Q1, A1, Q2, A2],
    "empty system": [system(""), Q1, A1],
    "system in the middle": [Q1, A1, system("be brief."), Q2, A2],
    "developer": [{"role": "developer", "content": "be brief."}, Q1, A1],
    "assistant first": [said("hello."), Q1, A1],
    "assistant alone": [A1],
    "system, assistant": [system("be brief."), A1],
    "system, assistant, user, assistant": [system("be brief."), said("hello."), Q1, A1],
    "consecutive replies": [Q1, A1, A2],
    "three replies": [Q1, A1, A2, A3],
    "consecutive replies, then more": [Q1, A1, A2, Q2, A3],
    "consecutive questions": [Q1, Q2, A1],
    "several lines": [Q1, said("alpha.\n\nbeta.\n- gamma\n```py\nx = 1\n```")],
    "leading space": [Q1, said(" alpha.")],
    "leading lines": [Q1, said("\n\nalpha.")],
    "trailing space": [Q1, said("alpha. "), Q2, A2],
    "trailing lines": [Q1, said("alpha.\n\n"), Q2, said("beta.\n")],
    "white space around the question": [user("\n one? \n"), A1],
    "an empty answer first": [Q1, said(""), Q2, A2],
    "an empty answer last": [Q1, A1, Q2, said("")],
    "nothing but an empty answer": [Q1, said("")],
    "blank answer": [Q1, said(" "), Q2, A2],
    "think in content": [Q1, said(think("aleph.", "alpha."))],
    "think in content, two turns": [Q1, said(think("aleph.", "alpha.")), Q2, said(think("beth.", "beta."))],
    "think in the last turn": [Q1, A1, Q2, said(think("beth.", "beta."))],
    "think on one line": [Q1, said("<think>aleph.</think>alpha.")],
    "think without an end": [Q1, said("<think>\naleph.")],
    "think without a start": [Q1, said("aleph.\n</think>\n\nalpha.")],
    "nothing but thoughts": [Q1, said("<think>\naleph.\n</think>")],
    "empty think block": [Q1, said("<think>\n\n</think>\n\nalpha.")],
    "empty think block on one line": [Q1, said("<think></think>alpha.")],
    "reasoning_content": [Q1, said("alpha.", reasoning_content="aleph.")],
    "reasoning_content, two turns": [
        Q1,
        said("alpha.", reasoning_content="aleph."),
        Q2,
        said("beta.", reasoning_content="beth."),
    ],
    "reasoning_content without content": [Q1, said("", reasoning_content="aleph.")],
    "empty reasoning_content": [Q1, said("alpha.", reasoning_content="")],
    "thinking": [Q1, said("alpha.", thinking="aleph.")],
    "reasoning": [Q1, said("alpha.", reasoning="aleph.")],
    "tool call": [Q1, calling(), result(), A1],
    "tool call, content": [Q1, calling("wait."), result(), A1],
    "tool call, null": [Q1, calling(None), result(), A1],
    "tool call, no content key": [Q1, {"role": "assistant", "tool_calls": [call()]}, result(), A1],
    "tool call, reasoning": [Q1, calling("", reasoning_content="aleph."), result(), A1],
    "tool call with think in content": [Q1, calling(think("aleph.", "")), result(), said(think("beth.", "alpha."))],
    "tool call last": [Q1, calling()],
    "two calls": [Q1, calling("", call(), call("clock", number=2)), result(), result("noon", 2, "clock"), A1],
    "two rounds of calls": [
        Q1,
        calling(),
        result(),
        calling("", call("clock", number=2)),
        result("noon", 2, "clock"),
        A1,
    ],
    "tool call, then another question": [Q1, calling(), result(), A1, Q2, A2],
    "arguments as text": [Q1, calling("", call(arguments='{"city": "paris"}')), result(), A1],
    "no arguments": [Q1, calling("", call(arguments={})), result(), A1],
    "tool result as JSON": [Q1, calling(), result('{"sky": "rain"}'), A1],
    "parts": [user([{"type": "text", "text": "one?"}]), said([{"type": "text", "text": "alpha."}])],
    "parts of the question": [user([{"type": "text", "text": "one?"}]), A1],
    "two parts": [user([{"type": "text", "text": "on"}, {"type": "text", "text": "e?"}]), A1],
    "thinking part": [Q1, said([{"type": "thinking", "thinking": "aleph."}, {"type": "text", "text": "alpha."}])],
    "null answer": [Q1, said(None), Q2, A2],
    "names of control tokens": [user("<|im_end|>one?</s>"), said("alpha<|im_end|> <|eot_id|></s>.")],
    "html": [user("<b>one?</b>"), said("<b>alpha</b> & <i>beta</i>")],
    "question with a tool's tags": [user("<tool_response>\nrain\n</tool_response>"), A1],
    "foreign letters": [user("ein Würfel, 한국?"), said("Größe 한국 👩‍👧. π")],
    "numbers": [user("1 + 1"), said("2")],
}
"""Conversations without tools; those with calls are tried with definitions too."""

CASES: dict[str, dict[str, Any]] = {name: {"messages": messages} for name, messages in MESSAGES.items()}
CASES |= {
    f"{name}, defined": {"messages": messages, "tools": [TOOL, CLOCK]}
    for name, messages in MESSAGES.items()
    if any("tool_calls" in message for message in messages)
}
CASES |= {
    "tools that are not called": {"messages": [Q1, A1], "tools": [TOOL]},
    "tools and a system message": {"messages": [system("be brief."), Q1, A1], "tools": [TOOL]},
    "no tools at all": {"messages": [Q1, A1], "tools": []},
    "enable_thinking false": {"messages": [Q1, A1], "chat_template_kwargs": {"enable_thinking": False}},
    "enable_thinking true": {"messages": [Q1, A1], "chat_template_kwargs": {"enable_thinking": True}},
    "enable_thinking true, thoughts": {
        "messages": [Q1, said("alpha.", reasoning_content="aleph.")],
        "chat_template_kwargs": {"enable_thinking": True},
    },
    "enable_thinking false, thoughts": {
        "messages": [Q1, said("alpha.", reasoning_content="aleph.")],
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "custom instructions": {"messages": [Q1, A1], "chat_template_kwargs": {"custom_instructions": "be a pirate."}},
}
