"""Sentence starts: every rule once, properties on nasty text, and linear work on adversarial text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajscore.rendering.sentences import sentence_starts


def split(text: str) -> list[str]:
    starts = sentence_starts(text)
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=bool(text))]


# Sentences as they should be found in their concatenation.
CASES: dict[str, list[str]] = {
    "punctuation": ["One. ", "Two! ", "Three? ", "Four... ", "Five… ", "Six?! ", "Seven"],
    "line breaks": ["One\n", "two\n\n  ", "three\n"],
    "line breaks of Windows": ["One.\r\n", "Two\r\n\r\n", "three"],
    "closing marks": ['He said "yes." ', "(He did.) ", "**Done.** ", "_So._ ", "“Yes.” ", "End"],
    "decimals": ["It is 3.5 or .5 or 1.000.000 in all. ", "Then 2."],
    "prices": ["It costs $5. ", "She pays $6. ", "He has $1,000.50 left. ", "End"],
    "two prices and a formula": ["Pay $5. ", "Pay $6. ", "So $x. y$ is 5$. ", "End"],
    "prices and a formula": ["It costs $5. ", "So $x = 5$. ", "End"],
    "abbreviations": ["See e.g. this, i.e. Fig. 3 vs. Dr. A. Smith, cf. Eq. 2. ", "End"],
    "number or answer": ["See No. 5 there. ", "Is it 5? ", "No. ", "It is 6."],
    "list markers": [
        "1. One\n",
        "2. Two. ",
        "Three\n",
        "a. Four\n",
        "(b) Five\n",
        "(c). Five\n",
        "iv. Six\n",
        "Step 3. Seven. ",
        "Eight",
    ],
    "a list in Markdown": ["- 1. One\n", "> 2. Two"],
    "inline formula": ["We have $a. b$ and $x=1$. ", "So \\(c. d\\) holds. ", "End"],
    "displayed formula": ["Now\n", "$$a. b\nc? d$$ then. ", "And \\[e.\n f! g\\] too. ", "End"],
    "environment": ["So \\begin{aligned} a. b\n\n c. d \\end{aligned} holds. ", "End"],
    "nested environments": ["\\begin{a}x. y\\begin{b}z. z\\end{b}w. w\\end{a} end. ", "End"],
    "escaped dollar": ["It is 5\\$. ", "And 6\\$. ", "End"],
    "line break in LaTeX": ["a \\\\[2pt] b. ", "c \\\\(d. ", "End"],
    "code fence": ["Run:\n", "```python\nx = 1. # a. b\n\ny()\n```\n", "End. ", "Really"],
    "fence of tildes": ["~~~\na. b\n```\nc\n~~~\n", "End"],
    "longer fence": ["````\n```\na. b\n```\nc. d\n````\n", "End"],
    "indented fence": ["Run:\n  ", "```\na. b\n  ```\n", "End"],
    "inline code": ["Call `a. b` now. ", "Then `c. ", "d"],
    "unclosed fence": ["```python\n", "x = 1. ", "y"],
    "unclosed formula": ["Let $x. ", "Then \\(y. ", "Then \\[z. ", "Then \\begin{a} w. ", "End"],
    "unclosed display": ["$$x.\n", "yes. ", "End"],
    "code ends with its line": ["a ` b.\n", "c ` d. ", "End"],
    "formula ends with its paragraph": ["\\[a.\n\n", "b\\] c. ", "End"],
    "a blank line of spaces ends a paragraph": ["\\[a.\n \t\n", "b\\] c. ", "End"],
    "full-width": ["你好。", "是吗？", "是！", "他说“好。”", "完"],
    "full-width before white space": ["你好。 ", "是吗？\n", "完"],
    "no white space after": ["a.b?c!d"],
    "leading white space": [" \n\t One. ", "Two"],
    "white space": [" \n \n"],
    "thinking": ["<think>\n", "Hm. ", "So.\n", "</think>\n\n", "Answer."],
    "nothing but marks": ["...!?"],
    "a dot alone": [". ", "a"],
    "file names": ["Open main.py and v1.2.3. ", "End"],
}


@pytest.mark.parametrize("name", CASES)
def test_rules(name: str) -> None:
    assert split("".join(CASES[name])) == CASES[name]


def test_of_nothing_there_is_no_sentence() -> None:
    assert sentence_starts("") == []
    assert sentence_starts(" ") == sentence_starts("a") == [0]


FRAGMENTS = [
    *[
        "$",
        "$$",
        "`",
        "```",
        "~~~",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
        "\\begin{a}",
        "\\end{a}",
        "\\",
        "\\$",
        "\n```",
        "\n~~~\n",
    ],
    *[".", ". ", "! ", "?", "…", "...", "\n", "\n\n", "\r\n", " ", "\t", "\u3000", "\u2028", "\x85", "\x0c", "\x1c"],
    *[
        "。",
        "！",
        "？",
        "”",
        "」",
        '"',
        "'",
        ")",
        "]",
        "*",
        "_",
        "a",
        "B",
        "e.g",
        "No",
        "Dr",
        "1",
        "3.5",
        "$5",
        "Step 1",
        "iv",
    ],
]
nasty = st.one_of(st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join), st.text(max_size=40))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=nasty)
def test_pieces_are_the_text(text: str) -> None:
    starts = sentence_starts(text)
    assert starts == sorted(set(starts))
    assert starts[:1] == ([0] if text else [])
    pieces = split(text)
    assert "".join(pieces) == text
    if text.strip():
        assert all(piece.strip() for piece in pieces)
        assert not any(piece[0].isspace() for piece in pieces[1:])
    else:
        assert len(pieces) <= 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(before=st.sampled_from(["One. ", "Two\n", "三。"]), text=nasty)
def test_what_lies_in_a_closed_fence_is_one_piece(before: str, text: str) -> None:
    inside = text.replace("~", "-")
    whole = f"Start:\n~~~~~\n{inside}\n~~~~~\nEnd"
    assert split(whole)[-2:] == [f"~~~~~\n{inside}\n~~~~~\n", "End"]
    assert split(before + whole)[-2:] == split(whole)[-2:]


ADVERSARIAL = [
    "$a",
    "$ $5",
    "`",
    "`a\n",
    "```\n",
    "~~~\na\n",
    "\\[\\(",
    "\\begin{a}",
    "\\begin{",
    "\\",
    ". ",
    " . ",
    ".'",
    "'",
    "\n",
]
ADVERSARIAL += [" ", "\n ", "\r\n", "。”", "A. ", "\n\n$$a", "\t`", "\u3000", " \n```"]


@pytest.mark.parametrize("fragment", ADVERSARIAL)
def test_long_adversarial_text_takes_linear_time(fragment: str) -> None:
    text = (fragment * (400_000 // len(fragment)))[:400_000]
    start = time.process_time()
    sentence_starts("a" + text)
    # A quadratic scan of 400,000 characters takes minutes; a linear one takes about a second.
    assert time.process_time() - start < 20
