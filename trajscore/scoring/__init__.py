"""`trajscore score`: a corpus through student, teachers and distilled model into a folder of scores.

In one process, in shards, on Ray, by Slurm; `forecast/` is its dry run.
"""
