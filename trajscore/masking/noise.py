"""A random number for every token that depends on the seed, the trajectory's id and the token's position, on nothing else.

So a draw is the same in whatever order, folder or part a row comes. Axis: N scored tokens.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl

from trajscore.scores.list_columns import flatten, unflatten

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def exponential_noise(seed: int) -> pl.Expr:
    """Standard exponential noise for each scored token: `id`, `positions` [N] -> [N], float64, above 0 and finite.

    The k smallest of noise / weight are a draw of k without replacement, each next one with probability proportional to the
    weights of those that are left (Efraimidis and Spirakis 2006, doi 10.1016/j.ipl.2005.11.003; equal to Gumbel top-k,
    arXiv 1903.06059).

    Args:
        seed: another seed, another draw.
    """
    columns = pl.struct(pl.col("id"), pl.col("positions"))
    return columns.map_batches(
        lambda rows: _noise(rows.struct.field("id"), rows.struct.field("positions"), seed),
        return_dtype=pl.List(pl.Float64),
        is_elementwise=True,
    )


def _noise(ids: pl.Series, positions: pl.Series, seed: int) -> pl.Series:
    tokens = flatten(positions)
    hashes = np.array([_row_hash(seed, name) for name in ids], np.uint64)
    noise = _uniform(np.repeat(hashes, tokens.lengths), tokens.values)
    np.negative(np.log(noise, out=noise), out=noise)
    return unflatten(tokens.lengths, noise)


def _row_hash(seed: int, name: str | None) -> int:
    digest = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _uniform(state: npt.NDArray[np.uint64], positions: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.float64]:
    """The SplitMix64 generator of each row, at the position's step: 53 bits, strictly between 0 and 1. Overwrites `state`."""
    # In place: fresh memory for every step costs more than the arithmetic.
    step = positions.astype(np.uint64)
    step += np.uint64(1)
    step *= _GOLDEN
    state += step
    for shift, factor in _ROUNDS:
        state ^= np.right_shift(state, shift, out=step)
        state *= factor
    state ^= np.right_shift(state, np.uint64(31), out=step)
    uniform = np.right_shift(state, np.uint64(11), out=step).astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-53
    return uniform
