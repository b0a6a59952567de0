"""`trajscore mask`: which tokens of a trajectory bear loss.

`mask.py` is the command; `rules.py` has the rules, `labels.py` makes labels and weights of what they keep.
"""
