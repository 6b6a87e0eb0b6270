"""Lists the objects below an address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkc_fast.engine.storage.file_systems import file_system, in_one_line

if TYPE_CHECKING:
    from mkc_fast.errors import MkcError


def objects_below(url: str, kind: type[MkcError], *, hidden: bool = False) -> dict[str, int]:
    """The sizes of the objects below an address by their names there (``spk/utt.wav``); none if there are none.

    Stores list some 1,000 names a request. Names that begin with a dot, and what lies below such, are left out, unless
    ``hidden`` is true.

    Raises:
        MkcError: Of the kind given: the store cannot be asked, or the bucket is not there.
    """
    with in_one_line(url, kind):
        found, name = file_system(url)
        found.invalidate_cache()
        top = name.rstrip("/") + "/"
        try:
            listed = found.find(name, detail=True)
        except FileNotFoundError:
            return {}
        sizes = {path[len(top) :]: facts.get("size") for path, facts in listed.items() if path.startswith(top)}
        return {below: int(size or 0) for below, size in sizes.items() if hidden or not _is_hidden(below)}


def matching_objects(pattern: str, kind: type[MkcError]) -> list[str]:
    """The addresses that match a pattern with ``*``, ``?`` or ``[…]``, sorted.

    Raises:
        MkcError: Of the kind given: the store cannot be asked.
    """
    with in_one_line(pattern, kind):
        found, name = file_system(pattern)
        found.invalidate_cache()
        return sorted(found.unstrip_protocol(path) for path in found.glob(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name
