"""What runs below ONNX Runtime's own operators, one folder for each kind.

``lookup`` finds nearest centroids, in NumPy and CUDA. ``cuda`` holds what else runs on a GPU: the device, and rows of
frames. ``cpu`` holds operators of the graphs for CPUs, in C++, and their loader.
"""

from __future__ import annotations

from mkc_fast.kernels.lookup import (
    HalfCentroids,
    Lookup,
    NativeLookup,
    NumpyLookup,
    half_squared_norms,
    make_lookup,
    round_to_half,
)

__all__ = [
    "HalfCentroids",
    "Lookup",
    "NativeLookup",
    "NumpyLookup",
    "half_squared_norms",
    "make_lookup",
    "round_to_half",
]
