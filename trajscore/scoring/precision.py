"""Statistics in the precision of float16: fewer significant bits, which compress better, in an unchanged type.

A real float16 ends at 65,504 and loses precision below 6e-5, where many surprisals lie; its sums overflow, and libraries of
different ages read it as different types. Values that keep float32's range and type and float16's 11 significant bits have none
of these troubles, and files of them are as small.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trajscore.schema import SIGNIFICANT_BITS

_DROPPED = np.uint32(24 - SIGNIFICANT_BITS)
_HALF = np.uint32(2 ** (int(_DROPPED) - 1) - 1)
_KEPT = np.uint32(2**32 - 2 ** int(_DROPPED))


def rounded(values: npt.NDArray[np.float32], upper: float | None = None) -> npt.NDArray[np.float32]:
    """Values with 11 significant bits, the nearest ones, ties to even.

    Args:
        values: of any shape; NaN and infinities stay.
        upper: a bound that no value exceeds; where the nearest value would, the one below it is taken.

    Returns:
        float32 of the same shape. Relative error at most 2^-11 (0.05 %), twice that where `upper` forbade the nearest. A value
        that is not 0 stays so. (Below float32's own smallest normal number, 1e-38, the error is 2^-138 at most instead.)

    >>> rounded(np.array([1.0, 1 + 2**-11, 1 + 2**-10, 1e-7], np.float32)).tolist()[:3]
    [1.0, 1.0, 1.0009765625]
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    nearest = ((bits + _HALF + ((bits >> _DROPPED) & np.uint32(1))) & _KEPT).view(np.float32)
    below = (bits & _KEPT).view(np.float32)
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(nearest) if upper is None else np.isfinite(nearest) & (nearest <= upper)
    return np.where(np.isfinite(values), np.where(sound, nearest, below), values)
