"""Conversations in tokens: what is scored, under several tokenizers, and every way a row or a model can be refused."""

from __future__ import annotations

import functools
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helpers.paths import DATA, SHARED
from tests.rendering.test_templates import (
    CONTROLS,
    LLAMA2,
    LLAMA31,
    MISTRAL,
    NO_GENERATION_PROMPT,
    PLAIN,
    QWEN3,
    call,
    chat,
)
from trajscore.errors import UsageError
from trajscore.options.groups import RenderOptions
from trajscore.rendering import templates
from trajscore.rendering.literals import alternation
from trajscore.rendering.renderer import (
    Rendered,
    Renderer,
)
from trajscore.rendering.sentences import sentence_starts
from trajscore.rendering.tokenizer import load_tokenizer, require_model
from trajscore.schema import STATUSES

STUDENTS = ["student", "student-llama"]
EMOJI = "a👩‍👩‍👧‍👦 b é 한국 \U000f0000\u2028\x0c"


@functools.cache
def renderer(name: str = "student", **options: Any) -> Renderer:
    return Renderer(str(DATA / "models" / name), RenderOptions(**options))


def scored_text(rendered: Rendered, by: Renderer) -> str:
    return by.decode([int(i) for i in rendered.input_ids_P[rendered.positions_N]])


def check(rendered: Rendered) -> None:
    """What holds for every rendered row."""
    assert rendered.status in STATUSES, rendered.status
    assert rendered.input_ids_P.dtype == np.int32
    assert rendered.positions_N.dtype == rendered.sentence_N.dtype == np.uint32
    positions, sentence = rendered.positions_N.astype(np.int64), rendered.sentence_N.astype(np.int64)
    assert len(positions) == len(sentence)
    if rendered.status != "ok":
        assert rendered.detail
        assert len(positions) == len(rendered.input_ids_P) == rendered.n_sentences == 0
        return
    assert len(positions)
    assert positions[0] > 0
    assert positions[-1] < len(rendered.input_ids_P)
    assert (np.diff(positions) > 0).all()
    assert (np.diff(sentence) >= 0).all()
    assert sentence[-1] < rendered.n_sentences


def is_text_of(got: str, contents: Sequence[str]) -> bool:
    """Whether the scored text is the contents; a token may take the header's line break with leading white space."""
    pattern = "".join((r"\n{0,2}" if content[:1].isspace() else "") + re.escape(content) for content in contents)
    return re.fullmatch(pattern, got) is not None


def rows_of(name: str, every: int = 1) -> list[dict[str, Any]]:
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for index, line in enumerate(lines) if index % every == 0]


def written(message: Mapping[str, Any], name: str) -> str:
    """What a shipped template makes of an assistant message, written down a second time."""
    text = message.get("content") or ""
    for number, item in enumerate(message.get("tool_calls") or []):
        function = item["function"]
        given_arguments = function["arguments"]
        arguments = (
            given_arguments if isinstance(given_arguments, str) else json.dumps(given_arguments, ensure_ascii=False)
        )
        text += "\n" if message.get("content") or number else ""
        spoken = json.dumps(function["name"], ensure_ascii=False)
        if name == "student":
            text += f'<tool_call>\n{{"name": {spoken}, "arguments": {arguments}}}\n</tool_call>'
        else:
            text += f'{{"name": {spoken}, "parameters": {arguments}}}'
    return text


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize(
    ("data", "every"), [("gsm8k_gpt3", 60), ("tora_gsm8k_tool", 30), ("agent_multiturn", 6), ("r1_math500", 14)]
)
def test_scored_tokens_are_the_assistants_text(name: str, data: str, every: int) -> None:
    for row in rows_of(data, every):
        rendered = renderer(name).render_messages(row["messages"], row.get("tools"))
        check(rendered)
        contents = [written(message, name) for message in row["messages"] if message["role"] == "assistant"]
        if rendered.status != "ok":
            assert (rendered.status, "".join(contents)) == ("empty_response", ""), (row["id"], rendered.detail)
            continue
        assert is_text_of(scored_text(rendered, renderer(name)), contents), row["id"]


