"""What made a data directory: model, bank, mode, level, versions and precision, in a file beside its manifest.

The manifest has the same settings, and the paths of the recordings, too. ``provenance.json`` has no paths, so it can be
published with the outputs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.artifacts import directory_name, open_bank
from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE, read_entries
from mkc_fast.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mkc_fast.engine.corpus.outputs import Folder

PROVENANCE_FILE = "provenance.json"
_VERSION = 1
# Settings of the manifest's first line that are copied as they are.
_COPIED = ("mode", "stride", "level", "kmeans_num", "format", "pad", "max_window_s")
# A file of a few hundred bytes; a larger one is something else.
_MAX_BYTES = 1 << 20


def write_provenance(
    folder: Folder,
    model: Path,
    bank: Path,
    *,
    silenced: int = 0,
    role: str | None = None,
    into: Path | None = None,
) -> Path:
    """Write ``provenance.json`` beside the manifest of a folder that is complete.

    Args:
        folder: The output folder; its manifest is read.
        model: What its outputs were made with.
        bank: What its draws are from.
        silenced: How many of its outputs are silence.
        role: ``attacker`` or ``user`` in an experiment of VoicePrivacy.
        into: Where it goes instead, if another directory has the same outputs.

    Returns:
        The file.

    Raises:
        OutputError: It cannot be written, or the manifest cannot be read.
    """
    settings, ran, _ = read_entries(folder.path / MANIFEST_FILE, utterances=False)
    content: dict[str, Any] = {
        "version": _VERSION,
        "model": {"name": directory_name(model), "id": settings.get("model")},
        "bank": {"name": directory_name(bank), "id": settings.get("bank"), "models": len(open_bank(bank).info.names)},
        **({} if role is None else {"role": role}),
        **{name: settings.get(name) for name in _COPIED},
        "seeded": settings.get("seed") is not None,
        "utterances": len(folder.utterances),
        "silence": silenced,
        "ran": ran,
    }
    return replace_provenance(into or folder.path, content)


def replace_provenance(record_dir: Path, content: Mapping[str, Any]) -> Path:
    """Write ``provenance.json`` with this content; returns the file.

    Raises:
        OutputError: It cannot be written.
    """
    target = record_dir / PROVENANCE_FILE
    try:
        with atomic_file(target) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from None
    return target


def read_provenance(record_dir: Path) -> dict[str, Any] | None:
    """What made the data directory whose manifest is in ``record_dir``; None if nothing says so.

    Raises:
        OutputError: The file is there, and cannot be read.
    """
    path = record_dir / PROVENANCE_FILE
    try:
        if not path.is_file():
            return None
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not JSON'})") from None
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise OutputError(f"{path}: not a provenance file of this version")
    return content
