"""A CUDA device as this process uses it: its streams, its page-locked memory, and its errors."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.errors import DeviceError, DeviceMemoryError, LostDeviceError, MkcError
from mkc_fast.kernels.cuda.device import import_cupy, one_line_errors, open_device
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# How ONNX Runtime, cuDNN, cuBLAS and CUDA say that memory is short; ONNX Runtime has no exception of its own for it.
# With an arena limit ONNX Runtime compares two sizes; CuPy's launches have the name of the driver's error.
_NO_MEMORY = (
    "out of memory",
    "Failed to allocate memory",
    "smaller than requested bytes",
    "ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
)
_SHOWN_CHARACTERS = 300


def is_out_of_memory(text: str) -> bool:
    """Whether an error of CUDA's libraries says that memory is short, in all of its text."""
    return any(words in text for words in _NO_MEMORY)


class DeviceContext:
    """A CUDA device: CuPy, and a stream each for computing, for copying in and for copying out.

    Raises:
        DeviceError: There is no CuPy, or no such device.
    """

    def __init__(self, index: int) -> None:
        self.cupy = import_cupy()
        self.index = index
        self.device = open_device(self.cupy, index)
        with self.device, one_line_errors(self.cupy, index):
            # Non-blocking: none of them waits for the null stream, which other libraries use.
            self.compute, self.copies_in, self.copies_out = (self.cupy.cuda.Stream(non_blocking=True) for _ in range(3))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what CuPy and ONNX Runtime raise in the block into one of our errors, in one line.

        Raises:
            DeviceMemoryError: Memory is short; the device works.
            LostDeviceError: The device no longer answers.
            DeviceError: Anything else.
        """
        try:
            with self.device:
                yield
        except DeviceMemoryError:
            raise
        except DeviceError as error:
            self._check_lost(str(error))
            raise
        except MkcError:
            raise
        except Exception as error:  # ONNX Runtime's share no base but Exception
            # The text begins with the node's name, which may be long; what is wrong may come after what is shown.
            said = one_line(str(error), _SHOWN_CHARACTERS)
            if isinstance(error, MemoryError) or is_out_of_memory(str(error)):
                raise DeviceMemoryError(f"device cuda:{self.index}: out of memory ({said})") from None
            self._check_lost(said)
            raise DeviceError(f"device cuda:{self.index}: {said or type(error).__name__}") from None

    def _check_lost(self, said: str) -> None:
        """Raise if CUDA keeps the error: then every further call fails, and so does this one."""
        try:
            self.compute.synchronize()
        except self.cupy.cuda.runtime.CUDARuntimeError as error:
            kept = one_line(str(error), 120)
            raise LostDeviceError(f"device cuda:{self.index}: lost ({kept}), after: {said[:200]}") from None

    def wait(self) -> None:
        """Wait until the device has done everything that was queued."""
        with self.device:
            for stream in (self.copies_in, self.compute, self.copies_out):
                stream.synchronize()

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked memory; it returns to CuPy's pool with the array, which must outlive every copy."""
        return np.frombuffer(self.cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