@pytest.mark.parametrize("name", STUDENTS)
def test_both_ways_to_tokenize_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by = renderer(name)
    for data, every in (("gsm8k_gpt3", 300), ("agent_multiturn", 24), ("tora_gsm8k_tool", 100)):
        for row in rows_of(data, every):
            assert by._templates[0] is not None
            text = by._templates[0].render(row["messages"], row.get("tools"))
            whole = by._tokenize(text)
            if not text.literals:
                ids, spans = by._encode_pieces(text.text, {})
                assert ids == whole.input_ids_P.tolist()
                again = by._finish(ids, np.array(spans), text.text, text.turns)
                np.testing.assert_array_equal(again.positions_N, whole.positions_N)
                np.testing.assert_array_equal(again.sentence_N, whole.sentence_N)


TOOLS = [{"type": "function", "function": {"name": "add", "description": "sums", "parameters": {"type": "object"}}}]
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "SYSTEM"},
    {"role": "user", "content": "USER one"},
    call("add", {"a": 1}),
    {"role": "tool", "content": "TOOL"},
    {"role": "assistant", "content": "First. Second."},
    {"role": "user", "content": "USER two"},
    {"role": "assistant", "content": "Third.", "reasoning_content": "Hm."},
]
CONTENTS = {
    "student": [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        "First. Second.",
        "<think>\nHm.\n</think>\n\nThird.",
    ],
    "student-llama": ['{"name": "add", "parameters": {"a": 1}}', "First. Second.", "<think>\nHm.\n</think>\n\nThird."],
}
MARKER = {"student": "<|im_end|>", "student-llama": "<|eot_id|>"}


@pytest.mark.parametrize("name", STUDENTS)
class TestWhatIsScored:
    def test_all_turns(self, name: str) -> None:
        rendered = renderer(name).render_messages(CONVERSATION, TOOLS)
        check(rendered)
        assert scored_text(rendered, renderer(name)) == "".join(CONTENTS[name])

    def test_last_turn(self, name: str) -> None:
        last = renderer(name, turns="last").render_messages(CONVERSATION, TOOLS)
        whole = renderer(name).render_messages(CONVERSATION, TOOLS)
        assert scored_text(last, renderer(name)) == CONTENTS[name][-1]
        assert last.input_ids_P.tolist() == whole.input_ids_P.tolist()
        assert last.sentence_N[0] == 0
        assert last.n_sentences == len(sentence_starts(CONTENTS[name][-1]))

    def test_the_marker_stands_apart(self, name: str) -> None:
        by = renderer(name)
        rendered = by.render_messages(CONVERSATION, TOOLS)
        check(rendered)
        markers = rendered.scaffold_S[rendered.scaffold_kind_S == templates.MARKER]
        assert [by.decode([int(rendered.input_ids_P[p])]) for p in markers] == [MARKER[name]] * 3
        assert not set(rendered.positions_N.tolist()) & set(rendered.scaffold_S.tolist())

    def test_turns_that_are_context(self, name: str) -> None:
        by = renderer(name)
        rendered = by.render_messages(CONVERSATION, TOOLS, context={2, 6})
        assert scored_text(rendered, by) == CONTENTS[name][1]
        assert (rendered.scaffold_kind_S == templates.MARKER).sum() == 1
        assert by.render_messages(CONVERSATION, TOOLS, context={2, 4, 6}).status == "no_assistant_turn"

    def test_each_turn_begins_a_sentence(self, name: str) -> None:
        rendered = renderer(name).render_messages(CONVERSATION, TOOLS)
        counts = [len(sentence_starts(text)) for text in CONTENTS[name]]
        assert rendered.n_sentences == sum(counts)
        sentences = sorted(set(rendered.sentence_N.tolist()))
        ids = rendered.input_ids_P[rendered.positions_N]
        pieces = [renderer(name).decode(ids[rendered.sentence_N == s].tolist()) for s in sentences]
        assert pieces[counts[0] : counts[0] + 2] == ["First. ", "Second."]

    @pytest.mark.parametrize(
        ("messages", "status"),
        [
            (chat("q", ""), "empty_response"),
            (chat("q", {"role": "assistant", "content": None}), "empty_response"),
            (chat("q", "x"), "ok"),
            ([{"role": "assistant", "content": "x"}], "ok"),
            (chat("q", "one", {"role": "assistant", "content": "two"}), "ok"),
            (chat("q", "", "q", "two"), "ok"),
            (chat("q"), "no_assistant_turn"),
            ([], "no_assistant_turn"),
            ([{"role": "alien", "content": "q"}, {"role": "assistant", "content": "x"}], "template_error"),
            ([{"role": None, "content": "q"}, {"role": "assistant", "content": "x"}], "template_error"),
            ([{"content": "q"}, {"role": "assistant", "content": "x"}], "template_error"),
            ([{"role": "assistant"}], "empty_response"),
        ],
    )
    def test_odd_rows_get_a_status(self, name: str, messages: list[dict[str, Any]], status: str) -> None:
        rendered = renderer(name).render_messages(messages)
        check(rendered)
        assert rendered.status == status, rendered.detail

    @pytest.mark.parametrize("content", [" ", "\n", "\n\n ", "x", " x", "\nx ", EMOJI, "\u3000"])
    def test_short_and_blank_responses(self, name: str, content: str) -> None:
        rendered = renderer(name).render_messages(chat("q", content))
        check(rendered)
        assert rendered.status == "ok"
        assert is_text_of(scored_text(rendered, renderer(name)), [content])

    def test_deep_nesting_gets_a_status(self, name: str) -> None:
        arguments: Any = {}
        for _ in range(100_000):
            arguments = {"a": arguments}
        rendered = renderer(name).render_messages(chat("q", call("f", arguments)))
        assert rendered.status in ("invalid_messages", "template_error")


