"""The measures of an evaluation: their names, and which are made of those that were asked for and are possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

from mkc_fast.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Collection

Measure = Literal["privacy", "intelligibility", "quality", "pitch", "duration"]
PRIVACY: Final = "privacy"
INTELLIGIBILITY: Final = "intelligibility"
QUALITY: Final = "quality"
PITCH: Final = "pitch"
DURATION: Final = "duration"
MEASURES: tuple[Measure, ...] = get_args(Measure)


def wanted(only: Collection[str], skip: Collection[str]) -> tuple[Measure, ...]:
    """The measures to make.

    Args:
        only: These alone, if there are any.
        skip: Not these.

    Raises:
        ArgumentError: A name is unknown, or nothing is left.
    """
    for name in (*only, *skip):
        if name not in MEASURES:
            raise ArgumentError(f"the measure {name!r} is not known; expected one of {', '.join(MEASURES)}")
    left = tuple(name for name in MEASURES if (not only or name in only) and name not in skip)
    if not left:
        raise ArgumentError("no measure is left: all that are asked for are skipped")
    return left
