"""Every chat template of the installed TRL, and ours of other kinds, against transformers' own rendering and masks.

The oracle finds turns in a way of its own: it replaces one message's words by others and looks at what changes. Short in
`make test` (every template, some conversations), whole in `make test-slow`.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.paths import DATA
from tests.rendering.conversations import CASES, TOOL, calling, result, said
from tests.rendering.templates_of_kinds import KINDS
from trajscore.options.groups import RenderOptions
from trajscore.rendering.anchors import untagged
from trajscore.rendering.chat import SCORING_DATE
from trajscore.rendering.renderer import Rendered, Renderer
from trajscore.rendering.tokenizer import load_tokenizer

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
CONTROL = re.compile(
    r"<[|｜][^<>|｜\s'{}]{1,40}[|｜]?>|<[A-Za-z_/]{2,30}[|｜]>|</?(?:start|end)_of_\w+>|</?s>|\[/?(?:INST|[A-Z_]{6,30})\]"
)
SHORT = [
    *(
        "plain",
        "two turns",
        "system, assistant",
        "consecutive replies",
        "assistant first",
        "leading lines",
        "trailing lines",
    ),
    *(
        "an empty answer first",
        "think in the last turn",
        "empty think block",
        "reasoning_content",
        "null answer",
        "parts",
    ),
    *("tool call, content, defined", "two rounds of calls, defined", "enable_thinking false", "no tools at all"),
]


def trl_templates() -> dict[str, str]:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        return {}
    return {
        path.stem: path.read_text("utf-8")
        for path in sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
    }


TRL = trl_templates()
TEMPLATES = {**{f"trl/{name}": source for name, source in TRL.items()}, **{f"ours/{n}": s for n, s in KINDS.items()}}


@pytest.fixture(scope="module", autouse=True)
def fixed_date() -> Iterator[None]:
    """transformers' own rendering prints the date that ours prints."""
    from transformers.utils import chat_template_utils

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Fixed:
            return cls.fromtimestamp(SCORING_DATE.timestamp(), tz or datetime.UTC)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", Fixed)
        yield


@functools.cache
def folder() -> str:
    """A tokenizer to which the control tokens of all templates are special."""
    import tempfile

    made = Path(tempfile.mkdtemp(prefix="trajscore-templates-"))
    tokenizer = load_tokenizer(str(DATA / "models" / "student"))
    names = sorted({name for source in TEMPLATES.values() for name in CONTROL.findall(source)} | {"<s>", "</s>"})
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    tokenizer.save_pretrained(made)
    (made / "config.json").write_text((DATA / "models" / "student" / "config.json").read_text())
    return str(made)


@functools.cache
def tokenizer() -> Any:
    return load_tokenizer(folder())


@functools.cache
def renderer(source: str, **options: Any) -> Renderer:
    path = Path(folder()) / f"{abs(hash(source))}.jinja"
    path.write_text(source, encoding="utf-8")
    return Renderer(folder(), RenderOptions(chat_template=str(path), **options))


def ours(source: str, case: Mapping[str, Any], **options: Any) -> Rendered:
    return renderer(source, **options).render_messages(
        case["messages"], case.get("tools"), case.get("chat_template_kwargs")
    )


def theirs(source: str, case: Mapping[str, Any], **more: Any) -> Any:
    """What transformers makes of a conversation; None where it raises."""
    try:
        return tokenizer().apply_chat_template(
            case["messages"],
            tools=case.get("tools"),
            chat_template=source,
            **{**case.get("chat_template_kwargs", {}), **more},
        )
    except Exception:
        return None


def squeezed(text: str) -> str:
    return "".join(text.split())


def replaced(source: str, case: Mapping[str, Any], index: int, text: str) -> str | None:
    """Their rendering with other words in one reply."""
    messages = [dict(message) for message in case["messages"]]
    content = messages[index]["content"]
    messages[index]["content"] = text if isinstance(content, str) else [{"type": "text", "text": text}]
    rendered = theirs(source, {**case, "messages": messages}, tokenize=False)
    return None if rendered is None else str(rendered)


def changed(source: str, case: Mapping[str, Any], index: int) -> str | None:
    """What changes of their rendering with a reply's words: the reply's own text. None where that cannot be told."""
    whole = theirs(source, case, tokenize=False)
    other = replaced(source, case, index, "\ue000")
    if other is None or other.count("\ue000") != 1:
        return None
    before, after = other.split("\ue000")
    if not whole.startswith(before) or not whole.endswith(after) or len(whole) < len(before) + len(after):
        return None
    return str(whole[len(before) : len(whole) - len(after)])


