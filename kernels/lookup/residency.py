"""Which bank entries lie on a device that cannot hold them all: the least recently used make room, round by round."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Of 1,165 entries of 4 MB so many are 64 MB: long enough a copy to pay for a round's launches, short enough to overlap.
_UPLOADS_PER_ROUND = 16


@dataclass(frozen=True)
class Round:
    """A part of a call's entries that are on the device together.

    Attributes:
        slots: Where each of them lies, by entry.
        uploads: Those of them that must be copied there first; the others are there.
    """

    slots: dict[int, int]
    uploads: tuple[int, ...]


class SlotCache:
    """Remembers which entry each of a number of slots holds."""

    def __init__(self, num_slots: int) -> None:
        self._slots: OrderedDict[int, int] = OrderedDict()  # by entry, least recently used first
        self._free = list(range(num_slots))[::-1]
        # At most half, so that one round's entries can come while the last round's are read.
        self._per_round = max(1, min(_UPLOADS_PER_ROUND, num_slots // 2))

    def rounds(self, entries: Iterable[int]) -> Iterator[Round]:
        """Rounds over these entries; the first has those that are there already, and may be empty.

        A round's uploads must be done, or queued before its reads, when the next round is asked for.
        """
        wanted = sorted(set(entries))
        there = [entry for entry in wanted if entry in self._slots]
        for entry in there:
            self._slots.move_to_end(entry)
        missing = [entry for entry in wanted if entry not in self._slots]
        if there or not missing:
            yield Round({entry: self._slots[entry] for entry in there}, ())
        for start in range(0, len(missing), self._per_round):
            uploads = tuple(missing[start : start + self._per_round])
            for entry in uploads:
                self._slots[entry] = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
            yield Round({entry: self._slots[entry] for entry in uploads}, uploads)
