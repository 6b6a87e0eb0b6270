"""As much of CuPy as kernels/ and engine/passes/device.py use, over the CUDA stand-in: for a machine without a GPU.

Everything that CuPy queues on a stream is put off until somebody waits, and then done in an order that the streams and
events allow, chosen by ``schedule``: 0 prefers the stream made first, 1 the one made last, others mix them. A missing
wait reads what is not yet there, or what is no longer there. Memory goes back to the pool of the stream that it was
allocated on, where the next user may write to it as soon as that stream has come so far: here it is overwritten then.
"""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.fakes.cuda import shim

DEFAULT_SHARED_BYTES = 48 << 10


class FakeCupy(ModuleType):
    """The module ``cupy``."""

    def __init__(
        self, *, schedule: int = 0, free_bytes: int = 1 << 30, multiprocessors: int = 1, shared_bytes: int = 100 << 10
    ) -> None:
        super().__init__("cupy")
        self.queues = _Queues(schedule)
        self.launched: list[str] = []
        self.free_bytes = self.total_bytes = free_bytes
        # Memory in use, and how many pieces of it there were whenever the pool was asked to give back what is not.
        self.blocks: weakref.WeakSet[_Block] = weakref.WeakSet()
        self.blocks_when_freed: list[int] = []
        self.allocated_bytes, self.limit_bytes = 0, 1 << 62  # of one attempt; past it, memory is short
        queues, outer = self.queues, self

        class Stream:
            def __init__(self, *, non_blocking: bool = False) -> None:
                self.queue: deque[Any] = deque()
                queues.streams.append(self)
                self.ptr = len(queues.streams)

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

            @property
            def done(self) -> bool:
                return self.mark is None or self.mark.reached

        class Device:
            def __init__(self, device: int) -> None:
                self.id = device
                self.attributes = {
                    "MultiProcessorCount": multiprocessors,
                    "MaxSharedMemoryPerBlockOptin": shared_bytes - 1024,
                    "MaxSharedMemoryPerMultiprocessor": shared_bytes,
                }

            compute_capability = "90"

            @property
            def mem_info(self) -> tuple[int, int]:
                return outer.free_bytes, outer.total_bytes

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None: ...

        class OutOfMemoryError(MemoryError): ...

        class CompileException(Exception): ...

        class CUDARuntimeError(RuntimeError): ...

        class ndarray:  # noqa: N801 - CuPy's name
            """An array whose values are there once its stream has come so far."""

            def __init__(self, host: np.ndarray, block: _Block | None = None) -> None:
                self.host = host
                self.block = block  # shared by all views, as CuPy's memory is
                self.shape, self.ndim, self.dtype = host.shape, host.ndim, host.dtype
                self.size, self.nbytes = host.size, host.nbytes
                self.flags = SimpleNamespace(c_contiguous=host.flags.c_contiguous)

            @property
            def data(self) -> Any:
                assert self.host.flags.c_contiguous
                host = self.host

                def copy_from_device_async(source: Any, size: int) -> None:
                    assert size == source.host.nbytes == host.nbytes
                    assert source.host.dtype == host.dtype
                    origin = source.host.reshape(host.shape)
                    queues.put(lambda: np.copyto(host, origin))

                def memset_async(value: int, size: int) -> None:
                    assert size == host.nbytes
                    queues.put(lambda: host.view(np.uint8).fill(value) if host.ndim else None)

                return SimpleNamespace(
                    ptr=host.ctypes.data,
                    host=host,
                    copy_from_device_async=copy_from_device_async,
                    memset_async=memset_async,
                )

            def __len__(self) -> int:
                return len(self.host)

            def __getitem__(self, part: Any) -> ndarray:
                return ndarray(self.host[part], self.block)

            def view(self, dtype: Any) -> ndarray:
                return ndarray(self.host.view(dtype), self.block)

            def reshape(self, *shape: Any) -> ndarray:
                reshaped = self.host.reshape(*shape)
                assert np.shares_memory(reshaped, self.host) or not self.size, "CuPy would copy"
                return ndarray(reshaped, self.block)

            def set(self, values: np.ndarray, stream: Stream | None = None) -> None:
                assert values.shape == self.shape
                assert values.dtype == self.dtype
                host = self.host
                queues.put(lambda: np.copyto(host, values), stream)

            def get(self, stream: Stream | None = None, *, out: Any = None, blocking: bool = True) -> np.ndarray:
                values, host = np.empty_like(self.host) if out is None else out, self.host
                assert values.shape == host.shape
                assert values.dtype == host.dtype
                queues.put(lambda: np.copyto(values, host), stream)
                if blocking:
                    (stream or queues.current[-1]).synchronize()
                return values

            def astype(self, dtype: Any) -> ndarray:
                result, origin = empty(self.shape, dtype), self.host
                made = result.host
                queues.put(lambda: np.copyto(made, origin, casting="unsafe"))
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
                assert code in {source.read_text() for source in shim.SOURCES}

            def get_function(self, name: str) -> Kernel:
                return Kernel(name)

        def empty(shape: tuple[int, ...], dtype: Any) -> ndarray:
            outer.allocated_bytes += int(np.prod(shape)) * np.dtype(dtype).itemsize
            if outer.allocated_bytes > outer.limit_bytes:
                outer.allocated_bytes = 0
                raise OutOfMemoryError(f"Out of memory allocating {shape}")
            array, memory = shim.aligned(shape, dtype)
            if array.dtype == np.float32:
                array.fill(np.nan)  # what a product by zero does not hide
            queues.guarded.append((array, memory))
            block = _Block(array, memory, queues, queues.current[-1])
            outer.blocks.add(block)
            return ndarray(array, block)

        def asarray(values: Any) -> ndarray:
            if isinstance(values, ndarray):
                return values
            result = empty(values.shape, values.dtype)
            result.set(values.copy())  # CuPy reads memory that is not page-locked before it returns
            return result

        def ascontiguousarray(values: ndarray) -> ndarray:
            if values.flags.c_contiguous:
                return values
            result, origin = empty(values.shape, values.dtype), values.host
            made = result.host
            queues.put(lambda: np.copyto(made, origin))
            return result

        self.ndarray, self.empty, self.asarray, self.ascontiguousarray = ndarray, empty, asarray, ascontiguousarray
        self.RawModule = RawModule
        self.get_default_memory_pool = lambda: SimpleNamespace(
            free_all_blocks=lambda: outer.blocks_when_freed.append(len(outer.blocks))
        )
        self.cuda = SimpleNamespace(
            Stream=Stream,
            Event=Event,
            Device=Device,
            get_current_stream=lambda: queues.current[-1],
            get_elapsed_time=lambda begin, end: 1.0 if begin.done and end.done else None,
            alloc_pinned_memory=lambda size: bytearray(size + 512),  # CuPy's may be longer, too
            runtime=SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=CUDARuntimeError),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            compiler=SimpleNamespace(CompileException=CompileException),
        )
        queues.current.append(Stream())


class _Block:
    """Memory from the pool of a stream."""

    def __init__(self, array: np.ndarray, memory: np.ndarray, queues: _Queues, stream: Any) -> None:
        self.array, self.memory, self.queues, self.stream = array, memory, queues, stream

    def __del__(self) -> None:
        array, memory = self.array, self.memory
        self.queues.kept.append(memory)  # a pointer that is used too late is to find poison, not a crash

        def reuse() -> None:
            start = array.ctypes.data - memory.ctypes.data
            memory[start : start + array.nbytes] = shim.POISON

        self.stream.queue.append(reuse)


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
        self.kept: list[np.ndarray] = []
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
