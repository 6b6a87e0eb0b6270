"""The state of a training on disk: everything that its next steps depend on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.errors import CheckpointError, OutputError
from mkc_fast.export.checkpoints.torch_files import load_torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STATE_FILE = "state.pt"  # in the folder of a training


def save_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain data, atomically and onto the disk.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise OutputError(f"{path}: cannot be written ({reason})") from None


def load_state(path: Path, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Read a state that ``save_torch`` wrote; None where there is none.

    Args:
        path: The file.
        names: That it must have.

    Raises:
        CheckpointError: It is damaged.
    """
    if not path.is_file():
        return None
    state = load_torch(path)
    missing = [name for name in names if name not in state]
    if missing:
        raise CheckpointError(f"{path}: no state of a training: lacks {', '.join(missing)}; remove its folder")
    return state