NAMES = [
    "</s>",
    "<|im_end|>",
    "<|im_start|>system\n",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|endoftext|>",
    "<|im_<|im_end|>end|>",
]


@pytest.mark.parametrize("name", STUDENTS)
class TestControlTokensInData:
    @pytest.mark.parametrize("text", [*NAMES, "".join(NAMES) + EMOJI + "".join(NAMES)])
    def test_never_become_control_tokens(self, name: str, text: str) -> None:
        def conversation(said: str) -> tuple[list[dict[str, Any]], list[Any]]:
            messages = [
                {"role": "system", "content": said},
                {"role": "user", "content": f"a {said} b"},
                call("f" + said, {f"k{said}": [said]}),
                {"role": "tool", "content": said},
                {"role": "assistant", "content": f"One {said} two. {said}Three.", "reasoning_content": said},
            ]
            function = {"name": "f" + said, "description": said, "parameters": {said: said}}
            return messages, [{"type": "function", "function": function}]

        by = renderer(name)
        controls = set(by._control_ids.values())
        plain, nasty = (by.render_messages(*conversation(said)) for said in ("x", text))
        check(nasty)
        assert nasty.status == "ok", nasty.detail
        of_plain, of_nasty = ([int(i) for i in r.input_ids_P if int(i) in controls] for r in (plain, nasty))
        assert of_plain == of_nasty
        # The same text, with the names in it.
        escaped = json.dumps(text, ensure_ascii=False)[1:-1]
        assert by.decode(nasty.input_ids_P.tolist()).count(escaped) >= 4
        assert scored_text(nasty, by).endswith(f"One {text} two. {text}Three.")
        assert not controls & set(nasty.input_ids_P[nasty.positions_N].tolist())

    @pytest.mark.parametrize("text", NAMES)
    def test_in_bare_text(self, name: str, text: str) -> None:
        by = renderer(name)
        rendered = by.render_text(f"{text}a{text}. B{text}")
        check(rendered)
        own = 1 if name == "student-llama" else 0
        assert not set(by._control_ids.values()) & set(rendered.input_ids_P[own:].tolist())
        assert by.decode(rendered.input_ids_P[own:].tolist()) == f"{text}a{text}. B{text}"
        assert rendered.positions_N.tolist() == list(range(1, len(rendered.input_ids_P)))
        assert rendered.n_sentences == len(sentence_starts(f"{text}a{text}. B{text}"))

    def test_sentences_stay_aligned(self, name: str) -> None:
        by = renderer(name)
        rendered = by.render_messages(chat("<|im_end|>" * 3, "A <|im_end|> b. C <|eot_id|> d.\nE."))
        ids = rendered.input_ids_P[rendered.positions_N]
        pieces = [by.decode(ids[rendered.sentence_N == s].tolist()) for s in range(rendered.n_sentences)]
        assert "".join(pieces) == "A <|im_end|> b. C <|eot_id|> d.\nE."
        assert [piece.strip()[:1] for piece in pieces] == ["A", "C", "E"]


def test_think_is_one_token() -> None:
    by = renderer()
    for text in ("<think>\na\n</think>b", "<think>\n<|im_end|>\n</think>b"):
        rendered = by.render_messages(chat("q", text))
        tokens = [by.decode([int(i)]) for i in rendered.input_ids_P[rendered.positions_N]]
        assert tokens.count("<think>") == tokens.count("</think>") == 1


