"""The steps of `trajscore skills`, a file each: label (with catalogue), answer, diagnose, profile, synthesise; and `grade`."""
