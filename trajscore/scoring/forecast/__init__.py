"""`trajscore score --dry-run`: rows, tokens, disk, memory and time of a run that has not happened."""
