"""Reads the log of a dry run: what was called, counted.

``python -m tests.fakes.cuda.dry_run.calls LOG`` prints the counts.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The null stream waits for all others, and all others wait for it.
NULL_STREAM = "0x0"


@dataclass
class Calls:
    """What was asked of CUDA, counted.

    Attributes:
        kernels: Launches, by the kernel's name without namespaces and template arguments.
        gemms: Matrix products of cuBLAS and cuBLASLt.
        plans: Execution plans that cuDNN was asked to make; one for each convolution or fused attention.
        executions: Of these plans.
        library_calls: Other calls of cuBLAS, cuDNN and cuRAND that compute, by name.
        copies: By direction and manner: ``H2D async``, ``D2H sync``. ``pageable`` is an asynchronous copy of memory
            that is not page-locked, which makes the host wait.
        copied_bytes: By direction: ``H2D``.
        sets: Fillings of memory.
        mallocs: Allocations of the device's memory.
        malloc_bytes: Bytes of these.
        frees: Of the device's memory.
        pins: Allocations of page-locked memory.
        short: Allocations that failed, for the device has no more.
        waits: Of the host, for a stream, an event or the device.
        null_stream: What was queued in the null stream.
        captures: Runs that were recorded as CUDA graphs.
        replays: Launches of recorded graphs.
        recorded_calls: What the recordings hold.
        refused: Calls during a recording that CUDA would refuse, or that the recording would lack.
        wrong: What CUDA would not have taken: grids, shared memory, pointers, streams, events; calls the stubs lack.
        redirected: Functions of CUDA runtimes linked into a module that were replaced by the stub's.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    gemms: int = 0
    plans: int = 0
    executions: int = 0
    library_calls: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    copied_bytes: Counter[str] = field(default_factory=Counter)
    sets: int = 0
    mallocs: int = 0
    malloc_bytes: int = 0
    frees: int = 0
    pins: int = 0
    short: int = 0
    waits: int = 0
    null_stream: int = 0
    captures: int = 0
    replays: int = 0
    recorded_calls: int = 0
    refused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    redirected: int = 0

    @property
    def host_copies(self) -> int:
        """Copies to or from the host."""
        return sum(number for way, number in self.copies.items() if not way.startswith("D2D"))

    @property
    def launches(self) -> int:
        """Kernels, products, executed plans and other calls that compute; each is at least one kernel on a GPU."""
        return self.kernels.total() + self.gemms + self.executions + self.library_calls.total()

    def to_json(self) -> dict[str, Any]:
        """For ``from_json``."""
        return dict(vars(self))  # asdict cannot make counters

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Calls:
        """What ``to_json`` gave."""
        made = cls(**said)
        for name in ("kernels", "library_calls", "copies", "copied_bytes"):
            setattr(made, name, Counter(said[name]))
        return made


class CallLog:
    """The file that the stubs write to, read piece by piece."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def take(self) -> Calls:
        """What was called since the last time."""
        if not self._path.exists():
            return Calls()
        with self._path.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._read)
            text = file.read()
            self._read = file.tell()
        return count(text.splitlines())


def count(lines: Iterable[str]) -> Calls:
    """Count the lines of a log.

    A line is a word, a stream (``-`` for none), an amount and a text: ``kernel 0x55d0 4096 _ZN11onnxruntime...``.
    """
    calls = Calls()
    for line in lines:
        word, stream, amount, text = line.split(" ", 3)
        calls.null_stream += stream == NULL_STREAM
        match word:
            case "kernel":
                calls.kernels[short_name(text)] += 1
            case "gemm":
                calls.gemms += 1
            case "plan":
                calls.plans += 1
            case "execute":
                calls.executions += 1
            case "library":
                calls.library_calls[text] += 1
            case "copy":
                calls.copies[text] += 1
                calls.copied_bytes[text.split()[0]] += int(amount)
            case "set":
                calls.sets += 1
            case "malloc":
                calls.mallocs += 1
                calls.malloc_bytes += int(amount)
            case "free":
                calls.frees += 1
            case "pin":
                calls.pins += 1
            case "short":
                calls.short += 1
            case "wait":
                calls.waits += 1
            case "capture":
                calls.captures += text == "begin"
            case "instantiate":
                calls.recorded_calls += int(amount)
            case "replay":
                calls.replays += 1
            case "refused":
                calls.refused.append(text)
            case "wrong":
                calls.wrong.append(text)
            case "redirect":
                calls.redirected += int(amount)
    return calls


def short_name(mangled: str) -> str:
    """``fill`` of ``_ZN11onnxruntime4cuda4fillIfEEvPT_``: the last of the nested names."""
    rest = mangled.removeprefix("_Z").removeprefix("N")
    name = ""
    while True:
        rest = rest.removeprefix("L")  # of a function that is local to its file
        digits = len(rest) - len(rest.lstrip("0123456789"))
        if not digits or not mangled.startswith("_Z"):
            return name or mangled
        length = int(rest[:digits])
        name, rest = rest[digits : digits + length], rest[digits + length :]


if __name__ == "__main__":
    print(json.dumps(CallLog(Path(sys.argv[1])).take().to_json(), indent=2))
