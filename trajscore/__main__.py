"""`python -m trajscore`, where the console script is not on the path."""

from trajscore._start import main

main()
