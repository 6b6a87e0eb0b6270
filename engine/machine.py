"""Facts about the machine and its Python for a person to read: cores, memory, installed packages."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from mkc_fast.engine.devices import cores
from mkc_fast.kernels.cpu.loader import instruction_set


@dataclass(frozen=True)
class Host:
    """The machine around the GPUs; memory is what this process may have, in bytes.

    ``operators`` is the instruction set of the native operators, empty where they are not built or not for this CPU.
    """

    system: str
    python: str
    cores: int
    memory_bytes: int
    available_bytes: int
    operators: str = ""


def read_host() -> Host:
    """The machine that this runs on."""
    memory = available = 0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with contextlib.suppress(OSError):
        # Read here and not by psutil: for one number, the engine does without one more package.
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        available = int(match[1]) * 1024 if match else available
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    system, python = platform.platform(terse=True), platform.python_version()
    return Host(system, python, cores(), memory, min(memory, available), instruction_set())


def installed_packages() -> dict[str, tuple[tuple[str, str], ...]]:
    """Installed packages, (name, version), by what they are imported as."""
    found = importlib.metadata.packages_distributions()
    return {
        package: tuple((name, importlib.metadata.version(name)) for name in sorted(set(found.get(package, []))))
        for package in ("onnxruntime", "cupy", "torch", "tensorrt")
    }


def module_version(name: str) -> str:
    """What a module says of itself and of the library under it; it raises what importing it raises."""
    module = importlib.import_module(name)
    beneath = getattr(module, "__libsndfile_version__", None) or getattr(module, "__libsoxr_version__", None)
    return f"{module.__version__}" + (f" over {beneath}" if beneath else "")
