"""The record of an evaluation: ``evaluation.json``, and the page that shows it."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from mkc_fast import __version__
from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.errors import OutputError
from mkc_fast.evaluation.intervals import LEVEL
from mkc_fast.extras import missing_packages
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mkc_fast.evaluation.intervals import Bootstrap

FORMAT: Final = "mkc-fast evaluation"
VERSION: Final = 1
RECORD_FILE, PAGE_FILE = "evaluation.json", "evaluation.html"
# What a reader must know before a number.
CAVEATS: Final = (
    (
        "No attacker is trained here. An attacker who trains speaker verification on speech that was anonymized in the "
        "same way finds speakers that this verifier does not, so equal error rates here overstate the privacy."
    ),
    (
        "The VoicePrivacy toolkits train such an attacker, and recognizers of speech and emotion: publish their "
        "figures. mkc-fast vpc anonymizes their sets."
    ),
    "Figures of two evaluations can be compared only if models, recordings and trials are the same.",
)
_ABSOLUTE = re.compile(r"(?<![\w./~-])/(?:[^/\s:'\"]+/)+")  # the folders of a path
_logger = logging.getLogger("mkc_fast")


def make_record(
    counts: Mapping[str, Any],
    results: Mapping[Any, Mapping[str, Any]],
    without: Mapping[Any, str],
    failed: Mapping[str, str],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """The record, of values that JSON has.

    Args:
        counts: Of recordings and speakers.
        results: Of each measure.
        without: Why a measure was not made.
        failed: Why a recording failed, by utterance.
        bootstrap: How the intervals were made.
    """
    record = {
        "format": FORMAT,
        "version": VERSION,
        "mkc_fast": __version__,
        "python": platform.python_version(),
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d"),
        "is_not": list(CAVEATS),
        "recordings": dict(counts),
        "intervals": {
            **asdict(bootstrap),
            "level": LEVEL,
            "resampled": "speakers for equal error rates, utterances for all else",
        },
        "measures": {str(measure): dict(result) for measure, result in results.items()},
        "not_measured": {str(measure): reason for measure, reason in without.items()},
        "failed": dict(failed),
    }
    return cast("dict[str, Any]", json.loads(json.dumps(record)))  # as a reader of the file has it: lists, not tuples


def without_folders(text: str, paths: Iterable[str | os.PathLike[str] | None]) -> str:
    """A message in which paths have lost the folders that lead to them: records are published.

    Args:
        text: The message.
        paths: That it may hold, or paths below them; of other paths only absolute ones without spaces lose theirs.
    """
    folders = {str(Path(path).parent) for path in paths if path is not None} - {os.curdir, os.sep}
    for folder in sorted({*folders, *(printable(each, 300) for each in folders)}, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./~-]){re.escape(folder)}{re.escape(os.sep)}", "", text)
    return _ABSOLUTE.sub("", text)


def make_folder(folder: Path) -> None:
    """Make the output folder, if it is not there.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None


def write_record(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """Write ``evaluation.json`` and ``evaluation.html``, each atomically; without the page's packages a warning.

    Raises:
        OutputError: The folder cannot be written.
    """
    contents = {RECORD_FILE: json.dumps(record, indent=1, ensure_ascii=False) + "\n"}
    missing = missing_packages("jinja2", "matplotlib")
    if missing is None:
        from mkc_fast.evaluation.page import build_page

        contents[PAGE_FILE] = build_page(record)
    else:
        _logger.warning("no %s is written: it needs %s", PAGE_FILE, missing)
    make_folder(folder)
    written = []
    try:
        for name, content in contents.items():
            with atomic_file(folder / name) as temporary:
                temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
            written.append(folder / name)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    return written
