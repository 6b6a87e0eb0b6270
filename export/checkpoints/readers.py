"""Threads that read k-means models, with a common bound on their memory; they stop at once when told to."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from mkc_fast.export.checkpoints.pickles import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_T = TypeVar("_T")
_R = TypeVar("_R")
MEMORY_BYTES = 1 << 30  # eight models of the published size need half of it


@contextmanager
def reading(threads: int, memory: int = MEMORY_BYTES) -> Iterator[Readers]:
    """Yield threads that read. If the block ends with an exception, such as Ctrl-C, they stop reading.

    Args:
        threads: How many read at once, if the memory allows it.
        memory: Bytes that all of them may hold together. A model that needs more is read alone.
    """
    readers = Readers(threads, memory)
    try:
        yield readers
    except BaseException:
        readers.stop()
        raise
    finally:
        readers.close()


class Readers:
    """A thread pool with a bound on its memory; see ``reading``."""

    def __init__(self, threads: int, memory: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "read")
        self._memory = memory
        self._held = 0
        self._changed = threading.Condition()
        self._stop = False

    def stop(self) -> None:
        """Tell the threads to stop."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()

    def close(self) -> None:
        """Wait for the threads. Reads that have not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def stopped(self) -> bool:
        """Whether the threads were told to stop."""
        return self._stop

    def map(self, read: Callable[[_T], _R], items: Iterable[_T], memory_needed: Callable[[_T], int]) -> Iterator[_R]:
        """The results of ``read`` for each item, in their order; ``memory_needed`` says how many bytes one takes."""

        def run(item: _T) -> _R:
            size = memory_needed(item)
            self._hold(size)
            try:
                return read(item)
            finally:
                self._let_go(size)

        return self._pool.map(run, items)

    def _hold(self, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stop or not self._held or self._held + size <= self._memory)
            if self._stop:
                raise Stopped
            self._held += size

    def _let_go(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()
