"""Sentence means, common chunks and API log-probabilities against plain Python, on random tokenizations of random text."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajscore.rendering.alignment import (
    Response,
    aligned_chunks,
    chunk_sums,
    sentence_means,
    spoken_tokens,
)


def _tokens(text: str, cuts: list[int]) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Cut the text's bytes; offsets in characters as a tokenizer gives them: a character that is touched counts as covered."""
    raw = text.encode()
    places = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    pieces = [raw[a:b] for a, b in itertools.pairwise(places)]
    char_of = [index for index, character in enumerate(text) for _ in character.encode()]
    starts = [char_of[a] for a in places[:-1]]
    ends = [char_of[b - 1] + 1 for b in places[1:]]
    return pieces, np.array(starts, np.int64), np.array(ends, np.int64)


@given(
    st.text(min_size=1, max_size=30),
    st.lists(st.integers(0, 200), max_size=12),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_chunks_hold_the_same_bytes_and_are_minimal(text: str, cuts_a: list[int], cuts_b: list[int]) -> None:
    pieces_a, start_a, end_a = _tokens(text, cuts_a)
    pieces_b, start_b, end_b = _tokens(text, cuts_b)
    chunks = aligned_chunks(start_a, end_a, start_b, end_b)
    bytes_a = [
        b"".join(pieces_a[i:j]) for i, j in zip(chunks.first_A, [*chunks.first_A[1:], len(pieces_a)], strict=True)
    ]
    bytes_b = [
        b"".join(pieces_b[i:j]) for i, j in zip(chunks.first_B, [*chunks.first_B[1:], len(pieces_b)], strict=True)
    ]
    assert bytes_a == bytes_b
    assert b"".join(bytes_a) == text.encode()
    whole = set(np.cumsum([0, *(len(c.encode()) for c in text)]).tolist())
    edges_a = set(np.cumsum([len(p) for p in pieces_a]).tolist())
    edges_b = set(np.cumsum([len(p) for p in pieces_b]).tolist())
    assert len(bytes_a) == len(edges_a & edges_b & whole), "every common edge between characters ends a chunk"


def test_chunks_by_hand() -> None:
    # "ab|c|d" and "a|bc|d": the cuts after "ab" and "a" are not shared, those after "abc" and "abcd" are.
    chunks = aligned_chunks(np.array([0, 2, 3]), np.array([2, 3, 4]), np.array([0, 1, 3]), np.array([1, 3, 4]))
    assert chunks.first_A.tolist() == [0, 2]
    assert chunks.first_B.tolist() == [0, 2]
    assert chunk_sums(np.array([-1.0, -2.0, -4.0]), chunks.first_A, chunks.stop_A).tolist() == [-3.0, -4.0]
    none = aligned_chunks(np.array([], np.int64), np.array([], np.int64), np.array([0]), np.array([1]))
    assert len(none.first_A) == len(none.first_B) == 0


def _at(*edges: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array(edges[:-1], np.int64), np.array(edges[1:], np.int64)


def test_tokens_before_the_first_common_boundary_are_in_no_chunk() -> None:
    chunks = aligned_chunks(*_at(0, 2, 4, 6), *_at(2, 4, 6))
    assert chunks.first_A.tolist() == [1, 2]
    assert chunks.first_B.tolist() == [0, 1]
    assert chunk_sums(np.array([-9.0, -1.0, -2.0]), chunks.first_A, chunks.stop_A).tolist() == [-1.0, -2.0]


def test_a_side_that_is_cut_ends_the_chunks_at_the_last_common_boundary() -> None:
    chunks = aligned_chunks(*_at(0, 2, 4, 6, 8), *_at(0, 4, 5))
    assert (chunks.first_A.tolist(), chunks.stop_A) == ([0], 2)
    assert (chunks.first_B.tolist(), chunks.stop_B) == ([0], 1)
    assert chunk_sums(np.array([-1.0, -2.0, -4.0, -8.0]), chunks.first_A, chunks.stop_A).tolist() == [-3.0]


def _response(*turns: str) -> Response:
    """A response whose tokens are its characters."""
    text = "".join(turns)
    starts = np.cumsum([0, *(len(turn) for turn in turns)])[:-1].astype(np.int64)
    spans = np.stack([np.arange(len(text)), np.arange(len(text)) + 1], 1).astype(np.int64)
    return Response(text, starts, starts, spans)


def test_turns_are_matched_by_how_they_end() -> None:
    match = _response("t").match(_response("<think></think>t"))
    assert match is not None
    assert match.place_B.tolist() == [-1] * 15 + [0]
    match = _response("<think>a</think>a").match(_response("a"))
    assert match is not None
    assert match.place_B.tolist() == [16]
    assert _response("abc").match(_response("xyz")) is None


def test_a_turn_rendered_otherwise_leaves_the_others() -> None:
    match = _response("one", "CALL f", "two").match(_response("one", "{f}", "two"))
    assert match is not None
    assert match.place_B.tolist() == [0, 1, 2, -1, -1, -1, 9, 10, 11]
    assert match.turns == [(0, 3), (9, 12)]
    match = _response("one", "", "two").match(_response("one", "<t></t>", "two"))
    assert match is not None
    assert match.place_B.tolist() == [0, 1, 2, *[-1] * 7, 3, 4, 5]


def test_log_probabilities_are_those_of_the_end_of_the_turn() -> None:
    ours = _response("Answer: 6. More. Answer: 6")
    place = ours.places_in_last_turn("Answer: 6", np.array([0, 6], np.int64))
    assert place is not None
    assert place.tolist() == [17, 23]


@given(st.lists(st.tuples(st.floats(-20, 0), st.integers(0, 5)), max_size=20))
def test_sentence_means_against_plain_python(pairs: list[tuple[float, int]]) -> None:
    pairs = sorted(pairs, key=lambda pair: pair[1])
    logprobs, sentences = np.array([p for p, _ in pairs]), np.array([s for _, s in pairs], np.int64)
    for number, found in enumerate(sentence_means(logprobs, sentences, 6)):
        own = [p for p, s in pairs if s == number]
        assert math.isnan(found) if not own else found == pytest.approx(math.fsum(own) / len(own), abs=1e-5)


@pytest.mark.parametrize("form", ["chat", "list", "completions", "json", "bytes"])
def test_api_logprobs_in_their_forms(form: str) -> None:
    tokens, logprobs = ["He", "llo", " 🙂"], [-0.5, -1.0, -2.0]
    items = [{"token": t, "logprob": p} for t, p in zip(tokens, logprobs, strict=True)]
    value: object = items
    if form in ("chat", "json"):
        value = {"content": items}
    if form == "completions":
        value = {"tokens": tokens, "token_logprobs": logprobs}
    if form == "json":
        value = json.dumps(value)
    if form == "bytes":
        raw = "Hello 🙂".encode()
        cuts = [0, 2, 8, len(raw)]
        value = [
            {"token": "?", "bytes": list(raw[a:b]), "logprob": p}
            for (a, b), p in zip(itertools.pairwise(cuts), logprobs, strict=True)
        ]
    found = spoken_tokens(value)
    assert found is not None
    assert found.text == "Hello 🙂"
    assert found.start_B.tolist() == ([0, 2, 6] if form == "bytes" else [0, 2, 5])
    assert found.logprob_B.tolist() == logprobs


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "not json",
        {},
        [],
        {"tokens": ["a"], "token_logprobs": [None]},
        {"tokens": ["a"], "token_logprobs": []},
        7,
        [{"token": "a", "logprob": -1.0}, 3],
        [{"token": "a", "logprob": 3.0}],
        [{"token": "a", "logprob": True}],
        [{"token": "a", "logprob": -9999.0}],
        [{"token": "a", "logprob": float("nan")}],
        [{"token": "a", "bytes": [256], "logprob": -1.0}],
        [{"token": "a", "bytes": "abc", "logprob": -1.0}],
        [{"token": "a", "bytes": [None], "logprob": -1.0}],
        [{"token": "a", "bytes": 5, "logprob": -1.0}],
        {"tokens": 5, "token_logprobs": 5},
    ],
)
def test_what_is_no_list_of_logprobs_is_none(value: object) -> None:
    assert spoken_tokens(value) is None
