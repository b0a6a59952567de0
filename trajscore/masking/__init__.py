"""`trajscore mask`: which tokens of a trajectory bear loss.

Rules over scored tokens, labels and weights, and the file that trainers read.
"""
