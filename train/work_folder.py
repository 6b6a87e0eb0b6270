"""The folder beside an output where a long piece of work keeps what is finished, so that it can be continued."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.atomic_files import atomic_file, locked
from mkc_fast.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_SETTINGS, _LOCK = "settings.json", "lock"


@contextlib.contextmanager
def work_folder(work: Path, described: Mapping[str, Any], what: str, *, overwrite: bool) -> Iterator[None]:
    """Hold a folder of finished pieces, made or continued; only one process at a time does.

    Args:
        work: The folder.
        described: What the pieces depend on, as JSON has it, by names that an error lists.
        what: The pieces, for the error.
        overwrite: Remove pieces that depend on something else, rather than refuse them.

    Raises:
        OutputError: They depend on something else, or the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            work.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(work / _LOCK))
            _prepare(work, described, what, overwrite=overwrite)
        except OSError as error:
            raise OutputError(f"{work}: cannot be written ({error.strerror})") from None
        yield


def _prepare(work: Path, described: Mapping[str, Any], what: str, *, overwrite: bool) -> None:
    """Note what the pieces in a folder depend on; those of other settings are removed, or refused."""
    said = work / _SETTINGS
    if said.is_file():
        try:
            before = json.loads(said.read_text())
        except ValueError:
            raise OutputError(f"{said}: not readable; remove the folder") from None
        changed = [name for name in described if before.get(name) != described[name]]
        pieces = [path for path in work.iterdir() if path.name not in {_SETTINGS, _LOCK}]
        if changed and pieces and not overwrite:
            raise OutputError(f"{work}: holds {what} with another {', '.join(changed)}; --overwrite starts over")
        for path in pieces if changed else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    with atomic_file(said) as temporary:
        temporary.write_text(json.dumps(described))
