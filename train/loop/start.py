"""How a training of a network starts: its threads, its folder, the processes that share it, and its seed."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Any

import torch

from mkc_fast.errors import ArgumentError, OutputError
from mkc_fast.train.loop.processes import Processes, joined
from mkc_fast.train.loop.state import STATE_FILE
from mkc_fast.train.work_folder import work_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def use_threads(threads: int | None) -> None:
    """Let PyTorch's operators use so many threads on a CPU; None leaves them as they are.

    Raises:
        ArgumentError: There are none.
    """
    if threads is None:
        return
    if threads < 1:
        raise ArgumentError(f"threads is {threads}; expected at least 1")
    torch.set_num_threads(threads)


def folder_beside(out: Path, *, overwrite: bool) -> Path:
    """The folder ``<out>.training`` of state and log.

    Raises:
        OutputError: ``out`` is there without the state of its training, and may not be replaced.
    """
    work = out.absolute().with_name(f"{out.name}.training")
    if out.exists() and not overwrite and not (work / STATE_FILE).is_file():
        raise OutputError(f"{out}: already there; --overwrite replaces it")
    return work


@contextlib.contextmanager
def started(device: str, work: Path, described: Mapping[str, Any], *, overwrite: bool) -> Iterator[Processes]:
    """Join the processes of a training, of which the first holds its folder.

    Args:
        device: As ``joined`` takes it.
        work: The folder.
        described: What the training depends on, but for the number of processes.
        overwrite: Start over where it depends on something else.

    Raises:
        ArgumentError, DeviceError: As ``joined``.
        OutputError: As ``work_folder``.
    """
    with contextlib.ExitStack() as held:
        processes = held.enter_context(joined(device))
        if processes.first:
            everything = {**described, "processes": processes.count}
            held.enter_context(work_folder(work, everything, "the state of a training", overwrite=overwrite))
        processes.shared("")  # nobody reads the folder before it is ready
        yield processes


def shared_seed(processes: Processes, seed: int | None, before: Mapping[str, Any] | None) -> str:
    """The seed of all processes: that of the state from before, or that given, or one of the system's entropy."""
    drawn = secrets.token_hex(16) if seed is None else str(seed)
    return processes.shared(drawn if before is None else str(before["seed"]))
