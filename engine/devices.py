"""Which devices there are, and what a device's name means."""

from __future__ import annotations

import ctypes
import functools
import re

from mkc_fast import DeviceError


@functools.cache
def cuda_device_names() -> tuple[str, ...]:
    """Names of the CUDA devices that the driver shows, asked of the driver itself; () without a driver."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        count = ctypes.c_int()
        if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
            continue
        names = []
        for ordinal in range(count.value):
            device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
            known = not (cuda.cuDeviceGet(ctypes.byref(device), ordinal) or cuda.cuDeviceGetName(name, 128, device))
            names.append(name.value.decode(errors="replace") if known else "unknown")
        return tuple(names)
    return ()


def cuda_index(device: str) -> int | None:
    """The ordinal of ``cuda:1`` (``cuda`` is ``cuda:0``), None for ``cpu``.

    Raises:
        DeviceError: It is neither, or that CUDA device is not here.
    """
    if device == "cpu":
        return None
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if not match:
        raise DeviceError(f"device {device[:40]!r}: expected cpu or cuda:<number>; here are: {_here()}")
    index = int(match.group(1) or 0)
    if index >= len(cuda_device_names()):
        raise DeviceError(f"device {device}: not here; here are: {_here()}")
    return index


def _here() -> str:
    return ", ".join(["cpu", *(f"cuda:{index} ({name})" for index, name in enumerate(cuda_device_names()))])