def is_plain(message: Mapping[str, Any]) -> bool:
    """A reply of words alone, with nothing in them that templates look for."""
    content = message.get("content")
    if isinstance(content, list):
        content = content[0].get("text") if len(content) == 1 else None
    keys = {key for key, value in message.items() if value} - {"role", "content"}
    return isinstance(content, str) and bool(content.strip()) and "<" not in content and not keys


class Verdict(NamedTuple):
    """What is wrong with a row; all empty where nothing is."""

    other: str = ""
    refused: str = ""
    untrue: str = ""


def missing(case: Mapping[str, Any], whole: str) -> str:
    """A text of a conversation that a rendering lacks."""
    said = squeezed(whole)
    for message in case["messages"]:
        texts = [message.get(key) for key in ("reasoning_content", "reasoning", "thinking", "content")]
        parts = [part for text in texts if isinstance(text, list) for part in text]
        texts += [part.get("text") or part.get("thinking") for part in parts]
        for text in (text for text in texts if isinstance(text, str)):
            for piece in untagged(text):
                if squeezed(piece) not in said and squeezed(json.dumps(piece, ensure_ascii=False)[1:-1]) not in said:
                    return piece
        bare = said.replace("weatherofacity", "").replace("thetime", "")
        for call in message.get("tool_calls", []):
            if bare.count(call["function"]["name"]) < 1 + bool(case.get("tools")) or (
                "paris" in str(call) and "paris" not in said
            ):
                return str(call["function"])
    if case.get("tools") and "weatherofacity" not in said:
        return "definitions of tools"
    return ""


def counted_twice(case: Mapping[str, Any], whole: str) -> bool:
    """Whether the same words stand in several messages, of which the rendering has fewer."""
    words = Counter(p for m in case["messages"] if isinstance(m.get("content"), str) for p in untagged(m["content"]))
    return any(n > 1 and squeezed(whole).count(squeezed(word)) < n for word, n in words.items())


def judge(source: str, name: str, case: Mapping[str, Any]) -> Verdict:
    rendered, whole = ours(source, case), theirs(source, case, tokenize=False)
    if whole is None and any(isinstance(message.get("content"), list) for message in case["messages"]):
        return Verdict()  # the template takes no parts: their texts are joined
    said_nothing = not any(
        m.get("content") or m.get("tool_calls") for m in case["messages"] if m["role"] == "assistant"
    )
    if rendered.status != "ok":
        if whole is None:
            return Verdict(untrue="" if rendered.status == "template_error" else f"{rendered.status}, though it raises")
        if rendered.status == "template_error":
            return Verdict(untrue=f"{rendered.detail}, though it does not raise")
        if rendered.status == "empty_response":
            return Verdict(untrue="" if said_nothing or "alpha" not in whole else rendered.detail)
        lost = missing(case, whole) or counted_twice(case, whole)
        if rendered.status == "template_lost_text":
            return Verdict(untrue="" if lost else rendered.detail)
        return Verdict(refused="" if lost else f"{rendered.status}: {rendered.detail}")
    if whole is None:
        return Verdict(other="transformers raises")
    ids = theirs(source, case, tokenize=True, return_dict=False)
    if name == "names of control tokens":
        if tokenizer().decode(rendered.input_ids_P) != whole:
            return Verdict(other="another text")
    elif rendered.input_ids_P.tolist() != ids:
        return Verdict(other="other ids")
    return Verdict(other=positions_wrong(source, case, rendered))


def positions_wrong(source: str, case: Mapping[str, Any], rendered: Rendered) -> str:
    said = tokenizer().decode(rendered.input_ids_P[rendered.positions_N])
    replies = [index for index, message in enumerate(case["messages"]) if message["role"] == "assistant"]
    if all(is_plain(case["messages"][index]) for index in replies):
        own = [changed(source, case, index) for index in replies]
        if None not in own and squeezed(said) != squeezed("".join(map(str, own))):
            return f"{said!r} is scored, {own} is said"
    # Whatever the reply holds, its words are scored and a header is not.
    for index in replies:
        content = case["messages"][index].get("content")
        for piece in untagged(content) if isinstance(content, str) else []:
            if squeezed(piece) not in squeezed(said) and "<|" not in piece:
                return f"{piece!r} is not scored"
    called = sum(
        str(call).count("paris") for index in replies for call in case["messages"][index].get("tool_calls", [])
    )
    if said.count("paris") < called:
        return f"arguments of calls are not scored: {said!r}"
    if set(rendered.positions_N.tolist()) & set(rendered.scaffold_S.tolist()):
        return "scaffold is scored"
    for message in case["messages"]:
        content = str(message.get("content")).strip()
        if message["role"] in ("user", "system") and content not in ("alpha.", "two?", "") and content in said:
            return f"{content!r} of {message['role']} is scored"
    if re.search(r"(?:assistant|model|CHATBOT_TOKEN)[|>\n]", said):
        return f"a header is scored: {said!r}"
    return ""


