"""Rows that would stop a run: templates that loop or write without end, and tokenizers that give up on a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tests.helpers.paths import DATA
from trajscore.errors import UsageError
from trajscore.options.groups import RenderOptions
from trajscore.rendering import limits
from trajscore.rendering.chat import Chat
from trajscore.rendering.limits import TemplateLimitError
from trajscore.rendering.renderer import Renderer
from trajscore.rendering.templates import ChatTemplate, RefusedRow

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "b"}]
GROWING = "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = SUM %}{% endfor %}{{ ns.s }}"

ENDLESS = {
    "loops in silence": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "prints": "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "prints within a macro": "{% macro m() %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endmacro %}{{ m() }}",
    "doubles with ~": GROWING.replace("SUM", "ns.s ~ ns.s"),
    "doubles with +": GROWING.replace("SUM", "ns.s + ns.s"),
    "multiplies": "{{ 'x' * 10**12 }}",
    "lists": "{{ ([1] * 10**11) | length }}",
    "powers": "{{ 9 ** (9 ** 9) }}",
    "pads": "{{ 'x' | center(10**10) }}",
    "pads in a list": "{{ ['x'] | map('center', 10**10) | list }}",
    "pads by a method": "{{ 'x'.rjust(10**10) }}",
    "fills": "{{ '1'.zfill(10**10) }}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "formats": "{{ '%10000000000d' | format(1) }}",
    "formats with %": "{{ '%*d' % (10**10, 1) }}",
    "formats digits": "{{ '%.10000000000f' % 1.5 }}",
    "formats by a method": "{{ '{:>10000000000}'.format('x') }}",
    "formats with a width that is given": "{{ '{:>{w}}'.format('x', w=10**10) }}",
    "indents": "{{ ('a\\n' * 10**5) | indent(10**5) }}",
    "indents JSON": "{{ [1, 2] | tojson(indent=10**10) }}",
    "expands tabs": "{{ ('\\t' * 10**5).expandtabs(10**5) }}",
    "replaces": "{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}",
    "replaces nothing": "{{ ('x' * 10**6).replace('', 'y' * 10**6) }}",
    "joins": "{{ ([1] * 10**5) | join('y' * 10**6) }}",
    "joins by a method": "{{ ('y' * 10**6).join(['x'] * 10**5) }}",
    "joins the same again and again": "{{ (['y' * 10**6] * 10**5) | join }}",
    "joins what is made on the way": "{{ (['y' * 10**6] * 10**5) | map('upper') | join }}",
    "translates": "{{ ('x' * 10**6).translate({120: 'y' * 10**6}) }}",
    "batches": "{{ [1] | batch(10**10, 0) | list }}",
    "slices": "{{ [1] | slice(10**10, 0) | list }}",
    "rounds": "{{ 1.5 | round(10**9, 'ceil') }}",
    "sums lists": "{{ ([[1]] * 10**5) | sum(start=[]) | length }}",
    "sorts again and again": "{{ ([range(99999) | list] * 10**5) | map('sort') | list | length }}",
    "writes a list that holds itself": "{% set a = [1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}",
    "writes its JSON": "{% set a = [1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a | tojson }}",
    "joins it with ~": "{% set a = [1] %}" + "{% set a = [a, a] %}" * 60 + "{{ 'x' ~ a }}",
    "makes lists": "{% set ns = namespace(s=[]) %}{% for i in range(99) %}{% set ns.s = ns.s + [1] * 10**7 %}{% endfor %}",
    "keeps texts": "{% set ns = namespace(s=[]) %}{% for i in range(99) %}{% set ns.s = ns.s + ['x' * 10**7] %}{% endfor %}",
    "sorts": "{% for i in range(99) %}{% set y = ([3, 1, 2] * 10**5) | sort %}{% endfor %}",
    "finds links": "{% for i in range(99) %}{% set y = ('www.x.com ' * 10**5) | urlize %}{% endfor %}",
    "wraps": "{% for i in range(99) %}{% set y = ('x y ' * 10**6) | wordwrap(1) %}{% endfor %}",
    "writes titles": "{% for i in range(99) %}{% set y = ('x y ' * 10**6) | title %}{% endfor %}",
    "splits": "{% for i in range(99) %}{% set y = ('x y ' * 10**6).split() %}{% endfor %}",
    "replaces the same": "{% for i in range(999) %}{% set y = ('x' * 10**6) | replace('x', 'y') %}{% endfor %}",
    "writes JSON again and again": "{% for i in range(99) %}{% set y = ([1] * 10**5) | tojson %}{% endfor %}",
    "looks for something": "{% set a = 'x' * 10**6 %}{% for i in range(9999) %}{% if 'y' in a %}{% endif %}{% endfor %}",
    "looks by a test": "{% set a = 'x' * 10**6 %}{% for i in range(40000) %}{% if 'y' is in a %}{% endif %}{% endfor %}",
    "compares": "{% set a = 'x' * 10**6 %}{% for i in range(40000) %}{% if a == a ~ '' %}{% endif %}{% endfor %}",
    "compares lists": "{% set a = [1] %}{% set b = [1] %}"
    + "{% set a = [a, a] %}{% set b = [b, b] %}" * 60
    + "{{ a == b }}",
    "cuts": "{% set a = 'x' * 10**6 %}{% for i in range(40000) %}{% set b = a[1:] %}{% endfor %}",
    "squares": "{% set ns = namespace(s=7) %}{% for i in range(60) %}{% set ns.s = ns.s * ns.s %}{% endfor %}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_is_cut_off(source: str) -> None:
    chat = Chat(source)
    for _ in range(2):
        with pytest.raises(TemplateLimitError):
            chat.render(MESSAGES)


def test_counts_begin_anew_with_every_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STEPS", 30)
    chat = Chat("{% for i in range(20) %}{{ i }}{% endfor %}")
    assert chat.render(MESSAGES).text == chat.render(MESSAGES).text == "".join(map(str, range(20)))


def test_what_is_compiled_into_a_template_changes_nothing_else() -> None:
    source = (
        "{% macro m(x, n=2) %}[{{ x * n }}]{% endmacro %}{% for one in messages if one.content %}{{ loop.index ~ ':' + "
        "m(one.content) }}{% if loop.last %}{% generation %}{{ one.content | upper }}{% endgeneration %}{% break %}{% endif %}"
        "{% else %}none{% endfor %}{{ 7 // 2 + 2 ** 3 }}{% set s %}{{ messages | length }}{% endset %}{{ s }}"
    )
    texts, blocks = render_jinja_template([MESSAGES], chat_template=source, return_assistant_tokens_mask=True)
    assert Chat(source).render(MESSAGES) == (texts[0], blocks[0])


def test_filters_and_methods_within_the_bounds_do_what_they_do() -> None:
    source = (
        "{% set t = messages | map(attribute='content') | join(', ') %}{{ t | center(20) }}|{{ t.ljust(9) }}|"
        "{{ t | indent(2) }}|"
        "{{ '%s %5.1f' | format(t, 2) }}|{{ '{:>4}'.format(t) }}|{{ '%d' % 3 }}|{{ 7 % 4 }}|{{ t | replace('l', 'LL') }}|"
        "{{ messages | tojson(indent=1) }}|{{ messages }}|{{ [3, 1] | sort | batch(2) | list }}|"
        "{{ [[1], [2]] | sum(start=[]) }}|"
        "{{ 2.5 | round(1, 'ceil') }}|{{ ', '.join(['a', 'b']) }}|{{ t.replace(t * 1000, '') }}|{{ 'a\tb'.expandtabs(3) }}|"
        "{{ range(5) | map('string') | list | length }}|{{ missing | default('none') }}|{{ none }}|{{ t | unique | list }}"
    )
    texts, _ = render_jinja_template([MESSAGES], chat_template=source)
    assert Chat(source).render(MESSAGES).text == texts[0]


def test_a_long_answer_and_its_thoughts_are_within_the_bounds() -> None:
    """What templates of reasoning models do: take the thoughts out of a content, strip, split and put them together."""
    source = (
        "{% for m in messages %}{% set c = m.content %}{% set t = c.split('</think>')[0].rstrip('\n') %}"
        "{{ c.replace(t, '').strip() | trim }}{{ '<think>' ~ t + '</think>' }}{% endfor %}{{ messages | tojson }}"
    )
    content = "thought " * 250_000 + "</think>" + "word\n" * 250_000
    messages = [MESSAGES[0], {"role": "assistant", "content": content}]
    texts, _ = render_jinja_template([messages], chat_template=source)
    assert Chat(source).render(messages).text == texts[0]


def test_a_template_that_is_out_of_bounds_everywhere_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, start = [], limits.Limits.start

    def counted(self: limits.Limits, size: int) -> None:
        begun.append(size)
        start(self, size)

    monkeypatch.setattr(limits.Limits, "start", counted)
    with pytest.raises(UsageError, match=r"mine: .* go round more than .* a conversation of a few words"):
        ChatTemplate(ENDLESS["loops in silence"], [], origin="mine")
    assert len(begun) == 2, "compiled and rendered once, and not once for every small conversation"


def test_with_tools_it_is_the_row_that_is_refused() -> None:
    template = ChatTemplate(
        "{% if tools %}" + ENDLESS["loops in silence"] + "{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}", ["<|assistant|>", "<|user|>", "<|end|>"],
    )  # fmt: skip
    assert template.render(MESSAGES).text
    for _ in range(2):
        with pytest.raises(RefusedRow, match="go round more than"):
            template.render(MESSAGES, [{"type": "function", "function": {"name": "f"}}])


def test_a_long_conversation_with_many_turns_is_within_the_bounds() -> None:
    """A text that grows turn by turn, and looks back over all turns before, in each."""
    source = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% for before in messages[:loop.index0] %}{% endfor %}"
        "{% set ns.t = ns.t ~ m.content %}{% if '</think>' in ns.t or ns.t == m.content %}{% endif %}{% endfor %}{{ ns.t }}"
    )
    messages = [{"role": ("user", "assistant")[number % 2], "content": "word " * 150} for number in range(600)]
    texts, _ = render_jinja_template([messages], chat_template=source)
    assert Chat(source).render(messages).text == texts[0]


def test_the_row_is_refused_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    path.write_text(
        "{% for m in messages %}{% if m.content == 'bad' %}" + loop + "{% endif %}{{ m.content }} {% endfor %}"
    )
    renderer = Renderer(str(DATA / "models" / "student"), RenderOptions(chat_template=str(path)))
    found = renderer.render_messages([{"role": "user", "content": "bad"}, *MESSAGES[1:]])
    assert (found.status, "go round more than" in found.detail) == ("template_error", True)
    assert renderer.render_messages(MESSAGES).status == "ok"


def test_a_text_on_which_the_tokenizer_gives_up_is_refused(tmp_path: Path) -> None:
    """A pattern that backtracks: Oniguruma gives up, and the library panics."""
    model = tmp_path / "model"
    shutil.copytree(DATA / "models" / "student", model)
    state = json.loads((model / "tokenizer.json").read_text())
    greedy = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [greedy, state["pre_tokenizer"]]}
    (model / "tokenizer.json").write_text(json.dumps(state))
    renderer = Renderer(str(model))
    for found in (
        renderer.render_messages([MESSAGES[0], {"role": "assistant", "content": "x" * 100}]),
        renderer.render_text("x" * 100),
    ):
        assert found.status == "tokenizer_error"
        assert "gives up on a text of" in found.detail
    assert renderer.render_messages(MESSAGES).status == "ok"
