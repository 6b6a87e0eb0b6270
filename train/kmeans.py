"""Fits one k-means model with scikit-learn, as the published ones were; runs in a process of its own.

``python -m mkc_fast.train.kmeans`` reads a ``FitJob`` in JSON from the standard input and writes the model and, in JSON
to the standard output, a ``Fitted``. A process of its own bounds memory, and can be ended at any time.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.errors import ArgumentError
from mkc_fast.extras import required
from mkc_fast.kernels import half_squared_norms, make_lookup

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Frames whose distances are computed at once.
_CHUNK_FRAMES = 4096


@dataclass(frozen=True)
class KMeansSettings:
    """Of scikit-learn's ``MiniBatchKMeans``; the defaults are those of the published models.

    Attributes:
        clusters: K.
        max_iter: Passes over the frames, at most.
        batch_size: Frames of a step.
        tol: Ends when the centroids move less, relative to the features' variance.
        max_no_improvement: Ends after so many steps without a better smoothed inertia.
        n_init: Starts by k-means++, of which the best is taken.
        reassignment_ratio: Clusters with fewer frames than this share of the largest get a new centroid.
    """

    clusters: int = 1024
    max_iter: int = 100
    batch_size: int = 2048
    tol: float = 1e-4
    max_no_improvement: int = 100
    n_init: int = 20
    reassignment_ratio: float = 0.01

    def __post_init__(self) -> None:
        for name in ("clusters", "max_iter", "batch_size", "max_no_improvement", "n_init"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("tol", "reassignment_ratio"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected 0 or more")


@dataclass(frozen=True)
class FitJob:
    """What a process fits.

    Attributes:
        features: File of (frames, dim) float32, without a header.
        frames: In it.
        dim: Of a frame.
        model: The file to write.
        settings: Of the fit.
        seed: Up to 2**32 - 1; None: the operating system's entropy.
        threads: That it may use.
    """

    features: str
    frames: int
    dim: int
    model: str
    settings: KMeansSettings
    seed: int | None
    threads: int


@dataclass(frozen=True)
class Fitted:
    """What came of it.

    Attributes:
        inertia: Mean squared distance of a frame to its nearest centroid.
        empty: Clusters that are nearest to no frame.
        seconds: That it took.
    """

    inertia: float
    empty: int
    seconds: float


def fit(job: FitJob) -> Fitted:
    """Fit a model and write it as ``joblib.dump`` of the estimator, which the research code loads.

    Raises:
        MkcError: scikit-learn is not installed.
        OSError: A file cannot be read or written.
    """
    with required("training a bank", "sklearn", "joblib", "threadpoolctl"):
        import joblib
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits
    begin = time.perf_counter()
    features: NDArray[np.float32] = np.memmap(job.features, np.float32, "r", shape=(job.frames, job.dim))
    settings = job.settings
    estimator = MiniBatchKMeans(
        n_clusters=settings.clusters,
        init="k-means++",
        max_iter=settings.max_iter,
        batch_size=settings.batch_size,
        tol=settings.tol,
        max_no_improvement=settings.max_no_improvement,
        n_init=settings.n_init,
        reassignment_ratio=settings.reassignment_ratio,
        compute_labels=False,
        random_state=np.random.RandomState(job.seed),
    )
    with threadpool_limits(job.threads):
        estimator.fit(features)
        inertia, empty = spread(features, estimator.cluster_centers_)
    # The state of the generator would tell what other draws of this seed are.
    estimator.set_params(random_state=None)
    estimator.__dict__.pop("_random_state", None)
    with atomic_file(Path(job.model)) as temporary:
        joblib.dump(estimator, temporary)
    return Fitted(inertia, empty, time.perf_counter() - begin)


def spread(features: NDArray[np.float32], centroids: NDArray[Any]) -> tuple[float, int]:
    """Mean squared distance of a frame to its nearest centroid, as a bank has it, and how many are nearest to none.

    Args:
        features: (T, D).
        centroids: (K, D).
    """
    rows = np.ascontiguousarray(centroids, np.float32)
    lookup = make_lookup(rows[None], half_squared_norms(rows)[None], [len(rows)])
    used = np.zeros(len(rows), bool)
    total = 0.0
    for first in range(0, len(features), _CHUNK_FRAMES):
        part = np.asarray(features[first : first + _CHUNK_FRAMES])
        nearest = lookup.assign(part, np.zeros(len(part), np.int64))
        used[nearest] = True
        total += float(np.sum((part - rows[nearest]).astype(np.float64) ** 2))
    return total / len(features), int((~used).sum())


def main() -> None:
    """Fit the job at the standard input."""
    said = json.load(sys.stdin)
    job = FitJob(**{**said, "settings": KMeansSettings(**said["settings"])})
    json.dump(dataclasses.asdict(fit(job)), sys.stdout)


if __name__ == "__main__":
    main()
