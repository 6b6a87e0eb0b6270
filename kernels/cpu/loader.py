"""Finds the library of the native operators and registers it with ONNX Runtime."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkc_fast.onnx_runtime import ort

# The operators' domain in a graph.
DOMAIN = "mkc_fast"
# Loaded with ctypes, so its name has no version of Python.
_LIBRARY = "_cpu.so"
# Raised whenever the exporter writes the operators' graphs in another way: cached models are then exported again.
NATIVE_FORMAT = 3


@functools.cache
def native_library() -> Path | None:
    """The operators' library, beside this file; None if it was not built, or without AVX2 and AVX-512."""
    path = Path(__file__).with_name(_LIBRARY)
    return path if path.is_file() and vector_bits(path) else None


def vector_bits(library: Path) -> int:
    """Vector width in bits: 512 with AVX-512, 256 with AVX2, 0 with neither or if the library does not load."""
    try:
        return int(ctypes.CDLL(str(library)).mkc_fast_vector_bits())
    except (OSError, AttributeError):
        return 0


def register(options: ort.SessionOptions) -> None:
    """Register the operators with the sessions that are opened with these options."""
    options.register_custom_ops_library(str(native_library()))


def instruction_set() -> str:
    """``AVX-512`` or ``AVX2``, whichever the operators use here; empty without them."""
    library = native_library()
    return "" if library is None else {512: "AVX-512", 256: "AVX2"}[vector_bits(library)]
