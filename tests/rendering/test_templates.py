"""Chat templates in the style of stock ones: correct spans, or the right refusal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from trajscore.errors import UsageError
from trajscore.rendering.literals import alternation, hide, reveal, split_controls
from trajscore.rendering.templates import ADDED, MARKER, ChatTemplate, RefusedRow

QWEN3 = """
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.searching and message.role == 'user' and not (message.content.startswith('<tool_response>')
    and message.content.endswith('</tool_response>')) %}
{%- set ns.searching = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}
{%- for message in messages %}{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{%- set thoughts = '' %}
{%- if message.reasoning_content is string %}{%- set thoughts = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thoughts) %}
{{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{- content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}
{%- set call = call.function or call %}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"""

QWEN25 = """
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}{{- '<|im_start|>assistant' }}
{%- if m.content %}{{- '\\n' + m.content }}{%- endif %}
{%- for c in m.tool_calls %}
{{- '\\n<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}
{{- (c.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA31 = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + strftime_now('%d %b %Y') }}
{{- '\\n\\n' + system + '<|eot_id|>' }}
{%- for m in messages %}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson }}{{- '}' + '<|eom_id|>' }}
{%- elif m.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}{{- m.content | tojson }}{{- '<|eot_id|>' }}
{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

GEMMA2 = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

GEMMA3 = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{%- set first = messages[0].content + '\\n\\n' %}{%- set messages = messages[1:] %}
{%- else %}{%- set first = '' %}{%- endif %}
{%- for m in messages %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') }}
{{- m.content | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

LLAMA2 = """{%- for m in messages %}
{%- if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}
{%- else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{%- endfor %}"""

MISTRAL = """{{ bos_token }}{%- for m in messages %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- else %}{{ m.content + eos_token }}{% endif %}{%- endfor %}"""

R1_DISTILL = """{{ bos_token }}{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}
{%- elif m.role == 'assistant' %}{%- set content = m.content %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<|Assistant|>' + content + eos_token }}{% endif %}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"""

PLAIN = """{%- for m in messages %}
{{- ('### Instruction:\\n' if m.role == 'user' else '### Response:\\n') + m.content + '\\n\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"""

NO_GENERATION_PROMPT = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"""

# The last system message goes into the last user message.
MISTRAL_NEMO = """{{ bos_token }}{%- if messages[0].role == 'system' %}{%- set s = messages[0].content + '\\n\\n' %}
{%- set messages = messages[1:] %}{%- else %}{%- set s = '' %}{%- endif %}
{%- set last = messages | selectattr('role', 'equalto', 'user') | list | last %}{%- for m in messages %}
{%- if m.role == 'user' %}{{ '[INST]' + (s if m == last else '') + m.content + '[/INST]' }}
{%- else %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}{%- endfor %}"""

HARMONY = """{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}
{%- elif m.tool_calls %}{%- set c = m.tool_calls[0].function %}
{{- '<|start|>assistant to=' + c.name + '<|channel|>commentary<|message|>' + (c.arguments | tojson) + '<|call|>' }}
{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}
{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""


def marked(inside: str) -> str:
    return (
        "{%- for m in messages %}{%- if m.role == 'assistant' %}" + inside + "{%- else %}"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )


HEADER = "{{- '<|im_start|>assistant\\n' }}"
# How many markers the marks hold of the first and the second turn, and what the template writes of a reply.
MARKED = {
    "content and marker": (
        1,
        1,
        HEADER + "{%- generation %}{{- m.content + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}",
    ),
    "content and marker and newline": (
        1,
        1,
        HEADER + "{%- generation %}{{- m.content + '<|im_end|>\\n' }}{%- endgeneration %}",
    ),
    "content": (
        0,
        0,
        HEADER + "{%- generation %}{{- m.content }}{%- endgeneration %}{{- '<|im_end|>\\n' }}",
    ),
    "header too": (
        1,
        1,
        "{%- generation %}" + HEADER + "{{- m.content + '<|im_end|>\\n' }}{%- endgeneration %}",
    ),
    "only the first turn": (
        1,
        0,
        HEADER
        + "{%- if loop.index0 < 2 %}{%- generation %}{{- m.content + '<|im_end|>' }}{%- endgeneration %}"
        + "{%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}",
    ),
    "two blocks a turn": (
        1,
        1,
        HEADER
        + "{%- generation %}{{- m.content }}{%- endgeneration %}"
        + "{%- generation %}{{- '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}",
    ),
    "half of the content": (
        1,
        1,
        HEADER
        + "{{- m.content[:2] }}{%- generation %}{{- m.content[2:] + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}",
    ),
    "in a comment": (
        1,
        1,
        "{# {% generation %} #}" + HEADER + "{{- m.content + '<|im_end|>\\n' }}",
    ),
}

CONTROLS = {
    QWEN3: ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    QWEN25: ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>"],
    LLAMA31: ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"],
    GEMMA2: ["<s>", "<start_of_turn>", "<end_of_turn>"],
    GEMMA3: ["<s>", "<start_of_turn>", "<end_of_turn>"],
    LLAMA2: ["<s>", "</s>"],
    MISTRAL: ["<s>", "</s>"],
    MISTRAL_NEMO: ["<s>", "</s>", "[INST]", "[/INST]"],
    R1_DISTILL: ["<s>", "</s>", "<|User|>", "<|Assistant|>"],
    PLAIN: [],
    HARMONY: ["<|start|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|channel|>"],
}


def template(source: str, *, accept: bool = False, **variables: Any) -> ChatTemplate:
    controls = CONTROLS.get(source, ["<|im_start|>", "<|im_end|>"])
    return ChatTemplate(source, controls, {"bos_token": "<s>", "eos_token": "</s>", **variables}, accept)


def chat(*contents: str | dict[str, Any], system: str | None = None) -> list[dict[str, Any]]:
    """User and assistant by turns; a dict is a message of its own."""
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for index, content in enumerate(contents):
        if isinstance(content, dict):
            messages.append(content)
        else:
            messages.append({"role": "user" if index % 2 == 0 else "assistant", "content": content})
    return messages


def spans(source: str, messages: Sequence[dict[str, Any]], tools: Any = None, **options: Any) -> list[tuple[str, str]]:
    """The text of each turn, and the end-of-turn marker after it."""
    rendered = template(source, **options).render(messages, tools)
    found = []
    for turn in rendered.turns:
        marker = "".join(rendered.text[s.start : s.end] for s in turn.scaffold if s.kind == MARKER)
        found.append((reveal(rendered.text[turn.start : turn.end], rendered.literals), marker))
    return found


def added(source: str, messages: Sequence[dict[str, Any]], **options: Any) -> list[str]:
    """What the template writes into each turn of its own accord."""
    rendered = template(source, **options).render(messages)
    return ["".join(rendered.text[s.start : s.end] for s in t.scaffold if s.kind == ADDED) for t in rendered.turns]


def status(source: str, messages: Sequence[dict[str, Any]], tools: Any = None, **options: Any) -> str:
    with pytest.raises(RefusedRow) as caught:
        template(source, **options).render(messages, tools)
    return caught.value.status


def call(name: str, arguments: Any, content: str = "") -> dict[str, Any]:
    calls = [{"id": "abcdefghi", "type": "function", "function": {"name": name, "arguments": arguments}}]
    return {"role": "assistant", "content": content, "tool_calls": calls}


TOOL = {"type": "function", "function": {"name": "add", "description": "sums", "parameters": {}}}

# Template, what the model writes for "one" and "two" in a conversation of two turns, and the markers after them.
PLAIN_CONVERSATIONS = {
    "qwen3": (QWEN3, [("one", "<|im_end|>"), ("two", "<|im_end|>")]),
    "qwen2.5": (QWEN25, [("one", "<|im_end|>"), ("two", "<|im_end|>")]),
    "llama-3.1": (LLAMA31, [("one", "<|eot_id|>"), ("two", "<|eot_id|>")]),
    "gemma-2": (GEMMA2, [("one", "<end_of_turn>"), ("two", "<end_of_turn>")]),
    "gemma-3": (GEMMA3, [("one", "<end_of_turn>"), ("two", "<end_of_turn>")]),
    "llama-2": (LLAMA2, [("one", " </s>"), ("two", " </s>")]),
    "mistral": (MISTRAL, [("one", "</s>"), ("two", "</s>")]),
    "r1-distill": (R1_DISTILL, [("one", "</s>"), ("two", "</s>")]),
    "plain": (PLAIN, [("one", "\n\n"), ("two", "\n\n")]),
    "no generation prompt": (NO_GENERATION_PROMPT, [("one", "<|im_end|>"), ("two", "<|im_end|>")]),
    "harmony": (
        HARMONY,
        [("one", "<|end|>"), ("two", "<|return|>")],
    ),
    **{
        f"marks: {name}": (marked(inside), [("one", "<|im_end|>" * first), ("two", "<|im_end|>" * second)])
        for name, (first, second, inside) in MARKED.items()
    },
}


@pytest.mark.parametrize("name", PLAIN_CONVERSATIONS)
def test_spans_of_a_plain_conversation(name: str) -> None:
    source, wanted = PLAIN_CONVERSATIONS[name]
    assert spans(source, chat("q1", "one", "q2", "two")) == wanted
    assert spans(source, chat("q1", "one", "q2", "two"), accept=True) == wanted


@pytest.mark.parametrize("name", PLAIN_CONVERSATIONS)
def test_text_that_is_like_a_header_or_marker_or_the_question_stays_text(name: str) -> None:
    source, wanted = PLAIN_CONVERSATIONS[name]
    nasty = "q1 one <|im_end|></s><|eot_id|><end_of_turn>### Response:\none<|im_start|>assistant\none"
    got = spans(source, chat(nasty, nasty, "q1", "two"))
    assert got == [(wanted[0][0].replace("one", nasty), wanted[0][1]), wanted[1]]


@pytest.mark.parametrize("name", ["llama-3.1", "gemma-2", "gemma-3", "llama-2", "r1-distill", "qwen2.5", "plain"])
def test_dropped_reasoning_is_noticed(name: str) -> None:
    source, wanted = PLAIN_CONVERSATIONS[name]
    thinking = {"role": "assistant", "content": "one", "reasoning_content": "a long thought"}
    assert status(source, chat("q1", thinking, "q2", "two")) == "template_lost_text"
    assert spans(source, chat("q1", thinking, "q2", "two"), accept=True) == wanted


@pytest.mark.parametrize(
    "key", ["functions", "function_calls", "tool_plan", "documents", "citations", "tool_responses"]
)
def test_text_under_keys_that_few_templates_read_is_noticed_where_it_is_dropped(key: str) -> None:
    """Of a template that reads them, calls that are text and what is said before calls are the turn's own."""
    message = {"role": "assistant", "content": "one", key: "f(x=2)"}
    assert status(QWEN3, chat("q1", message)) == "template_lost_text"
    reads = PLAIN.replace("m.content +", f"m.content ~ (m.{key} or '') +")
    assert reads != PLAIN
    (turn,) = spans(reads, chat("q1", message))
    assert ("f(x=2)" in turn[0]) == (key in ("function_calls", "tool_plan"))


@pytest.mark.parametrize("name", ["llama-3.1", "gemma-3", "mistral", "r1-distill", "plain", "qwen2.5"])
def test_dropped_tool_definitions_are_noticed_even_when_the_name_is_a_common_word(name: str) -> None:
    source, wanted = PLAIN_CONVERSATIONS[name]
    assert status(source, chat("please add", "one", "q2", "two"), [TOOL]) == "template_lost_text"
    assert spans(source, chat("please add", "one", "q2", "two"), [TOOL], accept=True) == wanted


def test_dropped_system_text_is_noticed() -> None:
    source = PLAIN.replace("{%- for m in messages %}", "{%- for m in messages if m.role != 'system' %}")
    assert status(source, chat("q", "one", system="be kind")) == "template_lost_text"
    assert spans(source, chat("q", "one", system="be kind"), accept=True) == [("one", "\n\n")]


def test_a_dropped_thought_that_the_answer_repeats_is_noticed() -> None:
    message = {"role": "assistant", "content": "4", "reasoning_content": "4"}
    assert status(PLAIN, chat("3 + 1", message | {"content": "four"}, "and 4 + 0?", "4")) == "template_lost_text"
    # The same thoughts under two names, or the same words as thought and answer, are no loss.
    assert spans(QWEN3, chat("q", message | {"reasoning": "4"}))[0][0] == "<think>\n4\n</think>\n\n4"


def test_text_out_of_order_is_noticed() -> None:
    backwards = PLAIN.replace("for m in messages", "for m in messages[::-1]")
    assert status(backwards, chat("question", "answer")) == "template_lost_text"


class TestQwen3:
    def test_earlier_thoughts_are_dropped_and_the_last_are_kept(self) -> None:
        thought = "<think>\nhm\n</think>\n\n"
        assert status(QWEN3, chat("q1", thought + "one", "q2", "two")) == "template_lost_text"
        assert spans(QWEN3, chat("q1", thought + "one", "q2", thought + "two"), accept=True) == [
            ("one", "<|im_end|>"),
            (thought + "two", "<|im_end|>"),
        ]
        assert spans(QWEN3, chat("q1", thought + "one")) == [(thought + "one", "<|im_end|>")]

    def test_reasoning_content_is_part_of_the_turn(self) -> None:
        message = {"role": "assistant", "content": "one", "reasoning_content": "hm"}
        assert spans(QWEN3, chat("q", message)) == [("<think>\nhm\n</think>\n\none", "<|im_end|>")]

    def test_thoughts_between_tool_calls_are_kept(self) -> None:
        first = {**call("add", {"a": 1}), "reasoning_content": "so"}
        tools = [{"role": "tool", "content": "2"}, {"role": "tool", "content": "3"}]
        got = spans(QWEN3, chat("q", first, *tools, {"role": "assistant", "content": "five"}), [TOOL])
        assert got == [
            (
                '<think>\nso\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
                "<|im_end|>",
            ),
            ("five", "<|im_end|>"),
        ]

    def test_two_calls_in_a_turn_and_arguments_as_text(self) -> None:
        message = call("add", '{"a": "é\\u00e9\\/"}')
        message["tool_calls"] = message["tool_calls"] * 2
        got = spans(QWEN3, chat("q", message, {"role": "tool", "content": "1"}, {"role": "assistant", "content": "x"}))
        assert got[0][0].count("</tool_call>") == 2

    @pytest.mark.parametrize("thinking", [True, False])
    def test_a_prompt_that_closes_the_thinking_block(self, thinking: bool) -> None:
        last = {"role": "assistant", "content": "two"} | ({"reasoning_content": "hm"} if thinking else {})
        got = spans(QWEN3, chat("q1", "one", "q2", last), enable_thinking=False)
        # The prompt already holds the empty block; a block with thoughts is the model's.
        assert [text for text, _ in got] == ["one", "<think>\nhm\n</think>\n\ntwo" if thinking else "two"]

    def test_a_user_turn_that_is_a_tool_response_is_no_query(self) -> None:
        response = {"role": "user", "content": "<tool_response>4</tool_response>"}
        thought = {"role": "assistant", "content": "one", "reasoning_content": "hm"}
        assert [text for text, _ in spans(QWEN3, chat("q", thought, response, "two"))] == [
            "<think>\nhm\n</think>\n\none",
            "two",
        ]


class TestLlama31:
    def test_the_date_is_fixed(self) -> None:
        assert "Today Date: 26 Jul 2024" in template(LLAMA31).render(chat("q", "one")).text

    def test_trimmed_text_is_not_lost(self) -> None:
        assert spans(LLAMA31, chat(" q ", "\n one \n")) == [("one", "<|eot_id|>")]

    def test_tool_results_escaped_as_json_are_not_lost(self) -> None:
        result = '{"a": "é\n\\"b\\""}'
        messages = chat(
            "q", call("add", {}), {"role": "tool", "content": result}, {"role": "assistant", "content": result}
        )
        assert spans(LLAMA31, messages) == [('{"name": "add", "parameters": {}}', "<|eom_id|>"), (result, "<|eot_id|>")]

    def test_two_calls_are_a_template_error(self) -> None:
        message = call("add", {})
        message["tool_calls"] *= 2
        assert status(LLAMA31, chat("q", message)) == "template_error"


class TestGemma:
    def test_refuses_system_and_roles_that_do_not_alternate(self) -> None:
        assert status(GEMMA2, chat("q", "one", system="s")) == "template_error"
        assert status(GEMMA2, chat("q", "one", {"role": "assistant", "content": "two"})) == "template_error"

    def test_system_text_inside_the_first_user_turn_is_not_lost(self) -> None:
        assert spans(GEMMA3, chat("q", "one", system="be kind")) == [("one", "<end_of_turn>")]


class TestR1Distill:
    def test_thoughts_are_dropped_even_in_the_last_turn(self) -> None:
        messages = chat("q", "<think>\nhm\n</think>\n\none")
        assert status(R1_DISTILL, messages) == "template_lost_text"
        assert spans(R1_DISTILL, messages, accept=True) == [("\n\none", "</s>")]

    def test_the_prompt_opens_unfinished_thoughts(self) -> None:
        assert spans(R1_DISTILL, chat("q", "<think>\nhm")) == [("hm", "</s>")]


def test_system_text_moved_to_the_last_user_turn_is_not_lost() -> None:
    got = spans(MISTRAL_NEMO, chat("q1", "one", "q2", "two", system="be kind"))
    assert got == [("one", "</s>"), ("two", "</s>")]


def test_a_call_with_control_tokens_inside_ends_at_the_last_one() -> None:
    got = spans(HARMONY, chat("q", call("add", {"a": "x"}), "q2", "two"))
    assert got[0] == (' to=add<|channel|>commentary<|message|>{"a": "x"}', "<|call|>")


def test_a_call_may_end_with_control_tokens_of_its_own() -> None:
    calls = "('<|call|>f' ~ (m.tool_calls | tojson) ~ '<|/call|>' if m.tool_calls else '')"
    inside = HEADER + "{{- m.content ~ " + calls + " ~ '<|im_end|>' }}"
    by = ChatTemplate(marked(inside), ["<|im_start|>", "<|im_end|>", "<|call|>", "<|/call|>"])
    rendered = by.render(chat("q", call("f", {}), "q", "two"))
    first, second = (rendered.text[turn.start : turn.scaffold[-1].end].rstrip("\n") for turn in rendered.turns)
    assert first.startswith("<|call|>f[")
    assert first.endswith("]<|/call|><|im_end|>")
    assert second == "two<|im_end|>"


def test_tags_that_models_write_may_come_from_the_data() -> None:
    rendered = template(QWEN25).render(chat("q", "<tool_call>x</tool_call><|endoftext|>"))
    assert list(rendered.literals.values()) == ["<|endoftext|>"]
    assert "<tool_call>x</tool_call>" in rendered.text


def test_a_template_that_needs_a_system_message() -> None:
    source = "{%- if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
    assert spans(source, chat("q", "one", system="s")) == [("one", "\n\n")]
    assert status(source, chat("q", "one")) == "template_error"


def test_a_call_without_arguments_is_not_cut() -> None:
    source = PLAIN.replace("m.content +", "m.content + (m.tool_calls | tojson if m.tool_calls else '') +")
    ((text, marker),) = spans(source, chat("q", call("f", {})))
    assert text.endswith("}]")
    assert marker == "\n\n"


def test_a_template_that_renders_beginnings_otherwise_than_the_whole() -> None:
    assert spans("{{ messages | length }}" + PLAIN, chat("q", "one")) == [("one", "\n\n")]


def test_a_row_whose_turns_cannot_be_found_is_refused() -> None:
    # No mark can stand between the letters.
    assert status(PLAIN.replace("m.content", "m.content[0:3] + m.content | length | string"), chat("q", "one")) == (
        "no_assistant_span"
    )
    assert status("no text at all", chat("q", "one"), accept=True) == "no_assistant_span"
    assert status(QWEN3, [{"role": "user", "content": "q"}]) == "no_assistant_turn"
    assert status(QWEN3, []) == "no_assistant_turn"


def test_broken_templates_and_variables_are_usage_errors() -> None:
    for source in ("{% for m in messages %}", "{{ a | nofilter }}", "{% generation %}"):
        with pytest.raises(UsageError, match="not valid Jinja"):
            template(source)
    with pytest.raises(UsageError, match="'tools'"):
        template(QWEN3, tools=[])


@pytest.mark.parametrize(
    "error", ["{{ messages[7].content.x }}", "{{ 1 / 0 }}", "{{ none + 1 }}", "{{ range(10**9) | list }}"]
)
def test_whatever_a_template_raises_is_the_rows_status(error: str) -> None:
    assert status(error, chat("q", "one")) == "template_error"


def test_names_of_control_tokens_are_hidden_everywhere() -> None:
    name = "<|im_end|>"
    tools = [{"type": "function", "function": {"name": "f" + name, "parameters": {name: name}}}]
    taken = "\U000f0000\U00100000"
    messages = [
        {"role": "system", "content": name},
        {"role": "user", "content": taken + name},
        call(f"f{name}", {name: [name]}),
        {"role": "tool", "content": name},
        {"role": "assistant", "content": f"a{name}b{name}", "reasoning_content": name},
    ]
    rendered = template(QWEN3).render(messages, tools)
    (placeholder,) = rendered.literals
    assert placeholder not in taken
    assert rendered.literals[placeholder] == name
    assert taken in rendered.text
    assert rendered.text.count(name) == 5  # the template's own: one a message
    assert spans(QWEN3, messages, tools)[1] == (f"<think>\n{name}\n</think>\n\na{name}b{name}", name)


def test_a_refusal_shows_the_datas_own_words() -> None:
    with pytest.raises(RefusedRow, match=re.escape("odd<|im_end|>role")):
        template("{{ raise_exception('unknown ' ~ messages[0].role) }}").render(
            [{"role": "odd<|im_end|>role", "content": ""}, {"role": "assistant", "content": "x"}]
        )


def test_a_template_that_escapes_placeholders_is_refused() -> None:
    source = PLAIN.replace("m.content +", "(m.content | tojson(ensure_ascii=true)) +")
    rendered = ChatTemplate(source, ["<x>"]).render(chat("q", "é"))
    assert "\\u00e9" in rendered.text
    with pytest.raises(RefusedRow, match="control_token_text"):
        ChatTemplate(source, ["<x>"]).render(chat("q<x>", "é"))


def test_thousands_of_names_are_searched_quickly_and_the_longest_wins() -> None:
    names = [f"<unused{i}>" for i in range(6000)] + ["<a>", "<a>b", "[x]\\"]
    pattern = alternation([*names, ""])
    assert pattern.findall("<unused5999><unused6000><a>bb<a>c[x]\\") == ["<unused5999>", "<a>b", "<a>", "[x]\\"]
    assert all(pattern.fullmatch(name) for name in names)
    assert list(split_controls("<a>bc", alternation([]))) == [("<a>bc", False)]
    assert hide({"a": ["<a>"], 3: None}, alternation([])).literals == {}


def test_a_template_that_transformers_has_forgotten_renders_as_before() -> None:
    from transformers.utils import chat_template_utils

    by = template(PLAIN)
    before = by.render(chat("q", "one"))
    chat_template_utils._compile_jinja_template.cache_clear()  # as after 128 other templates
    assert by.render(chat("q", "one")) == before
