"""The look-up on a CPU: frames grouped by bank entry, matrix products, and float64 where rounding would decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.kernels.lookup.interface import Lookup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Frames a product at most: its scores, float32 and float64, stay near 50 MB at K = 1024.
_MAX_FRAMES = 4096
_UNIT_ROUNDOFF = 2.0**-24
_LEAST = 2.0**-149  # of float32's positive numbers


class NumpyLookup(Lookup):
    """Each bank entry is read once a call, whatever the order of the frames."""

    def _assign(self, features: NDArray[np.float32], bank_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        cluster_ids = np.empty(len(features), np.int32)
        for entry, frames in _grouped(bank_ids):
            clusters = int(self.num_clusters[entry])
            centroids, half_norms = self.centroids[entry, :clusters], self.half_norms[entry, :clusters]
            for start in range(0, len(frames), _MAX_FRAMES):
                part = frames[start : start + _MAX_FRAMES]
                cluster_ids[part] = _nearest(features[part], centroids, half_norms)
        return cluster_ids


def _grouped(bank_ids: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each entry that occurs, in ascending order, with the frames that have it."""
    order = np.argsort(bank_ids, kind="stable")
    entries, starts = np.unique(bank_ids[order], return_index=True)
    yield from zip(entries.tolist(), np.split(order, starts[1:]), strict=True) if len(entries) else ()


def _nearest(
    features: NDArray[np.float32], centroids: NDArray[np.float32], half_norms: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Nearest of the centroids (K, D) to each of the features (n, D): ids (n,).

    ½‖x - c‖² = ½‖x‖² - x·c + ½‖c‖², and the first term is the same for all centroids. The product is of float32; its
    error is at most γ‖x‖‖c‖ with γ = Du / (1 - Du), however the sum is ordered (Higham, Accuracy and Stability of
    Numerical Algorithms, section 3.1), and D 2^-149 for products that are too small for float32. Centroids within twice
    that of the least are compared anew in float64, and all of them if a product is too large for float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        products = features @ centroids.T
        scores = np.nan_to_num(half_norms - products, copy=False, nan=-np.inf)
    nearest: NDArray[np.int64] = scores.argmin(axis=1)
    rounding = features.shape[1] * _UNIT_ROUNDOFF
    gamma = rounding / (1 - rounding)
    norms = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    error = gamma * norms * np.sqrt(2 * half_norms.max()) + features.shape[1] * _LEAST
    error[~np.isfinite(products).all(axis=1)] = np.inf
    least = scores[np.arange(len(nearest)), nearest]
    with np.errstate(invalid="ignore"):
        close = ~(scores > (least + 2 * error)[:, None])
    for frame in np.flatnonzero(np.count_nonzero(close, axis=1) > 1):
        candidates = np.flatnonzero(close[frame])
        difference = centroids[candidates].astype(np.float64) - features[frame]
        nearest[frame] = candidates[np.einsum("kd,kd->k", difference, difference).argmin()]
    return nearest
