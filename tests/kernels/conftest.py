"""What the tests of several kernels share."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomllib

from mkc_fast.kernels.cpu import loader
from mkc_fast.kernels.cpu.loader import native_library
from tests.conftest import ROOT


@contextlib.contextmanager
def chosen(bits: int, *, vnni: bool, tiles: bool = False) -> Iterator[None]:
    """The native operators in vectors of so many bits at most, with VNNI and tiles (AMX) or without."""
    library = ctypes.CDLL(str(loader.native_library()))
    library.mkc_fast_limit_vector_bits(bits)
    library.mkc_fast_allow_vnni(vnni)
    library.mkc_fast_allow_tiles(tiles)
    try:
        yield
    finally:
        library.mkc_fast_limit_vector_bits(512)
        library.mkc_fast_allow_vnni(1)
        library.mkc_fast_allow_tiles(1)


# Sets of instructions for whole numbers, as ``chosen`` takes them.
SETS = {
    "AMX": (512, True, True),
    "VNNI": (512, True, False),
    "AVX-512": (512, False, False),
    "AVX2": (256, False, False),
}


def has(bits: int, *, vnni: bool, tiles: bool = False) -> bool:
    """Whether this processor has a set of instructions."""
    library = ctypes.CDLL(str(native_library()))
    if library.mkc_fast_vector_bits() < bits or (vnni and not library.mkc_fast_has_vnni()):
        return False
    return not tiles or bool(library.mkc_fast_has_tiles())


@pytest.fixture(scope="session")
def emulated_tiles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Compiles the operators with AMX's instructions emulated in C++, once: the library."""
    made: list[Path] = []

    def make() -> Path:
        if made:
            return made[0]
        extension = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"][0]
        library = tmp_path_factory.mktemp("emulated") / "_cpu.so"
        command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden"]
        command += ["-DMKC_EMULATED_TILES", *(str(ROOT / source) for source in extension["sources"])]
        subprocess.run([*command, "-o", str(library)], check=True)
        made.append(library)
        return library

    return make


def testable(name: str) -> bool:
    """Whether a set can be chosen: this processor has it or, of AMX, all but the tiles and there is a compiler."""
    bits, vnni, tiles = SETS[name]
    return has(bits, vnni=vnni) and (not tiles or has(bits, vnni=vnni, tiles=True) or shutil.which("g++") is not None)


@contextlib.contextmanager
def chosen_set(name: str, emulated: Callable[[], Path]) -> Iterator[None]:
    """A set of instructions; AMX is emulated where the processor has all but that."""
    bits, vnni, tiles = SETS[name]
    with pytest.MonkeyPatch.context() as patch:
        if tiles and not has(bits, vnni=vnni, tiles=True):
            library = emulated()
            patch.setattr(loader, "native_library", lambda: library)
            assert ctypes.CDLL(str(library)).mkc_fast_has_tiles()
        with chosen(bits, vnni=vnni, tiles=tiles):
            yield


@pytest.fixture(params=[512, 256], ids=["AVX-512", "AVX2"])
def bits(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each instruction set that this processor has."""
    if not has(request.param, vnni=False):
        pytest.skip(f"this processor has no vectors of {request.param} bits")
    with chosen(request.param, vnni=True):
        assert ctypes.CDLL(str(native_library())).mkc_fast_vector_bits() == request.param
        yield request.param


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest, emulated_tiles: Callable[[], Path]) -> Iterator[str]:
    """Each set of instructions for whole numbers that this processor has, and AMX."""
    if not testable(request.param):
        pytest.skip(f"this processor has no {request.param}, or there is no compiler")
    with chosen_set(request.param, emulated_tiles):
        yield request.param


@pytest.fixture
def native_sets(emulated_tiles: Callable[[], Path]) -> list[contextlib.AbstractContextManager[None]]:
    """For each set of instructions for whole numbers that this processor has, and AMX, what chooses it."""
    return [chosen_set(name, emulated_tiles) for name in SETS if testable(name)]
