"""`python -m trajscore`, where the console script is not on the path."""

from trajscore.cli import main

main()
