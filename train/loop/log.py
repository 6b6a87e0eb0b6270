"""The log of a training: a line of JSON for each step, and TensorBoard's events where they are asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.errors import OutputError
from mkc_fast.extras import required

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class StepLog:
    """Appends lines to a file; nothing in them depends on the clock, so that equal trainings have equal logs.

    Args:
        path: The file.
        step: Lines of later steps, of a run that was stopped, are removed.
        tensorboard: Folder of TensorBoard's events.

    Raises:
        MkcError: TensorBoard is not installed.
        OutputError: A file cannot be written.
    """

    def __init__(self, path: Path, step: int, tensorboard: Path | None = None) -> None:
        self._events: Any = None
        if tensorboard is not None:
            with required("writing TensorBoard's events", "tensorboard"):
                from torch.utils.tensorboard import SummaryWriter
        self._path = path
        try:
            if tensorboard is not None:
                self._events = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)
            kept = [line for line in path.read_text().splitlines(True) if _step(line) <= step] if path.is_file() else []
            with atomic_file(path) as temporary:
                temporary.write_text("".join(kept))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{error.filename or path}: cannot be written ({error.strerror})") from None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write what is known of a step.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror})") from None
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def _step(line: str) -> float:
    """The step of a line; past all steps where it was cut off."""
    if not line.endswith("\n"):
        return float("inf")
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
