"""`trajscore score`: a corpus through student, teachers and distilled model into a folder of scores.

`run.py` is the command. `pipeline.py` has the steps: `rows.py` renders, `passes.py` runs the models of `models.py` over what
came out, `part_table.py` makes the table of a part; `unconditional.py` prepares responses without their prompts.
`settings.py` is what the manifest records, `precision.py` and `residency.py` decide how models run and which stay loaded,
`reuse.py` takes rows from another folder, `background.py` works ahead. `ray_workers.py` and `slurm.py` are for several
machines, `forecast/` is the dry run.
"""
