"""Where files are kept that can be made again: converted checkpoints, engines, prepared graphs, known digests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:
    from os import PathLike

VARIABLE = "MKC_FAST_CACHE"


def default_cache() -> Path:
    """``$MKC_FAST_CACHE``, else ``mkc-fast`` in the user's cache folder as the platform defines it.

    On Linux that is ``$XDG_CACHE_HOME/mkc-fast`` or ``~/.cache/mkc-fast``, on macOS ``~/Library/Caches/mkc-fast``.
    """
    if folder := os.environ.get(VARIABLE):
        return Path(folder)
    return platformdirs.user_cache_path("mkc-fast", appauthor=False)


def cache_folder(cache: str | PathLike[str] | bool) -> Path | None:
    """The folder that an argument ``cache`` names: True is the default cache folder, False is none."""
    if isinstance(cache, bool):
        return default_cache() if cache else None
    return Path(cache)
