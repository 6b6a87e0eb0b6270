"""What the tests of several kernels share."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import pytest

from mkc_fast.kernels.cpu.loader import native_library


@contextlib.contextmanager
def chosen(bits: int, *, vnni: bool) -> Iterator[None]:
    """The native operators in vectors of so many bits at most, with VNNI or without."""
    library = ctypes.CDLL(str(native_library()))
    library.mkc_fast_limit_vector_bits(bits)
    library.mkc_fast_allow_vnni(vnni)
    try:
        yield
    finally:
        library.mkc_fast_limit_vector_bits(512)
        library.mkc_fast_allow_vnni(1)


# Sets of instructions for whole numbers, as ``chosen`` takes them.
SETS = {"VNNI": (512, True), "AVX-512": (512, False), "AVX2": (256, False)}


def has(bits: int, *, vnni: bool) -> bool:
    """Whether this processor has a set of instructions."""
    library = ctypes.CDLL(str(native_library()))
    return library.mkc_fast_vector_bits() >= bits and (not vnni or bool(library.mkc_fast_has_vnni()))


@pytest.fixture(params=[512, 256], ids=["AVX-512", "AVX2"])
def bits(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each instruction set that this processor has."""
    if not has(request.param, vnni=False):
        pytest.skip(f"this processor has no vectors of {request.param} bits")
    with chosen(request.param, vnni=True):
        assert ctypes.CDLL(str(native_library())).mkc_fast_vector_bits() == request.param
        yield request.param


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each set of instructions for whole numbers that this processor has."""
    width, vnni = SETS[request.param]
    if not has(width, vnni=vnni):
        pytest.skip(f"this processor has no {request.param}")
    with chosen(width, vnni=vnni):
        yield request.param


@pytest.fixture
def native_sets() -> list[contextlib.AbstractContextManager[None]]:
    """For each set of instructions for whole numbers that this processor has, what chooses it."""
    return [chosen(width, vnni=vnni) for width, vnni in SETS.values() if has(width, vnni=vnni)]
