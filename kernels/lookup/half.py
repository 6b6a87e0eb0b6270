"""A copy of centroids in float16, from which the look-up on a CPU finds the candidates: half the bytes to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.errors import BankError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The largest magnitude of an entry becomes at most 2^15, so that rounding cannot pass float16's largest, 65504.
_MOST_EXPONENT = 15
# The errors are computed in float64; so much more covers their own rounding.
_MORE = 1 + 1e-9


@dataclass(frozen=True)
class HalfCentroids:
    """The copy of N k-means models.

    Attributes:
        values: (N, K, D) float16, C-contiguous: centroids, divided by the entry's power of two.
        errors: (N, K) float64, a bound of the distance of each copy, multiplied again, to its centroid.
        exponents: (N,) int, of the powers of two.

    Raises:
        BankError: Shapes do not fit together, or an error is negative or not a number.
    """

    values: NDArray[np.float16]
    errors: NDArray[np.float64]
    exponents: NDArray[np.int64]

    def __post_init__(self) -> None:
        entries, clusters, _ = self.values.shape
        if self.errors.shape != (entries, clusters) or self.exponents.shape != (entries,):
            raise BankError(
                f"a copy in float16 of shape {self.values.shape} has errors of shape {self.errors.shape} and "
                f"{len(self.exponents)} exponents; build the bank again"
            )
        wrong = np.flatnonzero(~(self.errors >= 0).all(axis=1))
        if wrong.size:
            raise BankError(f"the errors of entry {wrong[0]}'s copy in float16 are no bounds; build the bank again")


def round_to_half(centroids: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float64], int]:
    """What ``HalfCentroids`` holds of one entry: centroids (K, D) → (K, D), (K,) and the exponent."""
    exact = centroids.astype(np.float64)
    largest = float(np.abs(exact).max(initial=0.0))
    exponent = int(np.frexp(largest)[1]) - _MOST_EXPONENT if largest else 0
    with np.errstate(under="ignore"):
        values = np.ldexp(exact, -exponent).astype(np.float16)
        errors = _MORE * np.linalg.norm(np.ldexp(values.astype(np.float64), exponent) - exact, axis=1)
    return values, errors, exponent
