"""Hidden states and output heads -> statistics of given tokens and divergences of two models, exact over the whole vocabulary.

Pure tensor math: it knows no model, no tokenizer, no file. The logits are made block by block of the vocabulary and reduced
at once, so that tokens x vocabulary never exists.
`tokens.py` has the statistics of one model, `pairs.py` those of two, `top.py` divergences from a teacher's K most probable
entries; `head.py` makes the logits, `blocks.py` the sums of a block.
Axes: N scored tokens, D and E hidden widths, V vocabulary entries that count, B entries of one block, C blocks, K kept entries.
"""

from trajscore.statistics.head import Head
from trajscore.statistics.pairs import PairStatistics, pair_statistics
from trajscore.statistics.tokens import TokenStatistics, token_statistics
from trajscore.statistics.top import TopK, TopKDivergences, teacher_top, topk_divergences

__all__ = [
    "Head",
    "PairStatistics",
    "TokenStatistics",
    "TopK",
    "TopKDivergences",
    "pair_statistics",
    "teacher_top",
    "token_statistics",
    "topk_divergences",
]
