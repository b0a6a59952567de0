"""Text of a response -> how many words it has, and how many of them check, hedge or conclude."""

from __future__ import annotations

import re

KEYWORDS = {
    "verification_words": ("check", "verify"),
    "exploration_words": ("perhaps", "might"),
    "conclusion_words": ("therefore", "since"),
}
"""By column, the words that are counted (arXiv 2601.14249, Appendix B). Whole words, whatever their case."""

_OF = {name: re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE) for name, words in KEYWORDS.items()}


def count_words(text: str) -> dict[str, int]:
    """Words, separated by white space, and keywords by the name of their column.

    >>> count_words("Check: perhaps x = 2. Therefore, checking")
    {'response_words': 7, 'verification_words': 1, 'exploration_words': 1, 'conclusion_words': 1}
    """
    return {"response_words": len(text.split())} | {
        name: sum(1 for _ in found.finditer(text)) for name, found in _OF.items()
    }
