"""Rows that would stop a run: templates that loop or write without end, and tokenizers that give up on a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tests.helpers.paths import DATA
from trajscore.options.groups import RenderOptions
from trajscore.rendering import limits
from trajscore.rendering.chat import Chat
from trajscore.rendering.limits import TemplateLimitError
from trajscore.rendering.renderer import Renderer

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
    "squares": "{% set ns = namespace(s=7) %}{% for i in range(60) %}{% set ns.s = ns.s * ns.s %}{% endfor %}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_is_cut_off(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STEPS", 50_000)
    monkeypatch.setattr(limits, "TOTAL_CHARACTERS", 2**30)
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
