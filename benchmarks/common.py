"""What every benchmark records about where and how it ran, and how a command is timed."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "mkc-fast",
    "numpy",
    "onnxruntime-gpu",
    "onnxruntime",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "tensorrt-cu13",
    "torch",
    "onnx",
    "soundfile",
    "soxr",
    "scikit-learn",
)


def context() -> dict[str, Any]:
    """Machine, versions, commit, command and date."""
    cpu = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory_gib, 1), "gpu": None},
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "command": " ".join(["python", Path(sys.argv[0]).name, *map(_shown, sys.argv[1:])]),
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d"),
    }


def _shown(argument: str) -> str:
    """An argument without the folders of this machine."""
    return Path(argument).name if "/" in argument else argument


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    try:
        run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # a machine that is lent for an hour has no git
        return ""
    return run.stdout.strip()


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write ``results/<name>.json``, the context first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**context(), **result}, indent=1) + "\n")
    return path


def run_timed(command: list[str]) -> dict[str, Any]:
    """Run a command; wall-clock seconds and the peak memory of its process, in GB."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return {"seconds": round(seconds, 2), "peak_gb": round(usage.ru_maxrss / 1e6, 2), "output": output}


def program() -> str:
    """The ``mkc-fast`` beside this interpreter."""
    return str(Path(sys.executable).parent / "mkc-fast")
