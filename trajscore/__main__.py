"""`python -m trajscore`, where the console script is not on the path."""

from trajscore_toolkit import main

main()
