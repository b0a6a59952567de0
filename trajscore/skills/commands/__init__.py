"""The steps of `trajscore skills`, a file each: label, answer, diagnose, profile, synthesise."""
