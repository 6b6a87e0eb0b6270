"""The look-up on a CPU in C++ (``kernels/cpu/lookup.cpp``): threads share entries, and each entry is read once."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import BankError, MkcError
from mkc_fast.kernels.cpu.loader import native_library
from mkc_fast.kernels.lookup.interface import Lookup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mkc_fast.kernels.lookup.half import HalfCentroids


class NativeLookup(Lookup):
    """Nearest centroids by the native library; semantics, checks and ids are those of ``Lookup``.

    Args:
        centroids: (N, K, D) float32, C-contiguous; may be a memory map.
        half_norms: (N, K) float64.
        num_clusters: K of each of the N entries.
        threads: At most so many compute. Default: one for each core that this process may use.
        half: A copy of the centroids in float16. Candidates are then found in it, and decided from ``centroids``.

    Raises:
        MkcError: The library is not here, or the centroids do not lie in memory as it takes them.
        BankError: The copy has another shape.
    """

    def __init__(
        self,
        centroids: NDArray[np.float32],
        half_norms: NDArray[np.float64],
        num_clusters: Sequence[int],
        threads: int | None = None,
        half: HalfCentroids | None = None,
    ) -> None:
        super().__init__(centroids, half_norms, num_clusters)
        if not takes(self.centroids):
            raise MkcError(
                "the native look-up takes C-contiguous float32 on a processor with AVX2, where its library was built"
            )
        self._nearest = native_nearest()
        self._threads = threads or 0
        self._half_norms = np.ascontiguousarray(half_norms)
        self._half: tuple[NDArray[Any], ...] | None = None
        if half is not None:
            if half.values.shape != centroids.shape:
                raise BankError(f"a copy in float16 of shape {half.values.shape} for centroids {centroids.shape}")
            scales = np.ldexp(1.0, half.exponents)
            self._half = tuple(map(np.ascontiguousarray, (half.values, half.errors, scales)))

    def _assign(self, features: NDArray[np.float32], bank_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        cluster_ids = np.empty(len(features), np.int32)
        _, clusters, dim = self.centroids.shape
        short_of_memory = self._nearest(
            features.ctypes.data,
            bank_ids.ctypes.data,
            len(features),
            self.centroids.ctypes.data,
            self._half_norms.ctypes.data,
            self.num_clusters.ctypes.data,
            *((None, None, None) if self._half is None else (each.ctypes.data for each in self._half)),
            clusters,
            dim,
            self._threads,
            cluster_ids.ctypes.data,
        )
        if short_of_memory:
            raise MemoryError("the look-up is out of memory")
        return cluster_ids


def takes(centroids: NDArray[np.float32]) -> bool:
    """Whether the native look-up is here and takes these centroids as they lie in memory."""
    flags = centroids.flags
    return native_nearest() is not None and bool(flags.c_contiguous and flags.aligned) and centroids.dtype == np.float32


@functools.cache
def native_nearest() -> Any:
    """The library's function; None where there is none."""
    path = native_library()
    function = None if path is None else getattr(ctypes.CDLL(str(path)), "mkc_fast_nearest", None)
    if function is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_long
        function.argtypes = [pointer, pointer, size, *[pointer] * 6, size, size, ctypes.c_int, pointer]
        function.restype = ctypes.c_int
    return function
