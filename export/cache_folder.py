"""The cache folder that an export also writes into, so that the first load of the artifact is quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.cache_folder import default_cache

if TYPE_CHECKING:
    from os import PathLike


def cache_folder(cache: str | PathLike[str] | bool) -> Path | None:
    """The folder that the argument ``cache`` of an export names: True is the user's cache folder, False is none.

    The user's cache folder is ``$MKC_FAST_CACHE``, else ``mkc-fast`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if isinstance(cache, bool):
        return default_cache() if cache else None
    return Path(cache)
