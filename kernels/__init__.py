"""Nearest centroids in a stack of k-means models: one interface, a back end for each kind of device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkc_fast import DeviceError
from mkc_fast.kernels.interface import Lookup
from mkc_fast.kernels.numpy_lookup import NumpyLookup

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Lookup", "NumpyLookup", "make_lookup"]


def make_lookup(
    centroids: NDArray[np.float32],
    half_norms: NDArray[np.float64],
    num_clusters: Sequence[int],
    backend: str = "numpy",
) -> Lookup:
    """The look-up over these arrays (see ``Lookup``), on a back end: ``"numpy"``.

    Raises:
        DeviceError: There is no such back end.
    """
    if backend == "numpy":
        return NumpyLookup(centroids, half_norms, num_clusters)
    raise DeviceError(f"no look-up back end {backend!r}; there is: numpy")
