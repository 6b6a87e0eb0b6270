"""The one interface of all look-up back ends, and the checks that stand before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import BankError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def half_squared_norms(centroids: NDArray[np.float32]) -> NDArray[np.float64]:
    """What look-ups need of centroids (K, D): half the squared norm of each, (K,) float64."""
    norms: NDArray[np.float64] = 0.5 * np.einsum("kd,kd->k", centroids, centroids, dtype=np.float64)
    return norms


class Lookup(ABC):
    """Nearest centroids in a stack of k-means models.

    The nearest centroid is that of the least Euclidean distance, computed exactly enough that rounding does not
    decide: every back end gives the same ids. Of centroids at the same distance the lowest id wins.

    Args:
        centroids: (N, K, D) float32.
        half_norms: (N, K) float64, half the squared norm of each centroid; +inf on rows past an entry's own K.
        num_clusters: K of each of the N entries.

    Raises:
        BankError: Half norms are not finite, or negative, where an entry has clusters, or are finite where it has none.
    """

    def __init__(
        self, centroids: NDArray[np.float32], half_norms: NDArray[np.float64], num_clusters: Sequence[int]
    ) -> None:
        self.centroids = centroids
        self.half_norms = half_norms
        self.num_clusters = np.asarray(num_clusters, np.int64)
        self.num_entries, clusters, self.dim = centroids.shape
        used = np.arange(clusters) < self.num_clusters[:, None]
        wrong = np.flatnonzero((~((half_norms >= 0) & (np.isfinite(half_norms) == used))).any(axis=1))
        if wrong.size:
            raise BankError(f"half_norms of entry {wrong[0]} do not fit its centroids; build the bank again")

    def assign(self, features: ArrayLike, bank_ids: ArrayLike) -> NDArray[np.int32]:
        """The nearest centroid of each frame inside that frame's bank entry.

        Args:
            features: (T, D) float, finite.
            bank_ids: (T,) int, in [0, N).

        Returns:
            Cluster ids (T,) int32, in [0, K of the entry).

        Raises:
            BankError: A shape, type or id does not fit the bank, or features are not finite.
        """
        checked = self._check_features(features)
        return self._assign(checked, self._check_bank_ids(bank_ids, len(checked)))

    def lookup(self, bank_ids: ArrayLike, cluster_ids: ArrayLike) -> NDArray[np.float32]:
        """The centroids of these ids: (T,) int in [0, N), (T,) int in [0, K of the entry) → (T, D) float32.

        Raises:
            BankError: A shape, type or id does not fit the bank.
        """
        clusters = _check_ids("cluster_ids", cluster_ids)
        banks = self._check_bank_ids(bank_ids, len(clusters))
        outside = np.flatnonzero((clusters < 0) | (clusters >= self.num_clusters[banks]))
        if outside.size:
            frame = outside[0]
            raise BankError(
                f"cluster_ids[{frame}] is {clusters[frame]}; entry {banks[frame]} has clusters 0 to "
                f"{self.num_clusters[banks[frame]] - 1}"
            )
        return self._lookup(banks, clusters)

    def checked_bank_ids(self, bank_ids: ArrayLike) -> NDArray[np.int64]:
        """The bank entries of T frames, (T,) int in [0, N).

        Raises:
            BankError: A shape, type or id does not fit the bank.
        """
        return self._check_bank_ids(bank_ids, len(np.atleast_1d(np.asarray(bank_ids))))

    @abstractmethod
    def _assign(self, features: NDArray[np.float32], bank_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """``assign`` with checked arguments."""

    def _lookup(self, bank_ids: NDArray[np.int64], cluster_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """``lookup`` with checked arguments; here from the host's centroids."""
        return np.ascontiguousarray(self.centroids[bank_ids, cluster_ids])

    def _check_features(self, features: ArrayLike) -> NDArray[np.float32]:
        array = np.asarray(features)
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise BankError(f"features have shape {array.shape}; the bank takes (T, {self.dim})")
        if array.dtype.kind != "f":
            raise BankError(f"features are {array.dtype}; expected float32")
        with np.errstate(over="ignore"):
            array = np.require(array, np.float32, ["C", "A"])
        if not np.isfinite(array).all():
            frame = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            raise BankError(f"features of frame {frame} are not finite")
        return array

    def _check_bank_ids(self, bank_ids: ArrayLike, frames: int) -> NDArray[np.int64]:
        ids = _check_ids("bank_ids", bank_ids)
        if len(ids) != frames:
            raise BankError(f"bank_ids has {len(ids)} frames, the other argument {frames}")
        outside = np.flatnonzero((ids < 0) | (ids >= self.num_entries))
        if outside.size:
            raise BankError(
                f"bank_ids[{outside[0]}] is {ids[outside[0]]}; the bank has entries 0 to {self.num_entries - 1}"
            )
        return ids


def _check_ids(name: str, ids: ArrayLike) -> NDArray[np.int64]:
    array: NDArray[Any] = np.asarray(ids)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise BankError(f"{name} has shape {array.shape} and type {array.dtype}; expected (T,) integers")
    return array.astype(np.int64)
