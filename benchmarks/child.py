"""Fresh processes that a benchmark starts, and what they and the system report about their times and memory.

A child gets its arguments as one JSON text, prints one line of JSON when it is ready, and then waits for the end of its
input, so that its memory can be read while it, or several of it, still hold it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path


def run_children(module: str, arguments: Sequence[dict[str, Any]], timeout_s: float = 300.0) -> list[dict[str, Any]]:
    """Start ``python -m module`` for each of the arguments, each when the one before is ready; return their reports.

    Added to each report: ``ready_s``, wall-clock seconds from its start until it reported, and, once all are ready,
    what ``memory_mb`` finds.

    Raises:
        MkcError: A child failed, or took longer than ``timeout_s``.
    """
    from mkc_fast.benchmarks.memory import memory_mb  # late: children import this module, and their start is timed

    with contextlib.ExitStack() as stack:
        children, reports = [], []
        for argument in arguments:
            begin = time.perf_counter()
            child = stack.enter_context(_child(module, argument))
            reports.append(_report(child, timeout_s))
            reports[-1]["ready_s"] = time.perf_counter() - begin
            children.append(child)
        for child, report in zip(children, reports, strict=True):
            report.update(memory_mb(child.pid))
        return reports


@contextlib.contextmanager
def _child(module: str, argument: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(argument)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    except BaseException:
        child.kill()  # an interrupt, or its partner failed: it is no longer needed
        raise
    finally:
        assert child.stdin is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        for stream in (child.stdout, child.stderr):
            assert stream is not None
            stream.close()


def _report(child: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    import threading

    assert child.stdout is not None
    assert child.stderr is not None
    timer = threading.Timer(timeout_s, child.kill)
    timer.start()
    try:
        line = child.stdout.readline()
    finally:
        timer.cancel()
    try:
        report = json.loads(line)
    except ValueError:
        report = None
    if not isinstance(report, dict):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        child.kill()
        lines = child.stderr.read().strip().splitlines()
        raise MkcError(f"a process of the benchmark failed: {lines[-1] if lines else f'exit code {child.returncode}'}")
    return report


def serve(work: Callable[[dict[str, Any]], tuple[dict[str, Any], object]]) -> None:
    """The child's side: do the work, report, and hold what came of it until the end of the input."""
    report, held = work(json.loads(sys.argv[1]))
    print(json.dumps(report), flush=True)
    sys.stdin.read()
    del held


def read_through(paths: Iterable[Path]) -> None:
    """Read files once, so that what is timed next finds them in the page cache."""
    buffer = bytearray(1 << 24)
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