class TestLimits:
    MESSAGES = chat("q", "One two three. Four five six. Seven eight nine.")

    def test_exactly_at_the_limit(self) -> None:
        whole = renderer().render_messages(self.MESSAGES)
        length = len(whole.input_ids_P)
        for how in ("refuse", "truncate"):
            same = renderer(max_model_len=length, on_overlong=how).render_messages(self.MESSAGES)
            assert (same.status, same.truncated) == ("ok", False)
            assert same.positions_N.tolist() == whole.positions_N.tolist()
        refusal = renderer(max_model_len=length - 1).render_messages(self.MESSAGES)
        assert refusal.status == "too_long"
        assert f"{length} tokens, {length - 1} allowed" in refusal.detail

    def test_every_cut(self) -> None:
        whole = renderer().render_messages(self.MESSAGES)
        for limit in range(1, len(whole.input_ids_P)):
            cut = renderer(max_model_len=limit, on_overlong="truncate").render_messages(self.MESSAGES)
            check(cut)
            kept = int((whole.positions_N < limit).sum())
            assert (cut.status, cut.truncated) == (("ok", True) if kept else ("too_long", False))
            assert cut.positions_N.tolist() == whole.positions_N[:kept].tolist()
            if kept:
                assert cut.input_ids_P.tolist() == whole.input_ids_P[:limit].tolist()
                assert cut.n_sentences == whole.sentence_N[kept - 1] + 1


def make_tokenizer(
    folder: Path, *, template: str | None = None, base: str = "student", extra: Sequence[str] = ()
) -> str:
    """A shipped tokenizer with another template and more control tokens."""
    tokenizer = load_tokenizer(str(DATA / "models" / base))
    tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    if "<s>" in extra:
        tokenizer.bos_token = "<s>"  # noqa: S105 - not a secret
    if "</s>" in extra:
        tokenizer.eos_token = "</s>"  # noqa: S105
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    shutil.copy(DATA / "models" / base / "config.json", folder / "config.json")
    return str(folder)


def make_metaspace(folder: Path, template: str) -> str:
    import transformers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))  # noqa: S106
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=[chr(c) for c in range(33, 127)]
    )
    backend.train_from_iterator(["hello world, this is text. one two three"] * 9, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )
    made.chat_template = template
    made.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


