"""Commands that look at one thing: `inspect` (tokens of a trajectory), `trace` (sentences), `doctor` (what can run here).

The commands are `inspect.py`, `trace.py` and `doctor.py`; `*_page.py` and `*terminal.py` show what they found, `terminal.py`
and `token_page.py` for `inspect`. `tokens.py` prepares one trajectory, `token_frame.py` is `ts.tokens`.
"""