def mask_wrong(source: str, case: Mapping[str, Any]) -> str:
    """How positions and scaffold differ from the trainer's mask, for a template with generation marks."""
    rendered = ours(source, case)
    if rendered.status != "ok":
        return ""
    found = theirs(source, case, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    if found is None:
        return ""  # parts that the template does not take
    # The first token of a sequence follows nothing, so no loss is taken of it.
    mask = [place for place in np.flatnonzero(found["assistant_masks"]).tolist() if place]
    both = sorted({*rendered.positions_N.tolist(), *rendered.scaffold_S.tolist()})
    if both != mask:
        apart = sorted(set(both) ^ set(mask))
        return f"differs at {[(p, tokenizer().decode([rendered.input_ids_P[p]]), p in mask) for p in apart]}"
    return ""


def unmarked(source: str) -> str:
    """The template without generation marks, white space as it was."""
    opened = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", source)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", opened)


NAMED = list(TEMPLATES)
MARKED = [name for name in NAMED if MARKS.search(TEMPLATES[name])]


def failures(source: str, names: list[str]) -> tuple[list[str], int]:
    wrong, refused = [], 0
    for name in names:
        verdict = judge(source, name, CASES[name])
        refused += bool(verdict.refused)
        wrong += [f"{name}: {text}" for text in (verdict.other, verdict.untrue) if text]
    return wrong, refused


