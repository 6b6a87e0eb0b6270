"""Makes the next inputs in threads while the present one is used."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_T = TypeVar("_T")
_R = TypeVar("_R")


def prefetched(make: Callable[[_T], _R], items: Iterable[_T], threads: int = 1) -> Iterator[_R]:
    """``map(make, items)``, in their order, with as many made in advance as there are threads."""
    with ThreadPoolExecutor(threads, "prefetch") as pool:
        waiting: deque[Future[_R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
