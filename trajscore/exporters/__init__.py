"""`trajscore export`: a selection or a mask as the folder that a trainer reads.

One file per trainer, listed in `table`; rows, the check and the replaced folder are shared.
"""
