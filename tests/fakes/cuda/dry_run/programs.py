"""Runs a whole program over the stubs, and counts what it calls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.cuda.dry_run.build import Stubs
from tests.fakes.cuda.dry_run.calls import CallLog, Calls

ROOT = Path(__file__).resolve().parents[4]


@dataclass(frozen=True)
class Program:
    """What a program called, itself and by the processes that it started, and what it wrote."""

    calls: Calls
    output: str


class ProgramError(Exception):
    """The program failed: the end of what it wrote."""


def run_python(
    stubs: Stubs,
    code: str,
    folder: Path,
    arguments: Sequence[str] = (),
    *,
    memory_mb: int | None = None,
    cupy_cache: Path | None = None,
) -> Program:
    """Run Python code in a process of its own.

    Args:
        stubs: The libraries.
        code: The program.
        folder: For the log.
        arguments: Of the program.
        memory_mb: What the device has.
        cupy_cache: Where CuPy keeps compiled kernels.

    Raises:
        ProgramError: The exit code is not 0.
    """
    log = folder / "calls"
    log.unlink(missing_ok=True)
    environment = os.environ | stubs.environment(log, memory_mb)
    if cupy_cache is not None:
        environment["CUPY_CACHE_DIR"] = str(cupy_cache)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProgramError(f"exit code {done.returncode}: {done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return Program(CallLog(log).take(), done.stdout)
