"""Whether a response's final answer is the reference: right, wrong, or not decided.

Letters of choices, numbers, expressions and exact texts, in this order; a doubt is never counted as wrong.
"""

from __future__ import annotations

import re
from fractions import Fraction

from trajscore.skills.answers import compared, final_answer, reference_answer

NO_ANSWER = "no_answer"
NO_REFERENCE = "no_reference"
UNCLEAR = "unclear"
DECIDED = "decided"

_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Z])\)?")
_CHOSEN = re.compile(r"(?i:(?:option|choice)\s+)?\(?([A-Za-z])(?:\)|[.:,]|\s*$).*", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|[-+]?\.\d+")
_AROUND = re.compile(r"(?:\\?[$%]|\\[!,; ]|[\s\u20ac\u00a3])+")


def grade_response(response: str, reference: str | None) -> tuple[bool | None, str]:
    """Whether a response is right, and how that came: `decided`, or why not.

    >>> grade_response("So it is 18 dollars. The answer is $18.00.", "#### 18")
    (True, 'decided')
    >>> grade_response("I think (B).\\nAnswer: B", "C"), grade_response("I do not know.", "3")
    ((False, 'decided'), (None, 'no_answer'))
    """
    right = "" if reference is None else reference_answer(reference).strip()
    if not right:
        return None, NO_REFERENCE
    answer = final_answer(response)
    if answer is None:
        return None, NO_ANSWER
    same = grade_answer(_TEXT.sub(r"\1", answer), _TEXT.sub(r"\1", right))
    return same, UNCLEAR if same is None else DECIDED


def grade_answer(answer: str, right: str) -> bool | None:
    """Whether an answer is the right one; None where that is not clear.

    >>> grade_answer("1,234", "1234.0"), grade_answer("12 or 13", "12"), grade_answer("b) five", "B")
    (True, None, True)
    """
    letter = _LETTER.fullmatch(right)
    if letter:
        chosen = _CHOSEN.fullmatch(answer.strip())
        return chosen[1].upper() == letter[1] if chosen else None
    wanted = _number(right)
    if wanted is not None:
        given = _NUMBER.findall(_AROUND.sub(" ", answer))
        if len(given) == 1 and "\\" not in answer and "^" not in answer:
            value = _number(given[0])
            return None if value is None else value == wanted
        if len(given) != 1 and "\\" not in answer and re.search(r"[^\W\d_]{2}", answer):
            return True if compared(right, answer) else None
    return compared(right, answer)


def _number(text: str) -> Fraction | None:
    bare = _AROUND.sub("", text)
    if not _NUMBER.fullmatch(bare) or len(bare) > 100:
        return None
    try:
        return Fraction(bare.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
