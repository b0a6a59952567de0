"""Hidden states and output heads -> statistics of given tokens and divergences of two models, exact over the whole vocabulary.

Pure tensor math, without models, tokenizers or files. The logits are made block by block of the vocabulary and reduced
at once, so that tokens x vocabulary never exists. Processes may share a vocabulary: each has some rows of the heads.
`tokens.py` has the statistics of one model, `pairs.py` those of two, `divergences.py` more of two that are asked for by name,
`top.py` most probable entries and divergences from them; `head.py` makes the logits, `blocks.py` the sums of a block.
Axes: N scored tokens, D and E hidden widths, V vocabulary entries that count, B entries of one block, C blocks, K kept entries.
"""

from trajscore.statistics.divergences import further_divergences
from trajscore.statistics.head import Head, VocabularyShard
from trajscore.statistics.pairs import PairStatistics, pair_statistics
from trajscore.statistics.tokens import TokenStatistics, token_statistics
from trajscore.statistics.top import TopK, TopKDivergences, at_entries, teacher_top, topk_divergences

__all__ = [
    "Head",
    "PairStatistics",
    "TokenStatistics",
    "TopK",
    "TopKDivergences",
    "VocabularyShard",
    "at_entries",
    "further_divergences",
    "pair_statistics",
    "teacher_top",
    "token_statistics",
    "topk_divergences",
]
