"""Cluster ids from two sets of features that should be equal: how many differ, and whether rounding explains it.

Where two centroids are about as far from a frame, a small error of the features decides between them. So ids from the
features of two devices, or of two precisions, differ now and then, and neither is wrong. This module tells such near
ties from faults. Ids from equal features must be equal.

For features x and x + δ with the nearest centroids a and b: ‖x - b‖² - ‖x - a‖² is the margin. It is not negative,
since a is the nearest to x. Since b is the nearest to x + δ, it is at most 2 δ·(b - a), and so at most 2‖δ‖‖b - a‖. A
larger margin is a fault of a look-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

# Of float64 sums over D = 1024 products, relative to the squared distances; far below what it is compared with.
_ROUNDING = 1e-11


@dataclass(frozen=True)
class NearTies:
    """Ids from two sets of features, compared.

    Attributes:
        frames: How many were compared.
        margins: (n,) of each frame whose ids differ: by how much the other centroid is farther, in squared distance,
            relative to the squared distance of the nearest. Negative: the id is not that of the nearest centroid.
        explained: (n,) the margin relative to 2‖δ‖‖b - a‖, the most that the features' error explains.
        feature_error: The largest error of a frame relative to the frame's norm.
    """

    frames: int
    margins: NDArray[np.float64]
    explained: NDArray[np.float64]
    feature_error: float

    @property
    def differ(self) -> int:
        """How many ids differ."""
        return len(self.margins)

    @property
    def faults(self) -> int:
        """Ids that differ although the features' error does not explain it."""
        return int(((self.margins < -_ROUNDING) | ~(self.explained <= 1)).sum())

    def report(self) -> dict[str, float | int | None]:
        """For a result file: the rate of ids that differ, their margins, and how many are faults."""
        some = bool(self.differ)
        return {
            "frames": self.frames,
            "ids_that_differ": self.differ,
            "rate": self.differ / max(1, self.frames),
            "median_margin_of_squared_distance": float(np.median(self.margins)) if some else None,
            "largest_margin_of_squared_distance": float(self.margins.max()) if some else None,
            "largest_share_of_what_the_feature_error_explains": float(self.explained.max()) if some else None,
            "largest_relative_feature_error": self.feature_error,
            "not_explained": self.faults,
        }


def near_ties(
    centroids: NDArray[np.float32],
    bank_ids: ArrayLike,
    features: NDArray[np.float32],
    cluster_ids: ArrayLike,
    other_features: NDArray[np.float32],
    other_ids: ArrayLike,
    *,
    slack: float = 1.0,
) -> NearTies:
    """Compare the ids of two sets of features of the same speech.

    Args:
        centroids: (N, K, D) float32, of the bank.
        bank_ids: (T,) int, of each frame.
        features: (T, D) float32, of the reference.
        cluster_ids: (T,) int, found for ``features``.
        other_features: (T, D) float32, of the other device or precision.
        other_ids: (T,) int, found for ``other_features``.
        slack: Factor on the features' error. 1 where ``other_ids`` were found for exactly ``other_features``; more
            where those stand for features that were not handed out, such as those of the same speech in a batch.
    """
    banks, ids, others = (np.asarray(each) for each in (bank_ids, cluster_ids, other_ids))
    error = other_features.astype(np.float64) - features
    norms = np.linalg.norm(features.astype(np.float64), axis=1)
    errors = np.linalg.norm(error, axis=1)
    largest = errors.max(initial=0.0)
    margins, explained = [], []
    for frame in np.flatnonzero(ids != others).tolist():
        near, far = centroids[banks[frame], [ids[frame], others[frame]]].astype(np.float64)
        squared = ((near - features[frame]) ** 2).sum(), ((far - features[frame]) ** 2).sum()
        margin = squared[1] - squared[0]
        margins.append(margin / max(squared[0], np.finfo(float).tiny))
        # In a batch another frame's error may be the larger: with slack the largest stands for all.
        size = errors[frame] if slack == 1.0 else largest * slack
        most = 2 * size * np.linalg.norm(far - near)
        rounding = _ROUNDING * squared[1]
        explained.append(0.0 if margin <= rounding and most > 0 else margin / most if most else np.inf)
    relative = errors / np.maximum(norms, np.finfo(float).tiny)
    return NearTies(len(ids), np.array(margins), np.array(explained), float(relative.max(initial=0.0)))


def joined(parts: Iterable[NearTies]) -> NearTies:
    """Of several recordings."""
    listed = list(parts)
    return NearTies(
        sum(part.frames for part in listed),
        np.concatenate([np.empty(0), *(part.margins for part in listed)]),
        np.concatenate([np.empty(0), *(part.explained for part in listed)]),
        max((part.feature_error for part in listed), default=0.0),
    )
