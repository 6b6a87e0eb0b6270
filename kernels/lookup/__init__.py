"""The nearest centroid of each frame in a stack of k-means models: one interface, a back end for each device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkc_fast.errors import DeviceError
from mkc_fast.kernels.lookup.half import HalfCentroids, round_to_half
from mkc_fast.kernels.lookup.interface import Lookup, half_squared_norms
from mkc_fast.kernels.lookup.native_lookup import NativeLookup, takes
from mkc_fast.kernels.lookup.numpy_lookup import NumpyLookup

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "HalfCentroids",
    "Lookup",
    "NativeLookup",
    "NumpyLookup",
    "half_squared_norms",
    "make_lookup",
    "round_to_half",
]


def make_lookup(
    centroids: NDArray[np.float32],
    half_norms: NDArray[np.float64],
    num_clusters: Sequence[int],
    backend: str = "cpu",
    device: int = 0,
    threads: int | None = None,
    half: HalfCentroids | None = None,
) -> Lookup:
    """Make the look-up over these arrays (see ``Lookup``).

    Args:
        centroids: (N, K, D) float32.
        half_norms: (N, K) float64, half the squared norm of each centroid.
        num_clusters: K of each of the N entries.
        backend: ``"cpu"``: ``"native"`` (C++) where that is here, else ``"numpy"``; or ``"cupy"`` for a GPU.
        device: The number of the CUDA device, for ``"cupy"``.
        threads: For ``"native"``: at most so many. Default: one a core. NumPy takes what its library takes.
        half: For ``"native"``: a copy in float16, of which half the bytes are read. The others leave it alone.

    Raises:
        DeviceError: There is no such back end, or it cannot run here.
        BankError: The back end does not take this bank.
    """
    if backend == "cpu":
        backend = "native" if takes(centroids) else "numpy"
    if backend == "native":
        return NativeLookup(centroids, half_norms, num_clusters, threads, half)
    if backend == "numpy":
        return NumpyLookup(centroids, half_norms, num_clusters)
    if backend == "cupy":
        from mkc_fast.kernels.lookup.cupy_lookup import CupyLookup

        return CupyLookup(centroids, half_norms, num_clusters, device)
    raise DeviceError(f"no look-up back end {backend!r}; there are: cpu, native, numpy, cupy")