class TestTokenizers:
    def test_metaspace(self, tmp_path: Path) -> None:
        by = Renderer(make_metaspace(tmp_path, LLAMA2))
        rendered = by.render_messages(chat("hello", "one two", "world", "three"))
        check(rendered)
        assert scored_text(rendered, by).split() == ["one", "two", "three"]
        tokenized_wrongly = by.render_messages(chat("hello </s>", "one"))
        assert tokenized_wrongly.status == "control_token_text"
        assert "</s>" in tokenized_wrongly.detail

    def test_a_first_token_that_takes_a_space_of_the_template_is_scored(self, tmp_path: Path) -> None:
        source = (
            "{%- for m in messages %}{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST] ' }}{%- else %}"
            "{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}{%- endfor %}"
        )
        by = Renderer(make_metaspace(tmp_path, source))
        rendered = by.render_messages(chat("hello", "one two. three"))
        assert scored_text(rendered, by).strip() == "one two. three"
        assert rendered.sentence_N[0] == 0
        assert rendered.n_sentences == 2

    @pytest.mark.parametrize("source", [QWEN3, LLAMA31, MISTRAL, PLAIN])
    def test_templates_of_other_models(self, tmp_path: Path, source: str) -> None:
        by = Renderer(make_tokenizer(tmp_path, template=source, extra=["<s>", "</s>", *CONTROLS[source]]))
        rendered = by.render_messages(chat("q </s>", f"One.</s> Two. {EMOJI}x", "q", "Three."))
        check(rendered)
        assert rendered.status == "ok", rendered.detail
        assert scored_text(rendered, by).rstrip("\n") == f"One.</s> Two. {EMOJI}x" + "Three."

    def test_offsets_without_white_space_are_mended(self, tmp_path: Path) -> None:
        folder = Path(make_tokenizer(tmp_path, template=NO_GENERATION_PROMPT))
        state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        state["post_processor"] = {"type": "Sequence", "processors": [byte_level, state["post_processor"]]}
        (folder / "tokenizer.json").write_text(json.dumps(state))
        by = Renderer(str(folder))
        rendered = by.render_messages(chat("q", "One two. \n\nThree   ", "q  ", "   "))
        assert scored_text(rendered, by).replace("\n   ", "   ") == "One two. \n\nThree      "
        assert rendered.n_sentences == 3

    def test_an_end_token_of_the_tokenizers_own_is_not_scored(self, tmp_path: Path) -> None:
        folder = Path(make_tokenizer(tmp_path))
        state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        state["post_processor"]["single"].append({"SpecialToken": {"id": "<|im_end|>", "type_id": 0}})
        state["post_processor"]["special_tokens"] = {
            "<|im_end|>": {"id": "<|im_end|>", "ids": [546], "tokens": ["<|im_end|>"]}
        }
        (folder / "tokenizer.json").write_text(json.dumps(state))
        rendered = Renderer(str(folder)).render_text("One two. Three")
        assert rendered.input_ids_P[-1] == 546
        assert rendered.positions_N.tolist() == list(range(1, len(rendered.input_ids_P) - 1))

    def test_a_tokenizer_without_template_names_the_option(self, tmp_path: Path) -> None:
        by = Renderer(make_tokenizer(tmp_path))
        with pytest.raises(UsageError, match=re.escape("--chat-template")) as caught:
            by.render_messages(chat("q", "one"))
        assert caught.value.exit_code == 2
        assert by.render_text("one two").status == "ok"
        assert by.describe()["chat_template_sha256"] is None

    def test_template_from_a_file_or_a_model(self, tmp_path: Path) -> None:
        folder = make_tokenizer(tmp_path / "bare")
        (tmp_path / "t.jinja").write_text(PLAIN)
        plain = Renderer(folder, RenderOptions(chat_template=str(tmp_path / "t.jinja")))
        assert "### Response:" in plain.decode(plain.render_messages(chat("q", "one")).input_ids_P.tolist())
        theirs = Renderer(folder, RenderOptions(chat_template=str(DATA / "models" / "student")))
        rendered = theirs.render_messages(chat("q", "one"))
        assert rendered.input_ids_P.tolist() == renderer().render_messages(chat("q", "one")).input_ids_P.tolist()
        assert theirs.describe()["chat_template_sha256"] == renderer().describe()["chat_template_sha256"]

    def test_templates_that_cannot_be_used(self, tmp_path: Path) -> None:
        bare = make_tokenizer(tmp_path / "bare")
        (tmp_path / "broken.jinja").write_text("{% for %}")
        (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe\x00")
        inline = "{% for m in messages %}{{ m.content }}{% endfor %}" * 90
        for given_template in (
            bare,
            str(tmp_path / "broken.jinja"),
            str(tmp_path / "binary.jinja"),
            "/no/such",
            inline,
        ):
            with pytest.raises(UsageError):
                Renderer(bare, RenderOptions(chat_template=given_template))

    def test_several_templates_without_a_default(self, tmp_path: Path) -> None:
        folder = Path(make_tokenizer(tmp_path))
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "rag.jinja").write_text(PLAIN)
        with pytest.raises(UsageError, match="rag"):
            Renderer(str(folder))

    def test_a_slow_tokenizer(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "t5"}')
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
        with pytest.raises(UsageError, match="fast"):
            load_tokenizer(str(tmp_path))

    def test_models_that_do_not_exist(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        (tmp_path / "file").write_text("x")
        (tmp_path / "damaged").mkdir()
        (tmp_path / "damaged" / "config.json").write_text("{}")
        (tmp_path / "damaged" / "tokenizer.json").write_text("{")
        names = [str(tmp_path / "none"), str(tmp_path), str(tmp_path / "file"), "", "./x", "a/b/c", "x" * 5000]
        for name in [*names, str(tmp_path / "damaged"), "no-such-organisation/no-such-model", "a b/c?"]:
            with pytest.raises(UsageError) as caught:
                load_tokenizer(name)
            assert "\n\n" not in str(caught.value)
        with pytest.raises(UsageError, match="without config"):
            require_model(str(tmp_path))


def test_bare_text() -> None:
    for name, first in (("student", 0), ("student-llama", 1)):
        by = renderer(name)
        rendered = by.render_text("One two. Three.")
        check(rendered)
        # The first token has no predecessor; a start token of the tokenizer's own is one.
        assert rendered.positions_N[0] == 1
        assert by.decode(rendered.input_ids_P[first:].tolist()) == "One two. Three."
        assert rendered.n_sentences == 2
        assert by.render_text("").status == "empty_response"
    assert renderer().render_text("x").status == "empty_response"
    assert renderer("student-llama").render_text("x").status == "ok"


def test_description_is_json_and_tells_settings_apart() -> None:
    described = renderer().describe()
    assert json.loads(json.dumps(described)) == described
    assert renderer(turns="last").describe() != described
    assert renderer("student-llama").describe()["tokenizer_sha256"] != described["tokenizer_sha256"]
    assert len(renderer().vocabulary) == 551


@pytest.mark.parametrize("name", STUDENTS)
def test_a_row_of_many_turns_takes_a_bounded_time(name: str) -> None:
    messages = chat(*(f"turn {i}. " + "some words, " * 40 for i in range(120)))
    start = time.process_time()
    rendered = renderer(name).render_messages(messages)
    assert time.process_time() - start < 5
    check(rendered)
    assert rendered.status == "ok"


FRAGMENTS = [
    *NAMES,
    "<think>",
    "</think>",
    "<tool_call>",
    "\n",
    "\n\n",
    " ",
    ". ",
    "é",
    "👩‍👧",
    "\U000f0000",
    "\U0010ffff",
    '"',
    "\\",
    "{",
    "a",
    "One. ",
    "\x00",
    "\r\n",
    "\u2028",
]
texts = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=4,
)
plain_messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": texts})
odd_messages = st.fixed_dictionaries(
    {"role": st.one_of(st.sampled_from(["user", "assistant", "tool"]), texts, st.none())},
    optional={
        "content": st.one_of(texts, values),
        "reasoning_content": values,
        "tool_calls": st.one_of(
            values,
            st.lists(
                st.one_of(
                    values,
                    st.fixed_dictionaries(
                        {"function": st.one_of(values, st.fixed_dictionaries({"name": texts, "arguments": values}))}
                    ),
                ),
                max_size=2,
            ),
        ),
    },
)
# Often valid for every template: user and assistant by turns, with odd additions.
conversations = st.lists(st.tuples(texts, values, st.one_of(values, st.lists(values, max_size=2))), max_size=4).map(
    lambda items: [
        {"role": ("user", "assistant")[i % 2], "content": text, "reasoning_content": thoughts, "tool_calls": calls}
        for i, (text, thoughts, calls) in enumerate(items)
    ]
)
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@quick
@given(messages=st.lists(plain_messages, max_size=5))
def test_any_text_is_scored_as_it_is(messages: list[dict[str, Any]]) -> None:
    for name in STUDENTS:
        by = renderer(name)
        rendered = by.render_messages(messages)
        check(rendered)
        contents = [message["content"] for message in messages if message["role"] == "assistant"]
        if rendered.status == "ok":
            assert is_text_of(scored_text(rendered, by), contents)
        else:
            assert rendered.status == ("empty_response" if contents else "no_assistant_turn")
            assert not "".join(contents)


