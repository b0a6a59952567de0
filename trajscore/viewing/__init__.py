"""Commands that look at one thing: `inspect` (tokens of a trajectory), `trace` (sentences), `doctor` (what can run here)."""
