"""The final answer in a response, and whether two answers mean the same.

Answers are data: they are parsed as expressions by math-verify, with a time limit, and never evaluated as code.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import threading
from collections.abc import Sequence

from trajscore.errors import MissingExtraError
from trajscore.interruptions import held_back

LONGEST = 200
"""Characters; a longer answer is compared as text only."""

_SECONDS = 2
_ANSWER = re.compile(r"(?is).*\banswer[\s*]*(?:is\b|:|=)\s*:?\s*([^\n]+)")
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s-]+[^\W\d_]+)*|[^\W\d_](?:[\s-]+[^\W\d_]+)+")


def final_answer(response: str) -> str | None:
    r"""The answer that a response ends in, None when it gives none.

    Thinking does not count: only what follows the last `</think>` is read, and nothing of a thought that never ends. Then, in
    this order: the last `\boxed{...}`, what follows the last "answer is" or "Answer:" on its line, the last number.

    >>> final_answer(r"<think>\boxed{3}</think> So it is \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> final_answer("1 + 2 = 3.\n\nAnswer: 6")
    '6'
    """
    text = response.rpartition("</think>")[2].partition("<think>")[0]
    boxed = _boxed(text)
    if boxed is not None:
        return boxed
    said = _ANSWER.match(text)
    if said:
        return _bare(said[1]) or None
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 1 : place].strip() or None
    return None


def _bare(text: str) -> str:
    """Without the marks that surround an answer in prose: emphasis, dollar signs, a full stop."""
    return text.lstrip(" \t\r\n*$`").rstrip(" \t\r\n*$`.,;")


def reference_answer(text: str) -> str:
    r"""The right answer in a reference that may be a whole solution: what is boxed, or stands after `####`, else all of it.

    >>> reference_answer("2 + 2 = 4\n#### 4"), reference_answer(" 4 ")
    ('4', '4')
    """
    return _boxed(text) or _bare(text.rpartition("####")[2])


def require_math_verify() -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        MissingExtraError: math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise MissingExtraError("math-verify, which compares answers,", "skills")


def same_answer(one: str, other: str) -> bool:
    r"""Whether two answers mean the same: equal text, or equal by math-verify. Words are compared as words.

    Raises:
        MissingExtraError: math-verify is not installed.

    >>> same_answer("0.5", r"\frac{1}{2}"), same_answer("3", "4"), same_answer("Paris", "pairs")
    (True, False, False)
    """
    return bool(compared(one, other))


def compared(one: str, other: str) -> bool | None:
    """As `same_answer`; None where neither the texts nor math-verify decide: too long, or no expression that it can read.

    Raises:
        MissingExtraError: math-verify is not installed.
    """
    one, other = _bare(one), _bare(other)
    if one.casefold() == other.casefold():
        return bool(one) or None
    if all(_WORDS.fullmatch(text) for text in (one, other)):
        return False
    if max(len(one), len(other)) > LONGEST or any(_WORDS.fullmatch(text) for text in (one, other)):
        return None
    return _verified(one, other)


def _verified(one: str, other: str) -> bool | None:
    require_math_verify()
    import math_verify

    # Its limits are signals, which only the main thread can take. It logs every expression that it gives up.
    seconds = _SECONDS if threading.current_thread() is threading.main_thread() else None
    log = logging.getLogger("math_verify")
    before, log.disabled = log.disabled, True
    try:
        # Ended while it puts an alarm away, it would leave that to strike elsewhere.
        with held_back():
            parsed = [
                math_verify.parse(f"${text}$", parsing_timeout=seconds, raise_on_error=False) for text in (one, other)
            ]
            if not all(parsed):
                return None
            return bool(
                math_verify.verify(*parsed, timeout_seconds=seconds, raise_on_error=False)
                or math_verify.verify(*reversed(parsed), timeout_seconds=seconds, raise_on_error=False)
            )
    finally:
        log.disabled = before


def groups(answers: Sequence[str | None]) -> list[list[int]]:
    """Places of equal answers, the largest group first, ties by first place. None (no answer) equals nothing.

    Each answer joins the first group whose first member it equals.

    >>> groups(["1", "2", None, "2.0"])
    [[1, 3], [0]]
    """
    found: list[list[int]] = []
    for place, answer in enumerate(answers):
        if answer is None:
            continue
        for group in found:
            if same_answer(str(answers[group[0]]), answer):
                group.append(place)
                break
        else:
            found.append([place])
    return sorted(found, key=lambda group: -len(group))
