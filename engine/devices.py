"""Which devices there are, and what a device's name means."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mkc_fast.errors import DeviceError
from mkc_fast.names import CPU

if TYPE_CHECKING:
    from collections.abc import Callable

# Numbers of CUdevice_attribute.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
# Numbers of CUresult that say more than a number.
_PROBLEMS = {
    100: "the driver shows no GPU to this process (is CUDA_VISIBLE_DEVICES set?)",
    803: "the driver's library and kernel module are of different versions; restart the machine",
}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Gpu:
    """A CUDA device.

    Attributes:
        index: Its ordinal, the number in ``cuda:0``.
        name: As the driver says it.
        capability: Compute capability, (major, minor).
        memory_bytes: Of the whole device.
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True)
class Driver:
    """What NVIDIA's driver says.

    Attributes:
        found: Whether there is one.
        version: Its own, as ``580.65.06``; None where it does not say.
        cuda: The latest CUDA that it runs, (major, minor); None where it does not say.
        gpus: The devices that it shows to this process (``CUDA_VISIBLE_DEVICES`` may hide some).
        problem: Why there are none although there is a driver, None otherwise.
    """

    found: bool = False
    version: str | None = None
    cuda: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


def read_driver(load: Callable[[str], Any] = ctypes.CDLL) -> Driver:
    """Ask the driver itself, without making a context on any device."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda = load(library)
        except OSError:
            continue
        version, cuda_version = _driver_version(load), ctypes.c_int()
        known = cuda.cuDriverGetVersion(ctypes.byref(cuda_version)) == 0
        runs = (cuda_version.value // 1000, cuda_version.value % 1000 // 10) if known else None
        count = ctypes.c_int()
        code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
        if code:
            return Driver(True, version, runs, (), _PROBLEMS.get(code, f"the driver answers with CUDA error {code}"))
        gpus = tuple(_gpu(cuda, ordinal) for ordinal in range(count.value))
        return Driver(True, version, runs, gpus, None if gpus else _PROBLEMS[100])
    return Driver()


def _gpu(cuda: Any, ordinal: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
    if cuda.cuDeviceGet(ctypes.byref(device), ordinal) or cuda.cuDeviceGetName(name, 128, device):
        return Gpu(ordinal, "unknown", (0, 0), 0)
    memory = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(ordinal, name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value)


def _driver_version(load: Callable[[str], Any]) -> str | None:
    """The driver's own version, which only its management library tells."""
    for library in ("libnvidia-ml.so.1", "nvml.dll"):
        try:
            nvml = load(library)
        except OSError:
            continue
        version = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2():
            continue
        known = nvml.nvmlSystemGetDriverVersion(version, 96) == 0
        nvml.nvmlShutdown()
        return version.value.decode(errors="replace") if known else None
    return None


@functools.cache
def driver() -> Driver:
    """What the driver says, asked once."""
    return read_driver()


def cuda_device_names() -> tuple[str, ...]:
    """Names of the CUDA devices that the driver shows; () without a driver."""
    return tuple(gpu.name for gpu in driver().gpus)


def cuda_index(device: str) -> int | None:
    """The ordinal of ``cuda:1`` (``cuda`` is ``cuda:0``), None for ``cpu``.

    Raises:
        DeviceError: It is neither, or that CUDA device is not here.
    """
    index = parse_device(device)
    if index is not None and index >= len(cuda_device_names()):
        raise DeviceError(f"device {device}: not here; here are: {_here()}")
    return index


def device_kind(device: str) -> str:
    """``cpu``, or the name of the GPU: devices of one kind compute the same to the last bit.

    Raises:
        DeviceError: The device is not here.
    """
    index = cuda_index(device)
    return CPU if index is None else driver().gpus[index].name


def parse_device(device: str) -> int | None:
    """As ``cuda_index``, whether that CUDA device is here or not.

    Raises:
        DeviceError: It is no device's name.
    """
    if device == CPU:
        return None
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if not match:
        raise DeviceError(f"device {device[:40]!r}: expected cpu or cuda:<number>; here are: {_here()}")
    return int(match.group(1) or 0)


def _here() -> str:
    return ", ".join([CPU, *(f"cuda:{index} ({name})" for index, name in enumerate(cuda_device_names()))])
