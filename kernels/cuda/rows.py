"""Rows of frames on a GPU, through CuPy: moved, faded, checked for values that are not finite.

Everything is queued on the current stream, without waiting for it. Not yet run on a GPU: see
``mkc_fast.kernels.lookup.cupy_lookup``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.kernels.cuda.device import CupyLauncher

if TYPE_CHECKING:
    from collections.abc import Sequence

_THREADS = 256
_MAX_BLOCKS = 4096


class DeviceRows:
    """Moves, fades and checks rows of float32 CuPy arrays; all of them C-contiguous.

    Args:
        cupy: The module.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._launcher = CupyLauncher(cupy, "mkc_fast.kernels.cuda", "rows.cu", "move_rows")

    def join(self, parts: Sequence[Any]) -> Any:
        """Consecutive rows (n, width) each, as one array."""
        width = parts[0].shape[1]
        whole, start = self._cupy.empty((sum(len(part) for part in parts), width), np.float32), 0
        for part in parts:
            copy(whole[start : start + len(part)], part)
            start += len(part)
        return whole

    def kept(self, rows: Any) -> Any:
        """These rows alone, for longer than the array that they are a part of."""
        return self.join([rows])

    def fade(self, old: Any, fresh: Any) -> Any:
        """(n, width) and (n, width) → (n, width): from the first to the second."""
        faded = self._cupy.empty(old.shape, np.float32)
        self._launch("fade_rows", len(old), (old, fresh, faded), old.shape[1])
        return faded

    def move(self, source: Any, origins: Any, target: Any, places: Any = None) -> None:
        """Copy rows of ``source`` to rows of ``target``, both (rows, width).

        Args:
            source: Where they are.
            origins: (n,) int32, a row of ``source`` each; negative: zeros.
            target: Where they go.
            places: (n,) int32, a row of ``target`` each; negative: none. Default: row i.
        """
        self._launch("move_rows", len(origins), (source, origins, places, target), target.shape[1])

    def flag(self, rows: Any, bank_ids: Any, flags: Any, rows_per_flag: int) -> None:
        """Set flags of rows that are not finite.

        Args:
            rows: (n, width).
            bank_ids: (n,) int32; rows for which it is negative are padding, and not looked at.
            flags: (m,) int32; row i sets flag ``i // rows_per_flag`` to 1.
            rows_per_flag: Rows of an utterance.
        """
        if len(rows):
            sizes = (np.int32(len(rows)), np.int32(rows.shape[1]), np.int32(rows_per_flag))
            self._launcher.launch("flag_rows", min(len(rows), _MAX_BLOCKS), _THREADS, (rows, bank_ids, flags, *sizes))

    def _launch(self, kernel: str, count: int, arrays: tuple[Any, ...], width: int) -> None:
        if count:
            sizes = (np.int32(count), np.int32(width))
            self._launcher.launch(kernel, min(count, _MAX_BLOCKS), _THREADS, (*arrays, *sizes))


def copy(target: Any, source: Any) -> None:
    """Queue a copy between contiguous CuPy arrays of one size; plain bytes, so that no kernel is compiled for it."""
    if source.nbytes:
        target.data.copy_from_device_async(source.data, source.nbytes)


def zero(array: Any) -> None:
    """Queue a contiguous CuPy array's filling with zeros."""
    array.data.memset_async(0, array.nbytes)
