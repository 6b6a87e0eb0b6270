"""What the tests of several kernels share."""

from __future__ import annotations

import contextlib
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


@pytest.fixture(params=["VNNI", "AVX-512", "AVX2"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each set of instructions for whole numbers that this processor has."""
    library = ctypes.CDLL(str(native_library()))
    if request.param == "VNNI" and not library.mkc_fast_has_vnni():
        pytest.skip("this processor has no VNNI")
    if request.param != "AVX2" and library.mkc_fast_vector_bits() < 512:
        pytest.skip("this processor has no AVX-512")
    library.mkc_fast_limit_vector_bits(256 if request.param == "AVX2" else 512)
    library.mkc_fast_allow_vnni(request.param == "VNNI")
    yield request.param
    library.mkc_fast_limit_vector_bits(512)
    library.mkc_fast_allow_vnni(1)


@pytest.fixture
def native_sets() -> list[contextlib.AbstractContextManager[None]]:
    """For each set of instructions for whole numbers that this processor has, what chooses it."""
    library = ctypes.CDLL(str(native_library()))

    @contextlib.contextmanager
    def chosen(bits: int, vnni: int) -> Iterator[None]:
        library.mkc_fast_limit_vector_bits(bits)
        library.mkc_fast_allow_vnni(vnni)
        try:
            yield
        finally:
            library.mkc_fast_limit_vector_bits(512)
            library.mkc_fast_allow_vnni(1)

    wide = library.mkc_fast_vector_bits() == 512
    return [chosen(256, 0), *[chosen(512, 0)] * wide, *[chosen(512, 1)] * library.mkc_fast_has_vnni()]
