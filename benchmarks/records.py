"""Benchmark results as JSON: what was measured, on which machine, with which versions, by which command and when.

In results the baseline's values have keys with ``practice``, as in the first files.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mkc_fast import __version__
from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.devices import cores, driver
from mkc_fast.errors import ArtifactError, OutputError

_PACKAGES = (
    "mkc-fast", "numpy", "onnxruntime-gpu", "onnxruntime", "cupy-cuda12x", "cupy-cuda13x", "tensorrt-cu13", "torch",
    "onnx", "soundfile", "soxr", "scikit-learn", "faiss-cpu",
)  # fmt: skip
_MAX_RECORD_BYTES = 1 << 26


def context() -> dict[str, Any]:
    """Machine, system, versions, commit (or else the version), command and date.

    Paths in the command are cut to their last part, so that a record says nothing of whose machine it was.
    """
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpus = [f"{gpu.name} ({gpu.memory_bytes / 2**30:.0f} GiB)" for gpu in driver().gpus]
    try:
        load = round(os.getloadavg()[0], 1)
    except (AttributeError, OSError):
        load = None
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": cores(),
            "memory_gib": _memory_gib(),
            "gpu": ", ".join(gpus) or None,
            "load_average": load,
        },
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "command": " ".join([_program(), *map(_shown, sys.argv[1:])]),
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d"),
    }


def write_record(path: Path, result: dict[str, Any]) -> None:
    """Write a result to a file, the context first; written atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = result if "machine" in result else {**context(), **result}
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def read_record(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        ArtifactError: The file is no JSON object, or cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            raise ArtifactError(f"{path}: too large for a benchmark's result")
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path}: not JSON") from None
    if not isinstance(record, dict):
        raise ArtifactError(f"{path}: not a benchmark's result")
    return record


def short(value: float, digits: int = 3) -> float:
    """A measured number to so many significant digits."""
    return float(f"{value:.{digits}g}")


def _program() -> str:
    module = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m
    if module is not None and module.name.startswith("mkc_fast.benchmarks."):
        return f"python -m {module.name.removesuffix('.__main__')}"
    name = Path(sys.argv[0]).name
    return "mkc-fast" if name in {"mkc-fast", "__main__.py"} else f"python {name}"


def _shown(argument: str) -> str:
    """An argument without the folders of this machine."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if "/" in value else argument


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _commit() -> str:
    """Of the clone that this code is in; outside of one, the version."""
    if not (Path(__file__).resolve().parents[1] / ".git").exists():
        return f"version {__version__}"
    commit = _git("rev-parse", "--short", "HEAD")
    return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip()
