"""Where the scripts here put their results, and how they time a command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mkc_fast.benchmarks.records import context, write_record

__all__ = ["RESULTS", "context", "program", "run_timed", "write_result"]

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any], path: Path | None = None) -> Path:
    """Write ``results/<name>.json``, or ``path``, the context first."""
    path = path or RESULTS / f"{name}.json"
    write_record(path, {**context(), **result})
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
