"""Two tokenizations of the same text -> what can be compared: sentences, and chunks that end at the same place in both.

Pure arithmetic on character offsets; the tokens and messages of one rendering are aligned in `renderer`. Numbers of single
tokens under different tokenizers are never set side by side.
Axes: A and B tokens of two tokenizations, S sentences, C chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Response:
    """What the assistant says in one trajectory, and where its tokens and sentences lie in it. Offsets are in characters.

    Attributes:
        text: the scored turns' text, joined, without end-of-turn markers.
        turn_starts: offset at which each turn begins, ascending.
        sentence_starts: offset at which each sentence begins, ascending; every turn begins one.
        span_N2: offsets at which each scored token starts and ends; an end-of-turn marker is empty, at the end of its turn.
        stop: offset after the last scored token where the response was cut, None where it was not.
    """

    text: str
    turn_starts: Ints
    sentence_starts: Ints
    span_N2: Ints
    stop: int | None = None

    @property
    def end(self) -> int:
        """Offset after the last character that was scored."""
        return len(self.text) if self.stop is None else self.stop

    @property
    def said(self) -> str:
        """The text that was scored."""
        return self.text[: self.end]

    @property
    def sentence_N(self) -> Ints:  # noqa: N802 - the axis is part of the name
        """Index of the sentence in which each scored token starts; a marker belongs to the last sentence of its turn."""
        start, end = self.span_N2[:, 0], self.span_N2[:, 1]
        return self.sentence_at(np.where(start == end, np.maximum(start - 1, 0), start))

    def sentence_at(self, place: Ints) -> Ints:
        """Index of the sentence that holds each offset."""
        return np.searchsorted(self.sentence_starts, place, side="right") - 1

    def cut(self, tokens: int) -> Response:
        """The same response with only its first tokens scored."""
        span_N2 = self.span_N2[:tokens]
        return Response(self.text, self.turn_starts, self.sentence_starts, span_N2, int(span_N2[-1, 1]))

    def turns(self) -> list[tuple[int, str]]:
        """Offset and text of every turn, in order."""
        ends = [*self.turn_starts[1:].tolist(), len(self.text)]
        return [(a, self.text[a:b]) for a, b in zip(self.turn_starts.tolist(), ends, strict=True)]

    def match(self, other: Response) -> Match | None:
        """Where another rendering of the same conversation says the same as this one.

        Chat templates may put something around the assistant's words (an empty thinking block, say) or write tool calls in
        their own way, so each turn is matched by the text that it ends with in both, and left out where there is none.

        Returns:
            None when no turn matches.
        """
        start, end = other.span_N2[:, 0], other.span_N2[:, 1]
        place_B = np.full(len(start), -1, np.int64)
        stretches = []
        for (here, text), (there, their_text) in zip(self.turns(), other.turns(), strict=False):
            shift = _shift(text, their_text)
            if shift is None:
                continue
            inside = (start >= there) & (end <= there + len(their_text))
            begin, stop = start - there + shift, end - there + shift
            inside &= (begin >= 0) & (stop <= min(len(text), self.end - here))
            # A marker is empty, at the end of its turn: it belongs to the turn's last sentence.
            begin = np.where(start == end, len(text) - 1, begin)
            inside &= begin >= 0
            place_B[inside] = begin[inside] + here
            stretches.append((here, min(here + len(text), self.end)))
        return Match(place_B, stretches) if stretches else None

    def places_in_last_turn(self, text: str, start_B: Ints) -> Ints | None:
        """Where tokens that spell the end of the last turn start in this response; None when they spell another text."""
        if not self.turns() or not text:
            return None
        here, own = self.turns()[-1]
        shift = _shift(own, text)
        if shift is None:
            return None
        place = start_B + shift
        return np.where((place >= 0) & (place < min(len(own), self.end - here)), place + here, -1)


class Match(NamedTuple):
    """Where the tokens of another tokenizer lie in a response.

    Attributes:
        place_B: offset in the response at which each token starts, -1 for a token of a text that is not in common.
        turns: begin and end of the turns that both renderings have.
    """

    place_B: Ints
    turns: list[tuple[int, int]]


NO_RESPONSE = Response("", np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 2), np.int64))
"""The response of a row that is not scored."""


def _shift(text: str, their_text: str) -> int | None:
    """What to add to an offset in their text to get one in ours, both ending alike; None when neither ends with the other.

    >>> _shift("so 6", "<think></think>so 6"), _shift("<think>6</think>6 ", "6"), _shift("a", "b")
    (-15, 16, None)
    """
    ours, theirs = text.rstrip(), their_text.rstrip()
    if not ours or not theirs:
        return None
    # What a template puts around the words comes before them; white space at the edges is its affair.
    if ours.endswith(theirs.lstrip()) or theirs.endswith(ours.lstrip()):
        return len(ours) - len(theirs)
    return None


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
        stop_A: index after the last chunk's last token in the first tokenization.
        stop_B: the same in the second.
    """

    first_A: Ints
    first_B: Ints
    stop_A: int
    stop_B: int


