"""Sums of rows by segment on a GPU, through CuPy. Not yet run on a GPU: see ``mkc_fast.kernels.lookup.cupy_lookup``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.kernels.cuda.device import CupyLauncher

if TYPE_CHECKING:
    from numpy.typing import NDArray

_THREADS = 256
_MAX_BLOCKS = 65536


class DeviceSegments:
    """Sums rows of float32 CuPy arrays in float64, in a fixed order, on the current stream.

    Args:
        cupy: The module.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._launcher = CupyLauncher(cupy, "mkc_fast.kernels.cuda", "segments.cu", "sum_segments")

    def sums(self, rows: Any, order: NDArray[np.int32], begins: NDArray[np.int32]) -> Any:
        """The sum of each segment, (segments, width) float64 CuPy array.

        Args:
            rows: (n, width) float32 CuPy array, C-contiguous.
            order: Rows, those of one segment after those of another.
            begins: (segments + 1,), where each segment begins in ``order``, and where the last ends.
        """
        segments, width = len(begins) - 1, rows.shape[1]
        made = self._cupy.empty((segments, width), np.float64)
        if segments:
            arrays = (rows, self._cupy.asarray(order), self._cupy.asarray(begins), made)
            sizes = (np.int32(segments), np.int32(width))
            self._launcher.launch("sum_segments", min(segments, _MAX_BLOCKS), _THREADS, (*arrays, *sizes))
        return made
