"""What is looked at one by one.

`inspect` (tokens of a trajectory), `trace` (provenance of sentences), `doctor` (what can run here).
"""
