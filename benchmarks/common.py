"""What the scripts of this package share: where their results go, and how they time a command."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mkc_fast.benchmarks.records import context, write_record

RESULTS = Path("benchmarks", "results")


def repository(start: Path | None = None) -> Path | None:
    """The root of the clone of this project that a folder is in (default: the working directory), if it is in one."""
    start = (start or Path.cwd()).resolve()
    return next((folder for folder in (start, *start.parents) if (folder / RESULTS).is_dir()), None)


def result_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """A script's parser with ``--out``, the result file: by default ``benchmarks/results/NAME.json`` of the clone.

    Outside of a clone ``--out`` is required, so that a script says so before it measures anything.
    """
    root = repository()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=None if root is None else root / RESULTS / f"{name}.json",
        required=root is None,
        help=f"the result file (default: {RESULTS / name}.json of the clone that the working directory is in)",
    )
    return parser


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result file, the context first, and print its path."""
    write_record(path, {**context(), **result})
    print(path)


def run_timed(command: list[str]) -> dict[str, Any]:
    """Run a command; wall-clock seconds, the peak memory of its process in GB, and what it printed.

    Raises:
        SystemExit: The command failed.
    """
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
