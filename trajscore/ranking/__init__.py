"""`trajscore report`: which teacher suits this student, how sure that is, and why; in the terminal, as a page and as tables."""