@quick
@given(messages=st.lists(odd_messages, max_size=4), tools=st.one_of(st.none(), st.lists(values, max_size=2)))
def test_no_row_raises(messages: list[dict[str, Any]], tools: list[Any] | None) -> None:
    for name in STUDENTS:
        check(renderer(name).render_messages(messages, tools))


@pytest.mark.parametrize("number", range(len(CONTROLS) - 1))
def test_no_row_raises_under_other_templates(number: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = list(CONTROLS)[number]  # all but Harmony, whose turns hold control tokens that the model writes
    by = Renderer(
        make_tokenizer(tmp_path_factory.mktemp("other"), template=source, extra=CONTROLS[source]),
        RenderOptions(on_lost_text="accept"),
    )

    seen = set()

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(messages=conversations)
    @example(messages=[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a <b> c"}])
    def run(messages: list[dict[str, Any]]) -> None:
        rendered = by.render_messages(messages)
        check(rendered)
        seen.add(rendered.status)
        if rendered.status == "ok":
            allowed = {by._control_ids[n] for n in ("<tool_call>", "</tool_call>") if n in by._control_ids}
            scored = set(rendered.input_ids_P[rendered.positions_N].tolist())
            assert not scored & set(by._control_ids.values()) - allowed

    run()
    assert "ok" in seen


def test_controls_pattern_is_the_tokenizers() -> None:
    assert renderer()._pattern == alternation(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
