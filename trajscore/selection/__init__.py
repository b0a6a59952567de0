"""`trajscore select`: which trajectories are kept, with which weight, and why.

`select.py` is the command; `decide.py` has the steps in order, `weights.py` the weights, `budgets.py` budgets and quotas.
"""
