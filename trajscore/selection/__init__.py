"""`trajscore select`: which trajectories are kept, with which weight, and why.

Policies are expressions over metrics; every row is kept or dropped by a named step.
"""
