"""A CUDA device through CuPy: importing it, opening the device, running kernels, and errors of one line.

Not yet run on a GPU: see ``mkc_fast.kernels.lookup.cupy_lookup``.
"""

from __future__ import annotations

import contextlib
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import DeviceError, DeviceMemoryError
from mkc_fast.extras import CUDA12_EXTRA, CUDA13_EXTRA, install_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import DTypeLike

_INSTALL = f"install the extra {CUDA13_EXTRA} or {CUDA12_EXTRA}: {install_command(CUDA13_EXTRA)}"
# Shared memory that a block gets without asking for it.
_DEFAULT_SHARED_BYTES = 48 << 10
# How the runtime and the driver call it; launches and modules raise the driver's.
_NO_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")


def import_cupy() -> Any:
    """CuPy, or a DeviceError that says what to install."""
    try:
        import cupy
    except ImportError as error:
        reason = " ".join(str(error).split())[:120]
        raise DeviceError(f"the look-up on a GPU needs CuPy, which cannot be imported ({reason}); {_INSTALL}") from None
    return cupy


def open_device(cupy: Any, device: int) -> Any:
    """The CUDA device of this number, or a DeviceError."""
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"the look-up on a GPU finds no CUDA device ({error}); it needs an NVIDIA driver") from None
    if not 0 <= device < count:
        raise DeviceError(f"device cuda:{device}: not here; CuPy sees {count} CUDA devices")
    return cupy.cuda.Device(device)


@contextlib.contextmanager
def one_line_errors(cupy: Any, device: int) -> Iterator[None]:
    """What CuPy raises, as a DeviceError: CUDA's errors and missing libraries are RuntimeErrors, mostly."""
    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise DeviceMemoryError(f"device cuda:{device}: out of memory ({error})") from None
    except (RuntimeError, ImportError, cupy.cuda.compiler.CompileException) as error:
        reason = " ".join(str(error).split())[:160]
        if any(name in str(error) for name in _NO_MEMORY):
            raise DeviceMemoryError(f"device cuda:{device}: out of memory ({reason})") from None
        raise DeviceError(f"device cuda:{device}: {reason}; if a library is missing, {_INSTALL}") from None


class CupyLauncher:
    """Runs kernels on the current stream, with scratch from CuPy's pool, which keeps it to that stream.

    Args:
        cupy: The module.
        package: The package in whose folder the CUDA source is.
        source: File name of the CUDA source.
        kernel: One of its kernels; with it all are compiled.
    """

    def __init__(self, cupy: Any, package: str, source: str, kernel: str) -> None:
        self._cupy = cupy
        text = resources.files(package).joinpath(source).read_text("utf-8")
        self._module = cupy.RawModule(code=text, options=("--std=c++17",))
        self._kernels: dict[str, Any] = {}
        self._kernel(kernel)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        return self._cupy.empty(shape, dtype)

    def launch(self, kernel: str, blocks: int, threads: int, arguments: Sequence[Any], shared_bytes: int = 0) -> None:
        function = self._kernel(kernel)
        if shared_bytes > _DEFAULT_SHARED_BYTES and function.max_dynamic_shared_size_bytes < shared_bytes:
            function.max_dynamic_shared_size_bytes = shared_bytes
            function.preferred_shared_memory_carveout = 100  # percent, so that two blocks fit
        null = np.uint64(0)
        function(
            (blocks,),
            (threads,),
            tuple(null if argument is None else argument for argument in arguments),
            shared_mem=shared_bytes,
        )

    def _kernel(self, name: str) -> Any:
        if name not in self._kernels:
            self._kernels[name] = self._module.get_function(name)
        return self._kernels[name]