def aligned_chunks(start_A: Ints, end_A: Ints, start_B: Ints, end_B: Ints) -> Chunks:
    """Chunk two tokenizations of one text at every character where both have a token boundary.

    A character of several bytes may be split over tokens; the inside of such a character is no boundary, so both sides of
    a chunk hold the same bytes (arXiv 2503.20083). Tokens before the first common boundary and after the last one belong to
    no chunk: one side may begin later, or be cut off earlier.

    Args:
        start_A: character offset at which each token of the first tokenization starts, ascending.
        end_A: offset after its last character.
        start_B: the same for the second tokenization.
        end_B: likewise.

    Returns:
        The chunks; none if the tokenizations have less than two boundaries in common.

    >>> chunks = aligned_chunks(np.array([0, 2, 5]), np.array([2, 5, 7]), np.array([0, 5, 6]), np.array([5, 6, 7]))
    >>> chunks.first_A.tolist(), chunks.first_B.tolist()
    ([0, 2], [0, 1])
    """
    if not len(start_A) or not len(start_B):
        return Chunks(np.empty(0, np.int64), np.empty(0, np.int64), 0, 0)
    cut_A, cut_B = _boundaries(start_A, end_A), _boundaries(start_B, end_B)
    _, at_A, at_B = np.intersect1d(start_A[cut_A], start_B[cut_B], return_indices=True)
    first_A, first_B = cut_A[at_A], cut_B[at_B]
    if len(first_A) and end_A.max() == end_B.max():
        return Chunks(first_A, first_B, len(start_A), len(start_B))
    # The tokenizations end apart: what follows the last common boundary is not the same text.
    stop_A, stop_B = (int(first_A[-1]), int(first_B[-1])) if len(first_A) else (0, 0)
    return Chunks(first_A[:-1], first_B[:-1], stop_A, stop_B)


def _boundaries(start: Ints, end: Ints) -> Ints:
    """Tokens before which the text can be cut: they start after everything before them has ended."""
    reached = np.maximum.accumulate(np.concatenate([[np.iinfo(np.int64).min], end[:-1]]))
    # The second token of a split character starts where the first one does: only the first is a boundary.
    new = np.concatenate([[True], start[1:] > start[:-1]])
    return np.flatnonzero((start >= reached) & new)


def chunk_sums(logprob_A: npt.NDArray[Any], first_A: Ints, stop: int) -> Floats:
    """ln p of each chunk: the sum over its tokens, at most 0, float32 [C].

    Args:
        logprob_A: ln p of each token, nats.
        first_A: index of each chunk's first token.
        stop: index after the last chunk's last token.

    >>> chunk_sums(np.array([-1.0, -2.0, -4.0, -9.0]), np.array([0, 2]), 3).tolist()
    [-3.0, -4.0]
    """
    if not len(first_A):
        return np.empty(0, np.float32)
    sums_C: npt.NDArray[np.float64] = np.add.reduceat(logprob_A[:stop].astype(np.float64), first_A)
    return np.minimum(sums_C, 0).astype(np.float32)


class SpokenTokens(NamedTuple):
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
        The tokens, or None if it has another form, or a log-probability is missing, positive, or the -9999 that stands for
        "not among those returned".

    >>> spoken_tokens({"tokens": ["a", " b"], "token_logprobs": [-1.0, -0.5]}).start_B.tolist()
    [0, 1]
    """
    pairs = _pairs(value)
    if not pairs or not all(_is_logprob(logprob) for _, logprob in pairs):
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
        tokens, logprobs = value.get("tokens"), value.get("token_logprobs")
        if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
            return []
        value = [{"token": t, "logprob": p} for t, p in zip(tokens, logprobs, strict=True)]
    if not isinstance(value, Sequence):
        return []
    pairs = [_pair(item) for item in value]
    return [] if None in pairs else [pair for pair in pairs if pair is not None]


def _pair(item: Any) -> tuple[bytes, Any] | None:
    if not isinstance(item, Mapping):
        return None
    token, given = item.get("token"), item.get("bytes")
    if given is not None:
        if not isinstance(given, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in given):
            return None
        return bytes(given), item.get("logprob")
    return (token.encode(), item.get("logprob")) if isinstance(token, str) else None


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -9999 < value <= 1e-6
