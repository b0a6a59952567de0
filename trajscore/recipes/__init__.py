"""`trajscore run`: score, select, mask, export and report as one file, whose keys are the options' names.

`reading` turns the file into options, `finished` knows what need not run again, `run` goes through the steps.
"""
