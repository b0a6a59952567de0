"""`trajscore report`: which teacher suits this student, how sure that is, and why.

`report.py` is the command, `ranking.py` ranks, `page.py`, `terminal.py` and `tidy.py` show the result.
"""
