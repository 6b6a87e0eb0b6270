"""Recognizes a checkout of a VoicePrivacy toolkit: its year, and which tracks it has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from pathlib import Path

RUNNER = "run_anonymization.py"
PIPELINES = "anonymization/pipelines"
CONFIGS = "configs"
_NEEDED = (RUNNER, PIPELINES, CONFIGS)
_TRACKS_2026 = (1, 2)
# A toolkit that imports its pipelines by name, but knows none of the name 'template', as VoicePAT does.
_IMPORTS_BY_NAME = re.compile(r"from\s+anonymization\.pipelines\b.*\bimport\b")


@dataclass(frozen=True)
class Checkout:
    """A checkout of a toolkit.

    Attributes:
        year: 2024 or 2026.
        root: Its folder, absolute: the working directory of its scripts.
        tracks: Those that it has configs of; 2024 has track 1.
    """

    year: int
    root: Path
    tracks: tuple[int, ...]

    def config(self, track: int, name: str) -> str:
        """The place of a track's config, relative to the root."""
        return f"{CONFIGS}/{name}" if self.year == 2024 else f"{CONFIGS}/track{track}/{name}"


def recognize(path: Path) -> Checkout:
    """Recognize a checkout of VoicePrivacy-Challenge-2024 or -2026.

    Raises:
        MkcError: It is neither; says what was looked for.
    """
    root = path.absolute()
    missing = [name for name in _NEEDED if not (root / name).exists()]
    if missing:
        raise MkcError(
            f"{path}: is no checkout of VoicePrivacy-Challenge-2024 or -2026: it has no {', '.join(missing)}; "
            f"expected {', '.join(_NEEDED)}"
        )
    _check_runner(root)
    tracks = tuple(track for track in _TRACKS_2026 if (root / CONFIGS / f"track{track}").is_dir())
    if tracks:
        return Checkout(2026, root, tracks)
    if any((root / f"02_run_track{track}.sh").exists() for track in _TRACKS_2026):
        raise MkcError(
            f"{path}: is a checkout of VoicePrivacy-Challenge-2026 without configs/track1 and configs/track2"
        )
    return Checkout(2024, root, (1,))


def _check_runner(root: Path) -> None:
    """Check that the toolkit can run a pipeline of the name that is installed."""
    runner = root / RUNNER
    try:
        text = runner.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise MkcError(f"{runner}: cannot be read ({error.strerror})") from None
    if _IMPORTS_BY_NAME.search(text) and "template" not in text:
        raise MkcError(
            f"{runner}: knows no pipeline 'template', as those of VoicePrivacy-Challenge-2024 and -2026 do; "
            "get a newer version of the toolkit"
        )
