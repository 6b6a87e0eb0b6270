"""Other libraries' nearest centroids, for ``bench lookup``: scikit-learn as the baseline asks it, PyTorch, FAISS.

Bank ids past the entries that a rival was given begin anew: frames are grouped by the ids, and only memory is repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.extras import missing_packages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    # Features (T, D), bank ids (T,), stride → cluster ids (T,).
    Rival = Callable[[NDArray[np.float32], NDArray[np.int64], int], NDArray[np.integer[Any]]]


def find_rivals(
    device: str, threads: int | None
) -> tuple[dict[str, Callable[[NDArray[np.float32]], Rival]], dict[str, str]]:
    """The rivals that are installed, by name, and for each that is not, why."""
    found: dict[str, Callable[[NDArray[np.float32]], Rival]] = {}
    missing: dict[str, str] = {}
    try:
        import sklearn.cluster  # noqa: F401 - whether it is there

        found["scikit-learn predict"] = lambda centroids: _scikit_learn(centroids, threads)
    except ImportError as error:
        missing["scikit-learn predict"] = f"needs {missing_packages('sklearn') or error}"
    try:
        import torch  # noqa: F401 - whether it is there

        found["PyTorch cdist, grouped"] = lambda centroids: _torch(centroids, device, threads)
    except ImportError as error:
        missing["PyTorch cdist, grouped"] = f"needs {missing_packages('torch') or error}"
    try:
        import faiss  # noqa: F401 - whether it is there

        found["FAISS flat, grouped"] = lambda centroids: _faiss(centroids, threads)
    except ImportError as error:
        missing["FAISS flat, grouped"] = f"needs {missing_packages('faiss') or error}"
    return found, missing


def _scikit_learn(centroids: NDArray[np.float32], threads: int | None) -> Rival:
    """``predict`` on float64 once for each group of frames that share a draw."""
    from sklearn.cluster import MiniBatchKMeans

    models = []
    for each in centroids:
        model = MiniBatchKMeans(len(each))
        model.cluster_centers_ = each.astype(np.float64)
        model.n_features_in_ = each.shape[1]
        model._n_threads = threads or 1
        models.append(model)

    def assign(features: NDArray[np.float32], banks: NDArray[np.int64], stride: int) -> NDArray[np.integer[Any]]:
        wide = features.astype(np.float64)
        return np.concatenate(
            [
                models[banks[start] % len(models)].predict(wide[start : start + stride])
                for start in range(0, len(wide), stride)
            ]
        )

    return assign


def _torch(centroids: NDArray[np.float32], device: str, threads: int | None) -> Rival:
    """``cdist`` and ``argmin`` once an entry, over all its frames."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    stack = torch.tensor(centroids, device=device)

    def assign(features: NDArray[np.float32], banks: NDArray[np.int64], stride: int) -> NDArray[np.integer[Any]]:
        del stride
        with torch.inference_mode():
            frames = torch.from_numpy(features).to(device)
            ids = torch.empty(len(features), dtype=torch.int64, device=device)
            for entry, which in _grouped(banks):
                index = torch.from_numpy(which).to(device)
                ids[index] = torch.cdist(frames[index], stack[entry % len(stack)]).argmin(1)
            return ids.cpu().numpy()

    return assign


def _faiss(centroids: NDArray[np.float32], threads: int | None) -> Rival:
    """A flat index an entry, made beforehand, searched once an entry over all its frames."""
    import faiss

    if threads is not None:
        faiss.omp_set_num_threads(threads)
    indexes = []
    for each in centroids:
        index = faiss.IndexFlatL2(each.shape[1])
        index.add(np.ascontiguousarray(each))
        indexes.append(index)

    def assign(features: NDArray[np.float32], banks: NDArray[np.int64], stride: int) -> NDArray[np.integer[Any]]:
        del stride
        ids = np.empty(len(features), np.int64)
        for entry, which in _grouped(banks):
            ids[which] = indexes[entry % len(indexes)].search(np.ascontiguousarray(features[which]), 1)[1][:, 0]
        return ids

    return assign


def _grouped(banks: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each entry that occurs, with the frames that have it."""
    order = np.argsort(banks, kind="stable")
    entries, starts = np.unique(banks[order], return_index=True)
    yield from zip(entries.tolist(), np.split(order, starts[1:]), strict=True)
