"""`trajscore skills` and `grade`: which skills a student lacks (STAT, arXiv 2510.10023), and which responses are right.

The commands are in `commands/`, a file each. `questions.py`, `catalogue.py` and `prompts.py` read what they are given,
`tasks.py` says what the annotator LLM is asked, `calls.py` asks it (`server.py`, `in_process.py`) and keeps its answers,
`answers.py` and `grading.py` compare answers, `difficulty.py`, `votes.py`, `profile.py` and `synthesis.py` decide on what
came back. Only `answer` runs the student; no command reads a score folder.
"""
