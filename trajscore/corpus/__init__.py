"""Files, folders, globs and hub data sets -> trajectories with stable ids, beside the rows they came from, unchanged.

A conversation leaves here as messages; whether a chat template can render it, and how many tokens that takes, is found out in
`rendering`. Nothing is dropped: a row that cannot be read as a trajectory is a `Trajectory` with a refusal; a file that is not
what it claims to be stops everything before anything is scored.

`survey.py` opens a corpus and `reading.py` reads it in chunks. `locate.py` finds files; `sources.py`, `jsonfiles.py` and
`hub.py` read them; `layouts.py` lists names of columns, `kinds.py` sorts rows by them, `recognition.py`
decides what is read, and `unplaced.py` asks where nobody knows; `trajectories.py` makes
trajectories, `turns.py` their messages, `token_ids.py` those that are given in ids, and `identity.py` names them;
`columns.py`, `values.py`, `storable.py` and `stored_names.py` fit rows into Arrow; `rows.py` reads rows that need no
layout.
"""

from trajscore.corpus.identity import FieldNames
from trajscore.corpus.reading import Chunk, Corpus, described
from trajscore.corpus.rows import read_rows
from trajscore.corpus.sources import SourceOptions
from trajscore.corpus.survey import open_corpus
from trajscore.corpus.trajectories import RENDERED, Trajectory, trajectory_from_row
from trajscore.corpus.values import decoded_rows

__all__ = [
    "RENDERED",
    "Chunk",
    "Corpus",
    "FieldNames",
    "SourceOptions",
    "Trajectory",
    "decoded_rows",
    "described",
    "open_corpus",
    "read_rows",
    "trajectory_from_row",
]
