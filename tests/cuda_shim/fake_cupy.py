"""As much of CuPy as kernels/cupy_lookup.py uses, over the CUDA stand-in: for a machine without a GPU.

Everything that CuPy queues on a stream is put off until somebody waits, and then done in an order that the streams and
events allow, chosen by ``schedule``: 0 prefers the stream made first, 1 the one made last, others mix them. A missing
wait reads what is not yet there, or what is no longer there.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.cuda_shim import shim

DEFAULT_SHARED_BYTES = 48 << 10


class FakeCupy(ModuleType):
    """The module ``cupy``."""

    def __init__(
        self, *, schedule: int = 0, free_bytes: int = 1 << 30, multiprocessors: int = 1, shared_bytes: int = 100 << 10
    ) -> None:
        super().__init__("cupy")
        self.queues = _Queues(schedule)
        self.launched: list[str] = []
        self.free_bytes = free_bytes
        queues, outer = self.queues, self

        class Stream:
            def __init__(self, *, non_blocking: bool = False) -> None:
                self.queue: deque[Any] = deque()
                queues.streams.append(self)

            def __enter__(self) -> Any:
                queues.current.append(self)
                return self

            def __exit__(self, *_: object) -> None:
                queues.current.pop()

            def wait_event(self, event: Event) -> None:
                if event.mark:
                    self.queue.append(event.mark)

            def synchronize(self) -> None:
                queues.run_until(lambda: not self.queue)

        class Event:
            def __init__(self, *, disable_timing: bool = False) -> None:
                self.mark: _Mark | None = None

            def record(self, stream: Stream | None = None) -> None:
                self.mark = mark = _Mark()
                (stream or queues.current[-1]).queue.append(mark.reach)

            def synchronize(self) -> None:
                mark = self.mark
                queues.run_until(lambda: mark is None or mark.reached)

        class Device:
            def __init__(self, device: int) -> None:
                self.id = device
                self.attributes = {
                    "MultiProcessorCount": multiprocessors,
                    "MaxSharedMemoryPerBlockOptin": shared_bytes - 1024,
                    "MaxSharedMemoryPerMultiprocessor": shared_bytes,
                }

            @property
            def mem_info(self) -> tuple[int, int]:
                return outer.free_bytes, outer.free_bytes

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None: ...

        class OutOfMemoryError(MemoryError): ...

        class CompileException(Exception): ...

        class CUDARuntimeError(RuntimeError): ...

        class ndarray:  # noqa: N801 - CuPy's name
            """An array whose values are there once its stream has come so far."""

            def __init__(self, host: np.ndarray) -> None:
                self.host = host
                self.shape, self.ndim, self.dtype = host.shape, host.ndim, host.dtype
                self.flags = SimpleNamespace(c_contiguous=host.flags.c_contiguous)
                self.data = SimpleNamespace(ptr=host.ctypes.data)

            def __len__(self) -> int:
                return len(self.host)

            def __getitem__(self, part: slice | tuple[slice, ...]) -> ndarray:
                return ndarray(self.host[part])

            def set(self, values: np.ndarray, stream: Stream | None = None) -> None:
                assert values.shape == self.shape
                assert values.dtype == self.dtype
                queues.put(lambda: np.copyto(self.host, values), stream)

            def get(self) -> np.ndarray:
                values = np.empty_like(self.host)
                queues.put(lambda: np.copyto(values, self.host))
                queues.current[-1].synchronize()
                return values

            def astype(self, dtype: Any) -> ndarray:
                result = ndarray(np.zeros(self.shape, dtype))
                queues.put(lambda: np.copyto(result.host, self.host, casting="unsafe"))
                return result

        class Kernel:
            def __init__(self, name: str) -> None:
                assert name in shim.kernel_names()
                self.name, self.max_dynamic_shared_size_bytes = name, DEFAULT_SHARED_BYTES
                self.preferred_shared_memory_carveout = -1

            def __call__(
                self, grid: tuple[int], block: tuple[int], arguments: Sequence[Any], *, shared_mem: int = 0
            ) -> None:
                assert shared_mem <= self.max_dynamic_shared_size_bytes, f"{self.name} was not given so much memory"
                arguments = [_on_host(argument, ndarray) for argument in arguments]
                outer.launched.append(self.name)
                queues.put(lambda: shim.run(self.name, *grid, *block, arguments, shared_mem, queues.schedule))

        class RawModule:
            def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
                assert code == shim.SOURCE.read_text()

            def get_function(self, name: str) -> Kernel:
                return Kernel(name)

        def empty(shape: tuple[int, ...], dtype: Any) -> ndarray:
            array, memory = shim.aligned(shape, dtype)
            queues.guarded.append((array, memory))
            return ndarray(array)

        def asarray(values: Any) -> ndarray:
            if isinstance(values, ndarray):
                return values
            result = ndarray(shim.aligned(values.shape, values.dtype)[0])
            result.set(values.copy())  # CuPy reads memory that is not page-locked before it returns
            return result

        def ascontiguousarray(values: ndarray) -> ndarray:
            if values.flags.c_contiguous:
                return values
            result = empty(values.shape, values.dtype)
            queues.put(lambda: np.copyto(result.host, values.host))
            return result

        self.ndarray, self.empty, self.asarray, self.ascontiguousarray = ndarray, empty, asarray, ascontiguousarray
        self.RawModule = RawModule
        self.cuda = SimpleNamespace(
            Stream=Stream,
            Event=Event,
            Device=Device,
            get_current_stream=lambda: queues.current[-1],
            alloc_pinned_memory=lambda size: bytearray(size + 512),  # CuPy's may be longer, too
            runtime=SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=CUDARuntimeError),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            compiler=SimpleNamespace(CompileException=CompileException),
        )
        queues.current.append(Stream())


class _Mark:
    """A place in a stream that other streams can wait for."""

    def __init__(self) -> None:
        self.reached = False

    def reach(self) -> None:
        self.reached = True


class _Queues:
    """What all streams have yet to do."""

    def __init__(self, schedule: int) -> None:
        self.schedule = schedule
        self.streams: list[Any] = []
        self.current: list[Any] = []
        self.guarded: list[tuple[np.ndarray, np.ndarray]] = []
        self._random = random.Random(schedule)

    def put(self, work: Callable[[], None], stream: Any = None) -> None:
        (stream or self.current[-1]).queue.append(work)

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            ready = [stream for stream in self.streams if stream.queue and not _blocked(stream.queue[0])]
            assert ready, "all streams wait for each other"
            position = self._random.randrange(len(ready)) if self.schedule > 1 else -self.schedule
            work = ready[position].queue.popleft()
            if not isinstance(work, _Mark):
                work()
        for array, memory in self.guarded:
            start = array.ctypes.data - memory.ctypes.data
            assert (memory[:start] == shim.POISON).all()
            assert (memory[start + array.nbytes :] == shim.POISON).all()
        self.guarded.clear()


def _blocked(work: Any) -> bool:
    return isinstance(work, _Mark) and not work.reached


def _on_host(argument: Any, array_type: type) -> Any:
    if isinstance(argument, array_type):
        return argument.host
    return None if type(argument) is np.uint64 and argument == 0 else argument
