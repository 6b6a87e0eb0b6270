"""What the tests of several kernels share."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from mkc_fast.kernels.cpu.loader import native_library


@pytest.fixture(params=[512, 256], ids=["AVX-512", "AVX2"])
def bits(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each instruction set that this processor has."""
    library = ctypes.CDLL(str(native_library()))
    if library.mkc_fast_vector_bits() < request.param:
        pytest.skip(f"this processor has no vectors of {request.param} bits")
    library.mkc_fast_limit_vector_bits(request.param)
    assert library.mkc_fast_vector_bits() == request.param
    yield request.param
    library.mkc_fast_limit_vector_bits(512)
