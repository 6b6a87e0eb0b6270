"""Fits several k-means models at once by Lloyd's algorithm, on a GPU or a CPU.

Nearest centroids come from the look-up that also serves inference, with a stack of the models and the entry of each
frame, so that one call does all models. Both devices take the same steps from the same starts, to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mkc_fast.extras import required
from mkc_fast.kernels import half_squared_norms, make_lookup
from mkc_fast.train.kmeans import KMeansSettings, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Frames whose squares are summed in float64 at once.
_CHUNK_FRAMES = 4096


@dataclass(frozen=True)
class LloydFit:
    """A model.

    Attributes:
        centroids: (K, D) float32.
        inertia: Mean squared distance of a frame to its nearest centroid.
        counts: (K,) int64, frames that each cluster is nearest to.
        iterations: Steps that moved the centroids.
    """

    centroids: NDArray[np.float32]
    inertia: float
    counts: NDArray[np.int64]
    iterations: int

    @property
    def empty(self) -> int:
        """Clusters that are nearest to no frame."""
        return int((self.counts == 0).sum())


class Frames(Protocol):
    """Frames of several models, one model after the other, where a device can reach them."""

    def assign(
        self, centroids: NDArray[np.float32], half_norms: NDArray[np.float64], bank_ids: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """The nearest centroid of each frame, (T,); frames with negative bank ids have none."""

    def sums(self, order: NDArray[np.int32], begins: NDArray[np.int32]) -> NDArray[np.float64]:
        """Sums of the frames ``order[begins[s]:begins[s + 1]]`` for each s, (segments, D) float64."""


class HostFrames:
    """On the CPU.

    Args:
        frames: (T, D) float32.
    """

    def __init__(self, frames: NDArray[np.float32]) -> None:
        self._frames = frames

    def assign(
        self, centroids: NDArray[np.float32], half_norms: NDArray[np.float64], bank_ids: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        lookup = make_lookup(centroids, half_norms, [centroids.shape[1]] * len(centroids))
        found = np.full(len(bank_ids), -1, np.int32)
        wanted = bank_ids >= 0
        found[wanted] = lookup.assign(self._frames[wanted], bank_ids[wanted])
        return found

    def sums(self, order: NDArray[np.int32], begins: NDArray[np.int32]) -> NDArray[np.float64]:
        made = np.zeros((len(begins) - 1, self._frames.shape[1]))
        for segment, (begin, end) in enumerate(pairwise(begins)):
            made[segment] = self._frames[order[begin:end]].sum(0, dtype=np.float64)
        return made


class DeviceFrames:
    """On a GPU, through CuPy.

    Args:
        frames: (T, D) float32; D is a multiple of 4.
        device: The number of the CUDA device.

    Raises:
        DeviceError: There is no CuPy, no such device, or not enough memory.
        BankError: The look-up does not take this D.
    """

    def __init__(self, frames: NDArray[np.float32], device: int) -> None:
        from mkc_fast.kernels.cuda.device import import_cupy, one_line_errors, open_device
        from mkc_fast.kernels.cuda.segments import DeviceSegments

        self._cupy, self._number, self._errors = import_cupy(), device, one_line_errors
        self._device = open_device(self._cupy, device)
        with self._device, self._errors(self._cupy, device):
            self._segments = DeviceSegments(self._cupy)
            self._frames = self._cupy.asarray(np.ascontiguousarray(frames))
        self._lookup: Any = None

    def assign(
        self, centroids: NDArray[np.float32], half_norms: NDArray[np.float64], bank_ids: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        if self._lookup is None:
            sizes = [centroids.shape[1]] * len(centroids)
            self._lookup = make_lookup(centroids, half_norms, sizes, "cupy", self._number)
        else:
            self._lookup.replace(centroids, half_norms)
        with self._device, self._errors(self._cupy, self._number):
            found: NDArray[np.int32] = self._lookup.assign_device(self._frames, bank_ids).get()
        return found

    def sums(self, order: NDArray[np.int32], begins: NDArray[np.int32]) -> NDArray[np.float64]:
        with self._device, self._errors(self._cupy, self._number):
            made: NDArray[np.float64] = self._segments.sums(self._frames, order, begins).get()
        return made


def start_of(features: NDArray[np.float32], settings: KMeansSettings, seed: int | None) -> NDArray[np.float32]:
    """Where a fit begins, on the CPU: the best of ``n_init`` starts by k-means++ among some of the frames.

    As many frames as scikit-learn's MiniBatchKMeans takes for it.

    Args:
        features: (T, D).
        settings: K, ``n_init`` and ``batch_size`` count.
        seed: Up to 2**32 - 1; None: the operating system's entropy.

    Returns:
        (K, D) float32.
    """
    with required("training a bank", "sklearn"):
        from sklearn.cluster import kmeans_plusplus
    random = np.random.RandomState(seed)
    wanted = 3 * max(settings.batch_size, settings.clusters)
    chosen = np.sort(random.permutation(len(features))[:wanted])
    part = np.ascontiguousarray(features[chosen], np.float32)
    starts = [kmeans_plusplus(part, settings.clusters, random_state=random)[0] for _ in range(settings.n_init)]
    best = min(starts, key=lambda each: spread(part, each)[0]) if len(starts) > 1 else starts[0]
    return np.ascontiguousarray(best, np.float32)


def fit_together(
    features: Sequence[NDArray[np.float32]],
    starts: Sequence[NDArray[np.float32]],
    settings: KMeansSettings,
    device: int | None = None,
) -> list[LloydFit]:
    """Fit a model to each array of features.

    A model is ready when its centroids move, squared and summed, by no more than ``tol`` times the mean variance of its
    features, as in scikit-learn's KMeans. A cluster that loses its last frame stays where it is.

    Args:
        features: (T, D) float32 of each model.
        starts: (K, D) of each.
        settings: ``max_iter`` and ``tol`` count.
        device: The number of a CUDA device; None: the CPU.

    Raises:
        DeviceError, BankError: As ``DeviceFrames``.
    """
    together = np.concatenate([np.asarray(each, np.float32) for each in features])
    frames: Frames = HostFrames(together) if device is None else DeviceFrames(together, device)
    sizes = [len(each) for each in features]
    entries = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    centroids = np.stack(starts).astype(np.float32)
    models = len(centroids)
    squares, variances = zip(*map(_moments, features), strict=True)
    active, iterations = np.ones(models, bool), np.zeros(models, int)
    for _ in range(settings.max_iter):
        sums, counts = _step(frames, centroids, np.where(active[entries], entries, np.int32(-1)))
        means = sums / np.maximum(counts, 1)[..., None]
        fresh = np.where(counts[..., None] > 0, means, centroids).astype(np.float32)
        moved = np.square(fresh.astype(np.float64) - centroids).sum((1, 2))
        centroids[active] = fresh[active]
        iterations[active] += 1
        active &= moved > settings.tol * np.asarray(variances)
        if not active.any():
            break
    sums, counts = _step(frames, centroids, entries)
    wide = centroids.astype(np.float64)
    away = (counts * np.square(wide).sum(2) - 2 * (sums * wide).sum(2)).sum(1)
    inertia = np.maximum(0.0, np.asarray(squares) + away) / sizes
    return [
        LloydFit(centroids[model], float(inertia[model]), counts[model], int(iterations[model]))
        for model in range(models)
    ]


def _step(
    frames: Frames, centroids: NDArray[np.float32], bank_ids: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums (N, K, D) and counts (N, K) of the frames that are nearest to each centroid."""
    models, clusters, dim = centroids.shape
    half_norms = np.stack([half_squared_norms(each) for each in centroids])
    nearest = frames.assign(centroids, half_norms, bank_ids)
    chosen = np.flatnonzero(bank_ids >= 0)
    segments = bank_ids[chosen].astype(np.int64) * clusters + nearest[chosen]
    order = chosen[np.argsort(segments, kind="stable")].astype(np.int32)
    counts = np.bincount(segments, minlength=models * clusters)
    begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return frames.sums(order, begins).reshape(models, clusters, dim), counts.reshape(models, clusters)


def _moments(features: NDArray[np.float32]) -> tuple[float, float]:
    """The sum of all squares, and the mean variance of the dimensions."""
    total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
    for first in range(0, len(features), _CHUNK_FRAMES):
        part = features[first : first + _CHUNK_FRAMES].astype(np.float64)
        total += part.sum(0)
        squares += np.square(part).sum(0)
    means = total / len(features)
    return float(squares.sum()), float((squares / len(features) - np.square(means)).mean())
