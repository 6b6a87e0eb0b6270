"""Compiles kernels/*.cu for the CPU and runs its kernels on NumPy arrays."""

from __future__ import annotations

import atexit
import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[2] / "kernels" / "lookup" / "nearest.cu"
RESIDUAL = HERE.parents[2] / "kernels" / "cuda" / "residual.cu"
SOURCES = (SOURCE, *(HERE.parents[2] / "kernels" / "cuda" / f"{name}.cu" for name in ("rows", "segments")), RESIDUAL)
# What a parameter of this C++ type takes; void pointers take any array.
DTYPES = {"f": np.float32, "d": np.float64, "i": np.int32, "6float4": np.float32, "4int4": np.int32}
# Around every scratch array, so that writes past its ends show.
GUARD = 64
POISON = 0xA5


def kernel_names(*sources: Path) -> list[str]:
    """The kernels of these sources; by default of all."""
    text = "".join(source.read_text() for source in sources or SOURCES)
    return re.findall(r'extern "C" __global__ void[^(]*\([^)]*\)\s*(\w+)\(', text)


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels as a library; skips the test where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here: the CUDA source is not run on the CPU")
    folder = tempfile.mkdtemp(prefix="mkc-fast-shim-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / "nearest.so"
    kernels = " ".join(f"KERNEL({name})" for name in kernel_names())
    subprocess.run(
        [compiler, "-O2", "-std=c++20", "-shared", "-fPIC", "-march=native", "-ffp-contract=off", "-U_FORTIFY_SOURCE",
         "-Wno-unknown-pragmas", *(f"-I{source.parent}" for source in SOURCES), f"-DKERNELS={kernels}",
         HERE / "kernels.cpp", "-o", target],
        check=True,
    )  # fmt: skip
    loaded = ctypes.CDLL(str(target))
    loaded.shim_signature.restype = loaded.shim_launch.restype = ctypes.c_char_p
    return loaded


def run(
    kernel: str, blocks: int, threads: int, arguments: Sequence[Any], shared_bytes: int = 0, schedule: int = 0
) -> None:
    """Run a kernel, after comparing the types of its arguments with those of its parameters."""
    signature = library().shim_signature(kernel.encode())
    assert signature is not None, f"there is no kernel {kernel}"
    types = signature.decode().split()
    assert len(types) == len(arguments), f"{kernel} takes {len(types)} arguments, not {len(arguments)}"
    values: list[Any] = []
    for position, (kind, argument) in enumerate(zip(types, arguments, strict=True)):
        where = f"argument {position} of {kernel}"
        if not kind.startswith("P"):
            assert type(argument) is DTYPES[kind], f"{where} is {argument!r}, its parameter {kind}"
            values.append(ctypes.c_float(argument) if kind == "f" else ctypes.c_int(int(argument)))
            continue
        if argument is None:
            values.append(ctypes.c_void_p(None))
            continue
        pointed = kind[1:].removeprefix("K")
        assert isinstance(argument, np.ndarray), where
        assert argument.flags.c_contiguous, where
        assert pointed == "v" or argument.dtype == DTYPES[pointed], f"{where} is {argument.dtype}, not {pointed}"
        assert argument.ctypes.data % (16 if pointed[0].isdigit() else argument.itemsize) == 0, f"{where}: alignment"
        assert argument.flags.writeable or kind[1] == "K", f"{where} is written"
        values.append(ctypes.c_void_p(argument.ctypes.data))
    pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
    problem = library().shim_launch(kernel.encode(), blocks, threads, shared_bytes, pointers, schedule)
    assert not problem, f"{kernel}: {problem.decode()}"


def aligned(shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """An array full of poison, and all of its memory, with poison on either side of it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 2 * GUARD + 16, POISON, np.uint8)
    start = GUARD + -(memory.ctypes.data + GUARD) % 16
    return memory[start : start + size].view(dtype).reshape(shape), memory


def placed(values: np.ndarray) -> np.ndarray:
    """A copy at an address that 16 divides, as memory of a device has it."""
    array, _ = aligned(values.shape, values.dtype)
    array[:] = values
    return array


class ShimLauncher:
    """``launches.Launcher`` on the CPU. Scratch starts as poison, and writes past its ends are found."""

    def __init__(self, schedule: int = 0) -> None:
        self.schedule = schedule
        self.launched: list[str] = []
        self.arrays: dict[str, list[np.ndarray]] = {}
        self._memories: list[tuple[np.ndarray, np.ndarray]] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        array, memory = aligned(shape, dtype)
        self._memories.append((array, memory))
        return array

    def launch(self, kernel: str, blocks: int, threads: int, arguments: Sequence[Any], shared_bytes: int = 0) -> None:
        self.launched.append(kernel)
        self.arrays[kernel] = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        run(kernel, blocks, threads, arguments, shared_bytes, self.schedule)
        for array, memory in self._memories:
            start = array.ctypes.data - memory.ctypes.data
            assert (memory[:start] == POISON).all(), f"{kernel} writes before the start of a scratch array"
            assert (memory[start + array.nbytes :] == POISON).all(), f"{kernel} writes past the end of a scratch array"
