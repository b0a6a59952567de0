"""`trajscore select`: which trajectories are kept, with which weight, and why.

`select.py` is the command; `decide.py` has the steps in order and ranks rows (several metrics: `combination.py`), `budgets.py`
has budgets and quotas, `weights.py` the training weights of what is kept, `kept_rows.py` writes it. `policy.py` settles the
options, with `presets.py`; `inputs.py` makes the table that is chosen from; `stat_sel.py` and `stat_draws.py` choose by skills.
`contamination.py` is `--exclude`, `pairs.py` and `conversations.py` are `--pairs`, `card.py` is `--card`; `summary.py`,
`explain.py` and `diff.py` say what was done.
"""
