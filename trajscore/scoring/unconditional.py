"""The student's second reading: each turn after a bare header, without the conversation that it answers.

The tokens are those of the first reading, cut out of it, so the two surprisals of a token differ by what
it follows and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from trajscore.engines import Engine, TokenSequence
from trajscore.rendering.renderer import Rendered
from trajscore.scoring.rows import ScoredRow

UNCONDITIONAL = "student_unconditional_surprisal"
"""The column."""


def read_unconditionally(engine: Engine, rows: Sequence[ScoredRow]) -> dict[str, int]:
    """Let the student read every response without its prompt, and fill in the column.

    A turn's first token is null where it follows nothing: neither a header nor a start token. A bare text has no prompt to
    leave out, so its column is null; so is that of a row for which the student gives NaN or infinity.

    Returns:
        Why rows that have a prompt have no values -> their number.
    """
    from trajscore.engines.reductions import TOKENS

    asked = [(row, first, sequence) for row in rows if row.is_ok for first, sequence in turns(row.rendered)]
    found = dict(engine.run([sequence for _, _, sequence in asked], TOKENS))
    unfit = set()
    for index, (row, first, sequence) in enumerate(asked):
        values = row.values.setdefault(UNCONDITIONAL, np.full(len(row.rendered.positions_N), np.nan, np.float32))
        values[first : first + len(sequence.positions_N)] = found[index].surprisal_N
        if not found[index].finite:
            unfit.add(id(row))
    for row in rows:
        if id(row) in unfit:
            del row.values[UNCONDITIONAL]
    return {"the student gives NaN or infinity without the prompt": len(unfit)}


def turns(rendered: Rendered) -> Iterator[tuple[int, TokenSequence]]:
    """Each scored turn by itself: the index (in N) of the first token that is predicted, and the tokens to read.

    A turn of one token that follows nothing is left out.
    """
    stops = [*(turn.first for turn in rendered.bare_turns[1:]), len(rendered.positions_N)]
    for turn, stop in zip(rendered.bare_turns, stops, strict=False):
        positions = rendered.positions_N[turn.first : stop].astype(np.int64)
        ids = np.concatenate([turn.header_ids, rendered.input_ids_P[positions[0] : positions[-1] + 1]])
        moved = positions - positions[0] + len(turn.header_ids)
        predicted = moved[moved > 0]
        if len(predicted):
            yield stop - len(predicted), TokenSequence(ids, predicted.astype(np.uint32))
