"""`trajscore report`: which teacher suits this student, how sure that is, and why.

`report.py` is the command, `student.py` the report of one student: `ranking.py` ranks, `recommendation.py` says what follows,
`profiles.py` looks along trajectories, `agreement.py` asks whether metrics predict, `diversity.py` how much samples differ.
`csv_tables.py` reads what users bring; `page.py`, `figures.py`, `terminal.py` and `tidy.py` show the result.
"""
