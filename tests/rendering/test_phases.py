"""Thinking, markers and answer of a turn: every family's markers, every way a turn may lack one, and the stored column."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.helpers.paths import DATA
from trajscore.options.groups import RenderOptions
from trajscore.rendering.loops import NGRAM, compression, repeated_lines, repeated_ngrams
from trajscore.rendering.phases import MARKERS, phase_starts
from trajscore.rendering.renderer import Rendered, Renderer

STUDENTS = ["student", "student-llama"]
QUESTION = {"role": "user", "content": "What is 2 + 3?"}


def _letters(text: str, before: str = "") -> str:
    """The phase of every character."""
    starts, phases = phase_starts(text, before)
    return "".join(str(phases[max(n for n, s in enumerate(starts) if s <= place)]) for place in range(len(text)))


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_every_family(opening: str, closing: str) -> None:
    marks = ("1" * len(opening), "1" * len(closing))
    assert _letters(f"{opening}ab{closing}cd") == f"{marks[0]}00{marks[1]}22"
    assert _letters(f"ab{closing}cd") == f"00{marks[1]}22"
    assert _letters(f"{opening}ab") == f"{marks[0]}00"
    assert _letters(f"{opening}{closing}") == marks[0] + marks[1]
    assert _letters("ab", before=f"header {opening}\n") == "00"
    assert _letters(f"a{closing}b", before=opening) == f"0{marks[1]}2"


@pytest.mark.parametrize(
    ("text", "phases"),
    [
        ("", ""),
        ("ab", "22"),
        (" \n<think>a", "11" + "1" * 7 + "0"),
        ("b<think>a</think>", "2" + "1" * 7 + "0" + "1" * 8),
        ("<think>a</think>b<think>c</think>d", "1" * 7 + "0" + "1" * 8 + "2" + "1" * 7 + "0" + "1" * 8 + "2"),
        # Markers of another family are text.
        ("<think>[/THINK]</think>b", "1" * 7 + "0" * 8 + "1" * 8 + "2"),
        ("<think >a", "2" * 9),
        ("<think>a<think>b</think>c", "1" * 7 + "0" + "1" * 7 + "0" + "1" * 8 + "2"),
    ],
)
def test_cases(text: str, phases: str) -> None:
    assert _letters(text) == phases


def _rendered(content: str, name: str = "student", **options: Any) -> tuple[Rendered, list[str]]:
    by = Renderer(str(DATA / "models" / name), RenderOptions(**options))
    rendered = by.render_messages([QUESTION, {"role": "assistant", "content": content}])
    return rendered, [by.decode([int(i)]) for i in rendered.input_ids_P[rendered.positions_N]]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_token_belongs_to_the_phase_in_which_its_first_character_lies(name: str) -> None:
    content = "<think>\n2 + 3 = 5. é\n</think>\n\nAnswer: 5"
    rendered, texts = _rendered(content, name)
    assert rendered.phase_N.dtype == np.uint8
    assert len(rendered.phase_N) == len(rendered.positions_N)
    letters, starts = _letters(content), rendered.response.span_N2[:, 0]
    assert rendered.phase_N.tolist() == [int(letters[start]) for start in starts]
    by_phase = ["".join(t for t, p in zip(texts, rendered.phase_N, strict=True) if p == phase) for phase in (0, 2)]
    assert "2 + 3" in by_phase[0]
    assert by_phase[1].endswith("Answer: 5")


def test_truncation() -> None:
    whole, _ = _rendered("<think>a b c d e f g</think>h")
    cut, _ = _rendered(
        "<think>a b c d e f g</think>h", on_overlong="truncate", max_model_len=len(whole.input_ids_P) - 6
    )
    assert cut.truncated
    assert cut.phase_N.tolist() == whole.phase_N[: len(cut.phase_N)].tolist()
    assert len(cut.phase_N) == len(cut.positions_N)


def test_turns_have_phases_of_their_own() -> None:
    by = Renderer(str(DATA / "models" / "student"))
    turns = ["a</think>b", "plain", "<think>c"]
    messages = [message for text in turns for message in (QUESTION, {"role": "assistant", "content": text})]
    rendered = by.render_messages(messages)
    letters = "".join(map(_letters, turns))
    assert rendered.phase_N.tolist() == [int(letters[start]) for start in rendered.response.span_N2[:, 0]]
    last = Renderer(str(DATA / "models" / "student"), RenderOptions(turns="last")).render_messages(messages)
    assert set(last.phase_N.tolist()) == {0, 1}


PROMPT_OPENS = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}<think>
{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""


@pytest.mark.parametrize(("content", "expected"), [("a</think>b", {0, 1, 2}), ("a b c", {0})])
def test_thinking_that_the_prompt_opens(content: str, expected: set[int], tmp_path: Any) -> None:
    (tmp_path / "t.jinja").write_text(PROMPT_OPENS)
    rendered, texts = _rendered(content, chat_template=str(tmp_path / "t.jinja"))
    assert "".join(texts) == content
    assert set(rendered.phase_N.tolist()) == expected


def test_repeated_ngrams_by_hand_and_counted() -> None:
    assert (
        repeated_ngrams("0." + "3" * 98) == 1 - 3 / 81
    )  # 81 n-grams: one begins at "0", one at ".", the others are alike
    assert repeated_ngrams("3" * 19) is None
    assert repeated_ngrams("the same line of text\n" * 9) == 0.0  # lines are `repeated_lines`' business
    draw = random.Random(5)
    text = "\n".join("".join(draw.choices("ab\u00e9 ", [9, 1, 1, 1], k=draw.randrange(80))) for _ in range(40))
    lines = [line.encode() for line in text.splitlines()]
    grams = [[line[i : i + NGRAM] for i in range(len(line) - NGRAM + 1)] for line in lines]
    assert repeated_ngrams(text) == 1 - sum(len(set(each)) for each in grams) / sum(map(len, grams))


def test_loop_flags_by_hand() -> None:
    line = "So 3 + 4 is 7, and 7 + 5 is 2.\n"
    assert repeated_lines(line * 4) == 0.75
    assert repeated_lines("a\n\n \nb\na ") == pytest.approx(1 / 3)
    assert repeated_lines("one line") == 0.0
    for nothing in ("", "\n \n"):
        assert repeated_lines(nothing) is None
    assert compression("") is None
    assert compression(" ") == 1 / 9  # eight bytes of header and checksum, at least, around any text
    looped, varied = compression(line * 200), compression("".join(random.Random(1).choices("abcdefgh \n", k=6000)))
    assert looped is not None
    assert varied is not None
    assert looped > 30
    assert varied < 3
    assert compression("\ud800") is not None  # text that is no valid Unicode is counted, not refused
