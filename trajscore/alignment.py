"""Two tokenizations of the same text -> what can be compared: sentences, and chunks that end at the same place in both.

Pure arithmetic on character offsets; it knows no tokenizer and no model. Token-level numbers of different tokenizers are
never set side by side. Axes: A and B tokens of two tokenizations, S sentences, C chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

ALM_TEMPERATURE = 100.0
"""Divides chunk log-likelihoods before they are compared, as the authors of ALM do."""


def sentence_means(logprob_A: npt.NDArray[Any], sentence_A: npt.NDArray[Any], n_sentences: int) -> Floats:
    """Mean ln p over the tokens of each sentence, the log of the geometric-mean probability (arXiv 2512.20908).

    Args:
        logprob_A: ln p of each token, nats.
        sentence_A: index of the sentence in which each token starts.
        n_sentences: S.

    Returns:
        float32 [S]; NaN for a sentence in which no token starts.

    >>> sentence_means(np.array([-1.0, -3.0, -5.0]), np.array([0, 0, 2]), 3).tolist()
    [-2.0, nan, -5.0]
    """
    total = np.bincount(sentence_A, weights=logprob_A.astype(np.float64), minlength=n_sentences)
    count = np.bincount(sentence_A, minlength=n_sentences)
    with np.errstate(invalid="ignore"):
        return (total / count).astype(np.float32)


@dataclass(frozen=True)
class Chunks:
    """Smallest stretches of a text that begin and end at token boundaries of both tokenizations.

    Attributes:
        first_A: index of each chunk's first token in the first tokenization, shape [C], ascending.
        first_B: the same in the second.
    """

    first_A: Ints
    first_B: Ints


def aligned_chunks(start_A: Ints, end_A: Ints, start_B: Ints, end_B: Ints) -> Chunks:
    """Chunk two tokenizations of one text at every character where both have a token boundary.

    A character of several bytes may be split over tokens; the inside of such a character is no boundary, so both sides of
    a chunk hold the same bytes (arXiv 2503.20083). The tokens before the first common boundary make a chunk too.

    Args:
        start_A: character offset at which each token of the first tokenization starts, ascending.
        end_A: offset after its last character.
        start_B: the same for the second tokenization.
        end_B: likewise.

    Returns:
        The chunks; none if either tokenization is empty.

    >>> chunks = aligned_chunks(np.array([0, 2, 5]), np.array([2, 5, 7]), np.array([0, 5, 6]), np.array([5, 6, 7]))
    >>> chunks.first_A.tolist(), chunks.first_B.tolist()
    ([0, 2], [0, 1])
    """
    if not len(start_A) or not len(start_B):
        return Chunks(np.empty(0, np.int64), np.empty(0, np.int64))
    cut_A, cut_B = _boundaries(start_A, end_A), _boundaries(start_B, end_B)
    _, at_A, at_B = np.intersect1d(start_A[cut_A], start_B[cut_B], return_indices=True)
    first_A, first_B = cut_A[at_A], cut_B[at_B]
    if not len(first_A) or first_A[0] or first_B[0]:
        first_A, first_B = np.concatenate([[0], first_A]), np.concatenate([[0], first_B])
    return Chunks(first_A, first_B)


def _boundaries(start: Ints, end: Ints) -> Ints:
    """Tokens before which the text can be cut: they start after everything before them has ended."""
    reached = np.maximum.accumulate(np.concatenate([[np.iinfo(np.int64).min], end[:-1]]))
    # The second token of a split character starts where the first one does: only the first is a boundary.
    new = np.concatenate([[True], start[1:] > start[:-1]])
    return np.flatnonzero((start >= reached) & new)


def chunk_sums(logprob_A: npt.NDArray[Any], first_A: Ints) -> Floats:
    """ln p of each chunk: the sum over its tokens, at most 0, float32 [C].

    >>> chunk_sums(np.array([-1.0, -2.0, -4.0]), np.array([0, 2])).tolist()
    [-3.0, -4.0]
    """
    if not len(first_A):
        return np.empty(0, np.float32)
    return np.minimum(np.add.reduceat(logprob_A.astype(np.float64), first_A), 0).astype(np.float32)


def binary_cross_entropy(teacher_C: npt.NDArray[Any], student_C: npt.NDArray[Any]) -> Floats:
    """ALM's binarised divergence of chunk log-likelihoods: the cross-entropy of Bernoulli(p_T) and Bernoulli(p_S).

    With l = ln p / 100 - 1e-6 it is -(e^lT lS + (1 - e^lT) ln(1 - e^lS)), the default of the authors' code for
    arXiv 2503.20083, without its debiasing. Its minimum over the student is at p_S = p_T and is not 0.

    Args:
        teacher_C: ln p of each chunk under the teacher, nats.
        student_C: the same under the student.

    Returns:
        float32 [C].

    >>> round(float(binary_cross_entropy(np.array([-100.0]), np.array([-100.0]))[0]), 4)
    0.6578
    """
    teacher = teacher_C.astype(np.float64) / ALM_TEMPERATURE - 1e-6
    student = student_C.astype(np.float64) / ALM_TEMPERATURE - 1e-6
    p = np.exp(teacher)
    found: Floats = (-(p * student + (1 - p) * np.log(-np.expm1(student)))).astype(np.float32)
    return found


@dataclass(frozen=True)
class SpokenTokens:
    """Tokens of a response with their log-probabilities, as an API returned them.

    Attributes:
        text: the tokens' text, joined.
        start_B: character offset at which each token starts.
        logprob_B: ln p of each token, nats.
    """

    text: str
    start_B: Ints
    logprob_B: npt.NDArray[np.float64]


def spoken_tokens(value: Any) -> SpokenTokens | None:
    """Read the log-probabilities that came with a response.

    Args:
        value: `{"content": [{"token", "logprob", "bytes"?}, ...]}` (chat completions), the list itself, or
            `{"tokens": [...], "token_logprobs": [...]}` (completions). A JSON text of one of these is read too.

    Returns:
        The tokens, or None if it has another form or a log-probability is missing.

    >>> spoken_tokens({"tokens": ["a", " b"], "token_logprobs": [-1.0, -0.5]}).start_B.tolist()
    [0, 1]
    """
    pairs = _pairs(value)
    if not pairs or not all(isinstance(logprob, int | float) for _, logprob in pairs):
        return None
    pieces = [token for token, _ in pairs]
    raw = b"".join(pieces)
    text = raw.decode("utf-8", "replace")
    # Offsets in characters: a token inside a character starts where the character does.
    lengths = np.cumsum([0, *(len(piece) for piece in pieces)])[:-1]
    begins = np.flatnonzero([byte & 0xC0 != 0x80 for byte in raw])
    start = np.searchsorted(begins, lengths, side="right") - 1
    return SpokenTokens(text, start.astype(np.int64), np.array([float(logprob) for _, logprob in pairs]))


def _pairs(value: Any) -> list[tuple[bytes, Any]]:
    """Bytes and log-probability of each token; none at all if one of them is not understood."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return []
    if isinstance(value, Mapping) and value.get("content"):
        value = value["content"]
    if isinstance(value, Mapping):
        tokens, logprobs = value.get("tokens") or [], value.get("token_logprobs") or []
        value = [{"token": t, "logprob": p} for t, p in zip(tokens, logprobs, strict=False)]
        if len(tokens) != len(logprobs):
            return []
    if not isinstance(value, Sequence):
        return []
    pairs = [_pair(item) for item in value]
    return [] if None in pairs else [pair for pair in pairs if pair is not None]


def _pair(item: Any) -> tuple[bytes, Any] | None:
    if not isinstance(item, Mapping):
        return None
    token, given = item.get("token"), item.get("bytes")
    if given is not None:
        return bytes(given), item.get("logprob")
    return (token.encode(), item.get("logprob")) if isinstance(token, str) else None
