"""The student's reading of each sentence after the prompt and the few sentences before it alone (LALP, arXiv 2510.03988).

The tokens are those of the first reading, cut out of it: nothing is tokenized again, so what a sentence follows is the only
difference. The prompt is all that stands before the turn's first scored token, the turn's header included.
Axes: P input tokens of a row, N its scored tokens, S its sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from trajscore.engines import Engine, TokenSequence
from trajscore.rendering.renderer import Rendered
from trajscore.schema import EXTRAS
from trajscore.scoring.rows import ScoredRow

LOCAL = EXTRAS["local"].column
"""The column."""

_TOKENS_AT_ONCE = 2**22
"""Tokens of the sequences that are in memory together; the prompt stands before every sentence again."""


class _Asked(NamedTuple):
    """One sentence of one row, and what the student reads for it."""

    row: ScoredRow
    sentence: int
    sequence: TokenSequence


def read_locally(engine: Engine, rows: Sequence[ScoredRow], k: int) -> dict[str, int]:
    """Let the student read every sentence after the prompt and the k sentences before it, and fill in the column.

    A sentence with no more than k before it in its turn was read so already: its value is that of the first reading. A row
    for which the student gives NaN or infinity has no column.

    Args:
        engine: the student.
        rows: with the values of the first reading.
        k: sentences, at least 1.

    Returns:
        Why rows have no values -> their number.
    """
    from trajscore.engines.reductions import TOKENS

    scored = [row for row in rows if row.is_ok]
    for row in scored:
        row.values[LOCAL] = row.values["student_sentence_logprob"].copy()
    unfit = set()
    asked = (_Asked(row, *window) for row in scored for window in windows(row.rendered, k))
    for group in _groups(asked):
        for index, scores in engine.run([each.sequence for each in group], TOKENS):
            row, sentence, _ = group[index]
            row.values[LOCAL][sentence] = -scores.surprisal_N.astype(np.float64).mean()
            if not scores.finite:
                unfit.add(id(row))
    for row in scored:
        if id(row) in unfit:
            del row.values[LOCAL]
    return {"the student gives NaN or infinity after few sentences": len(unfit)}


def windows(rendered: Rendered, k: int) -> Iterator[tuple[int, TokenSequence]]:
    """Each sentence with more than k before it in its turn: its index, and the prompt, those k and itself as tokens.

    Sentences in which no token starts are left out. Tokens that the template puts between the words stay where they are.

    Args:
        rendered: a row that can be scored.
        k: sentences, at least 1.
    """
    ids_P, positions_N = rendered.input_ids_P, rendered.positions_N.astype(np.int64)
    response, n_sentences = rendered.response, rendered.n_sentences
    first_S = np.searchsorted(rendered.sentence_N, np.arange(n_sentences), side="left")
    stop_S = np.searchsorted(rendered.sentence_N, np.arange(n_sentences), side="right")
    turn_S = np.searchsorted(response.turn_starts, response.sentence_starts[:n_sentences], side="right")
    opening_S = np.searchsorted(turn_S, turn_S, side="left")
    for sentence in np.flatnonzero(stop_S > first_S).tolist():
        prompt = positions_N[first_S[opening_S[sentence]]]
        begin = positions_N[first_S[max(sentence - k, opening_S[sentence])]]
        if begin > prompt:
            own = positions_N[first_S[sentence] : stop_S[sentence]]
            ids = np.concatenate([ids_P[:prompt], ids_P[begin : own[-1] + 1]])
            yield sentence, TokenSequence(ids, (own - begin + prompt).astype(np.uint32))


def tokens_again(rows: Iterable[ScoredRow], k: int) -> float:
    """Tokens that `read_locally` reads of some rows, per token that the rows have; 0 where there are none."""
    scored = [row.rendered for row in rows if row.is_ok]
    again = sum(len(sequence.input_ids_P) for rendered in scored for _, sequence in windows(rendered, k))
    return again / max(1, sum(len(rendered.input_ids_P) for rendered in scored))


def _groups(asked: Iterable[_Asked]) -> Iterator[list[_Asked]]:
    """Consecutive sequences that are short enough together."""
    group, tokens = list[_Asked](), 0
    for each in asked:
        if group and tokens + len(each.sequence.input_ids_P) > _TOKENS_AT_ONCE:
            yield group
            group, tokens = [], 0
        group.append(each)
        tokens += len(each.sequence.input_ids_P)
    if group:
        yield group