@pytest.mark.parametrize("name", NAMED)
def test_rows_are_those_of_transformers(name: str) -> None:
    assert failures(TEMPLATES[name], SHORT) == ([], 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_all_rows_are_those_of_transformers(name: str) -> None:
    wrong, refused = failures(TEMPLATES[name], list(CASES))
    assert not wrong
    assert refused <= len(CASES) / 100


# Opens another turn after the last one, whatever is asked, with tokens that end turns elsewhere.
ALWAYS_OPENS = (
    "{%- for m in messages -%}{{- '<|START_OF_TURN_TOKEN|><|' -}}"
    "{{- ('CHATBOT' if m.role == 'assistant' else 'USER') ~ '_TOKEN|>' -}}"
    "{%- if m.tool_calls -%}{{- '<|START_ACTION|>' ~ m.tool_calls | tojson ~ '<|END_ACTION|>' -}}"
    "{%- elif m.role == 'assistant' -%}{{- '<|START_RESPONSE|>' ~ m.content ~ '<|END_RESPONSE|>' -}}"
    "{%- else -%}{{- m.content -}}{%- endif -%}{{- '<|END_OF_TURN_TOKEN|>' -}}{%- endfor -%}"
    "{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>' -}}"
)


@pytest.mark.parametrize("name", ["plain", "two turns", "tool call last"])
def test_a_turn_that_is_always_opened_is_not_scored(name: str) -> None:
    assert not failures(ALWAYS_OPENS, [name])[0]
    rendered = ours(ALWAYS_OPENS, CASES[name])
    said = tokenizer().decode(rendered.input_ids_P[rendered.positions_N])
    assert rendered.status == "ok"
    assert "CHATBOT" not in said
    assert ("paris" in said) == (name == "tool call last")


def test_what_json_cannot_hold_is_refused_as_by_transformers() -> None:
    source = KINDS["qwen3"] + "{{- messages | map(attribute='role') | tojson -}}"
    assert theirs(source, CASES["plain"], tokenize=False) is None
    assert ours(source, CASES["plain"]).status == "template_error"


def test_the_oracle_finds_what_is_wrong() -> None:
    source, case = KINDS["qwen3"], CASES["plain"]
    rendered = ours(source, case)
    header = dataclasses.replace(
        rendered, positions_N=np.arange(rendered.positions_N[0] - 2, rendered.positions_N[-1] + 1)
    )
    less = dataclasses.replace(rendered, positions_N=rendered.positions_N[:-1])
    assert not positions_wrong(source, case, rendered)
    assert positions_wrong(source, case, header)
    assert positions_wrong(source, case, less)
    calling_case = CASES["tool call, content, defined"]
    called = ours(source, calling_case)
    assert not positions_wrong(source, calling_case, called)
    assert positions_wrong(source, calling_case, dataclasses.replace(called, positions_N=called.positions_N[:4]))
    # The oracle would not take lost text for refused text, nor the other way round.
    assert missing(case, "one?") == "alpha."
    assert not missing(case, "one? alpha.")


def marks_wrong(name: str, names: list[str]) -> list[str]:
    """Where positions and scaffold are not the trainer's mask, or the text is another without marks."""
    source, wrong = TEMPLATES[name], []
    for case_name in names:
        case = CASES[case_name]
        with_marks, without = ours(source, case), ours(unmarked(source), case)
        if with_marks.positions_N.tolist() != without.positions_N.tolist():
            wrong.append(f"{case_name}: another text without marks")
        if difference := mask_wrong(source, case):
            wrong.append(f"{case_name}: {difference}")
    return wrong


# Names of control tokens in the data are control tokens to the trainer, and text to us.
MASKED = [name for name in CASES if name not in ("names of control tokens", "foreign letters")]


@pytest.mark.parametrize("name", MARKED)
def test_positions_and_scaffold_are_the_trainers_mask(name: str) -> None:
    assert marks_wrong(name, [case for case in SHORT if case in MASKED]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKED)
def test_positions_and_scaffold_are_the_trainers_mask_everywhere(name: str) -> None:
    assert marks_wrong(name, MASKED) == []


@pytest.mark.skipif(not TRL, reason="TRL is not installed")
def test_every_family_that_trl_patches_is_there() -> None:
    assert len([name for name in MARKED if name.endswith("_training")]) >= 30


FRAGMENTS = [
    *(
        "<|im_end|>",
        "</s>",
        "<|im_start|>assistant\n",
        "### Response:\n",
        "[/INST]",
        "\n\n",
        "\n",
        " ",
        "é👩‍👧",
        "\U000f0000",
    ),
    *('"', "\\", "{", "<b>", "1. ", "- ", "word ", "word. ", "\u2028", "<|end|>", "}}\n", "𠀀𪛟", "qzqzqz1y"),
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join)


@st.composite
def drawn_cases(draw: st.DrawFn) -> dict[str, Any]:
    """A conversation with a word of its own in every text, so that texts can be told apart."""
    messages: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 5))):
        kind = draw(
            st.sampled_from(["user", "assistant", "assistant", "assistant", "system", "thinks", "calls", "empty"])
        )
        text = draw(texts) + f"w{number}w" + draw(texts)
        if kind in ("user", "assistant", "system"):
            messages.append({"role": kind, "content": text})
        elif kind == "thinks":
            key = draw(st.sampled_from(["reasoning_content", "content"]))
            thoughts = draw(texts) + f"t{number}t"
            both = f"<think>\n{thoughts}\n</think>\n\n{text}"
            messages.append(said(both) if key == "content" else said(text, reasoning_content=thoughts))
        elif kind == "calls":
            messages += [calling(draw(st.sampled_from(["", text]))), result(draw(texts) + f"r{number}r")]
        else:
            messages.append(said(""))
    tools = draw(st.sampled_from([None, None, [TOOL]]))
    return {"messages": messages, **({"tools": tools} if tools else {})}


def scored_is_the_turns_own(name: str, case: dict[str, Any]) -> None:
    source = TEMPLATES[name]
    rendered = ours(source, case)
    if rendered.status != "ok":
        return
    whole = theirs(source, case, tokenize=False)
    assert tokenizer().decode(rendered.input_ids_P) == whole
    words = tokenizer().decode(rendered.input_ids_P[rendered.positions_N])
    for number, message in enumerate(case["messages"]):
        texts = " ".join(str(message.get(key)) for key in ("content", "reasoning_content"))
        for word in re.findall(r"[wtr]\d[wtr]", texts):
            assert words.count(word) == (message["role"] == "assistant"), (number, word)
    replies = [index for index, message in enumerate(case["messages"]) if message["role"] == "assistant"]
    if all(is_plain(case["messages"][index]) for index in replies):
        own = [changed(source, case, index) for index in replies]
        if None not in own:
            assert squeezed(words) == squeezed("".join(map(str, own)))


@given(name=st.sampled_from(NAMED), case=drawn_cases())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_conversation_scores_the_turns_own_text(name: str, case: dict[str, Any]) -> None:
    scored_is_the_turns_own(name, case)


@pytest.mark.slow
@given(name=st.sampled_from(NAMED), case=drawn_cases())
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_very_many_conversations_score_the_turns_own_text(name: str, case: dict[str, Any]) -> None:
    scored_is_the_turns_own(name, case)
