"""How sure we are: bootstrap over prompts, shrinkage, correlation, comparison of groups, sample sizes. numpy in and out.

A file each: `bootstrap.py` has the intervals, `shrinkage.py` how likely each group is the best, `comparison.py` which one is
and how sure that is, `correlation.py` correlations, `sample_size.py` how many trajectories are enough.
"""
