"""Text of a response -> how much of it repeats itself.

A model caught in a loop finds every further token certain: perplexity looks excellent and the rank-surprisal ratio explodes.
"""

from __future__ import annotations

import zlib

import numpy as np

NGRAM = 20
"""Bytes of the n-grams of `repeated_ngrams`: four words or so, longer than what formulas repeat by chance."""

_FACTORS = np.random.default_rng(0).integers(0, 2**63, NGRAM, dtype=np.uint64) | np.uint64(1)


def compression(text: str) -> float | None:
    """Bytes of the text in UTF-8 over bytes of their zlib compression (level 6).

    Ordinary prose of some kilobytes gives 2 to 3, a loop far more. Grows with length and is below 1 for very short texts;
    repetitions further apart than 32 KiB go unseen. Source: arXiv 2212.04356, section 4.5, where transcripts above 2.4 count
    as loops.

    Returns:
        None for an empty text.

    >>> compression("again " * 1000) > 100, compression("")
    (True, None)
    """
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw) / len(zlib.compress(raw, 6)) if raw else None


def repeated_lines(text: str) -> float | None:
    """Share of the non-empty lines that repeat an earlier one, white space at the edges aside.

    Source: arXiv 2112.11446, Appendix A, which drops documents above 0.3.

    Returns:
        A number in [0, 1); None where no line holds anything.

    >>> repeated_lines("a\\n\\n b\\na\\na"), repeated_lines(" \\n")
    (0.5, None)
    """
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    return 1 - len(set(lines)) / len(lines) if lines else None


def repeated_ngrams(text: str) -> float | None:
    """Share of a text's n-grams of 20 bytes that stood in the same line before, over all lines.

    What `repeated_lines` cannot see: a loop without line breaks (`0.33333...`). Lines shorter than an n-gram add nothing.
    n-grams are compared by a hash of 64 bits.

    Returns:
        A number in [0, 1); None where no line has 20 bytes.

    >>> repeated_ngrams("0." + "3" * 98), repeated_ngrams("short")
    (0.962962962962963, None)
    """
    seen = distinct = 0
    for line in text.splitlines():
        raw = np.frombuffer(line.encode("utf-8", "surrogatepass"), np.uint8)
        if raw.size >= NGRAM:
            hashes = np.zeros(raw.size - NGRAM + 1, np.uint64)
            for place, factor in enumerate(_FACTORS):
                hashes += raw[place : place + hashes.size] * factor
            seen += hashes.size
            distinct += np.unique(hashes).size
    return 1 - distinct / seen if seen else None
