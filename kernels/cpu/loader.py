"""The native operators (``kernels/cpu``): whether they are here, and the graphs that are made of them."""

from __future__ import annotations

import ctypes
import functools
from importlib import machinery
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkc_fast.onnx_runtime import ort

# What the operators are called under in a graph.
DOMAIN = "mkc_fast"
_LIBRARY = "_cpu"
# Counts the changes of what an exporter writes for the operators: caches of exported models are made anew.
NATIVE_FORMAT = 2


@functools.cache
def native_library() -> Path | None:
    """The operators' library; None where it was not built, or this processor has neither AVX2 nor AVX-512."""
    import mkc_fast.kernels.cpu

    for folder in mkc_fast.kernels.cpu.__path__:
        for suffix in machinery.EXTENSION_SUFFIXES:
            path = Path(folder) / f"{_LIBRARY}{suffix}"
            if path.is_file() and vector_bits(path):
                return path
    return None


def vector_bits(library: Path) -> int:
    """512 with AVX-512, 256 with AVX2, 0 with neither, or where the library does not load."""
    try:
        return int(ctypes.CDLL(str(library)).mkc_fast_vector_bits())
    except (OSError, AttributeError):
        return 0


def register(options: ort.SessionOptions) -> None:
    """Make the operators known to the session that these options are for."""
    options.register_custom_ops_library(str(native_library()))


def instruction_set() -> str:
    """``AVX-512`` or ``AVX2``, whichever the operators use here; empty where they are not."""
    library = native_library()
    return "" if library is None else {512: "AVX-512", 256: "AVX2"}[vector_bits(library)]
