"""`trajscore mask`: which tokens of a trajectory bear loss.

`mask.py` is the command; `rules.py` has the rules, `labels.py` makes labels and weights of what they keep. `selected.py` reads
which rows were selected, `presets.py` names rules of papers; `normalising.py`, `noise.py` and `conflicts.py` help rules.
"""
