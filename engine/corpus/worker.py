"""A worker process: loads the models once, then decodes, anonymizes and writes batches until it is told to stop.

Threads decode the next batch and write the last one while the device computes the current one. A GPU gets the next
batch before the results of the current one are read, so it never waits for this process. The scheduler limits the
number of batches in flight: it never sends more than ``WorkerConfig.ahead``.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from mkc_fast import __version__
from mkc_fast.engine.audio.read import Recording, peak_of, read_utterance
from mkc_fast.engine.audio.write import write_waveform, written_waveform
from mkc_fast.engine.corpus.protocol import EXIT_LOST_DEVICE, Outcome
from mkc_fast.engine.storage.fetching import on_this_machine
from mkc_fast.errors import ArtifactError, LostDeviceError, MkcError, WriteError
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.engine.anonymizer import Anonymizer, PendingBatch, Result, StreamedResult
    from mkc_fast.engine.corpus.protocol import Task, WorkerConfig

_POLL_S = 0.5
# A longer recording is decoded, computed and written window by window. Shorter ones are kept in memory: 38 MB at most.
_MAX_IN_MEMORY_S = 600


@dataclass
class _Batch:
    number: int
    tasks: list[Task]
    waveforms: list[Future[tuple[NDArray[np.float32] | Recording, float]]]
    lengths: tuple[int, ...] = ()  # that a GPU pads batches to


@dataclass
class InFlightBatch:
    """A batch that is being computed: what was read of it, and its results to come.

    Attributes:
        number: Of the batch.
        read: Each utterance in memory: task, samples, and the seconds it took to read them.
        long: The same of recordings that are not in memory; they are computed after the others.
        pending: The results of those in memory, to come; None if their computation could not be started.
    """

    number: int
    read: list[tuple[Task, NDArray[np.float32], float]]
    long: list[tuple[Task, Recording, float]]
    pending: PendingBatch | None


class _ForwardWarnings(logging.Handler):
    """Sends the engine's warnings to the scheduler, as messages of one kind."""

    def __init__(self, send: Callable[[str, str], None], kind: str) -> None:
        super().__init__(logging.WARNING)
        self.send = send
        self.kind = kind

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "peak"):  # about one recording: its outcome has the peak, and the run counts it
            return
        self.send(self.kind, one_line(record.getMessage()))


@contextlib.contextmanager
def _forwarded_warnings(send: Callable[[str, str], None], kind: str) -> Iterator[None]:
    handler, logger = _ForwardWarnings(send, kind), logging.getLogger("mkc_fast")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class Channel(Protocol):
    """What a worker needs of a connection."""

    def send(self, message: Any, /) -> None:
        """Send to the scheduler; raises OSError once it has ended."""

    def recv(self) -> Any:
        """Wait for a message of the scheduler; raises EOFError or OSError once it has ended."""


class Worker:
    """The worker's side of a connection to the scheduler."""

    def __init__(self, connection: Channel, config: WorkerConfig) -> None:
        self.connection = connection
        self.config = config
        self.sending = threading.Lock()
        self.incoming: queue.Queue[_Batch | None] = queue.Queue()
        self.lengths: tuple[int, ...] = ()
        self._ended = False
        self.readers = ThreadPoolExecutor(config.host_threads, "read")
        self.writers = ThreadPoolExecutor(config.host_threads, "write")
        module, _, name = config.factory.partition(":")
        begin = time.perf_counter()
        with _forwarded_warnings(self.send, "load note"):
            kind = getattr(importlib.import_module(module), name)
            cache = config.options.cache
            model = on_this_machine(config.model, cache)
            first, *others = [on_this_machine(each.path, cache) for each in config.banks]
            self.anonymizer: Anonymizer = kind.load(model, first, config.device, options=config.options)
            # One for each bank; they share the graphs.
            self.anonymizers = [self.anonymizer, *(self.anonymizer.with_bank(each) for each in others)]
        self.load_s = time.perf_counter() - begin

    def send(self, kind: str, *content: object) -> None:
        """Send a message to the scheduler; if it has ended, end this process."""
        with self.sending:
            try:
                self.connection.send((kind, *content))
            except OSError:
                _leave()

    def run(self) -> None:
        """Work until told to stop."""
        with _forwarded_warnings(self.send, "note"):
            self._work()

    def _work(self) -> None:
        threading.Thread(target=self._receive, daemon=True).start()
        ran = {"package": __version__, **getattr(self.anonymizer, "ran", {})}
        self.send("ready", self.load_s, getattr(self.anonymizer, "chosen", ""), ran)
        writing: deque[list[Future[None]]] = deque()
        computing: InFlightBatch | None = None
        while (batch := self._next(waiting=computing is None)) is not None or computing is not None:
            started = None if batch is None else self._begin(batch, alone=computing is None)
            if computing is not None:
                writing.append(self._finish(computing))
            if started is not None:
                if computing is not None:
                    self.send("start", started.number)  # the oldest batch on the device counts as the cause of a death
                if started.pending is None or started.pending.done:
                    writing.append(self._finish(started))
                    started = None
            computing = started
            while len(writing) > 1:
                wait(writing.popleft())
        while writing:
            wait(writing.popleft())

    def _next(self, *, waiting: bool) -> _Batch | None:
        """The next batch; None at the end, or if there is none yet and ``waiting`` is false."""
        if self._ended:
            return None
        try:
            batch = self.incoming.get(block=waiting)
        except queue.Empty:
            return None
        self._ended = batch is None
        return batch

    def _receive(self) -> None:
        """Receive batches and start to decode them at once; end this process if the scheduler has ended."""
        while True:
            try:
                message = self.connection.recv()
            except (EOFError, OSError):
                _leave()  # the scheduler has ended
                return
            if message is None:
                self.incoming.put(None)
                return
            number, tasks, lengths = message
            waveforms = [self.readers.submit(self._read, task) for task in tasks]
            self.incoming.put(_Batch(number, tasks, waveforms, lengths))

    def _read(self, task: Task) -> tuple[NDArray[np.float32] | Recording, float]:
        begin = time.perf_counter()
        info = self.anonymizer.info
        most = _MAX_IN_MEMORY_S * info.sample_rate if hasattr(self.anonymizer, "anonymize_recording") else None
        waveform = read_utterance(task.utterance, info.sample_rate, info.min_samples, most)
        return waveform, time.perf_counter() - begin

    def _begin(self, batch: _Batch, *, alone: bool) -> InFlightBatch:
        """Start to compute a batch; on a GPU, without waiting for the one before it."""
        read: list[tuple[Task, NDArray[np.float32], float]] = []
        long: list[tuple[Task, Recording, float]] = []
        for task, future in zip(batch.tasks, batch.waveforms, strict=True):
            try:
                waveform, read_s = future.result()
                if isinstance(waveform, Recording):
                    long.append((task, waveform, read_s))
                else:
                    read.append((task, waveform, read_s))
            except MkcError as error:
                self.send("outcome", batch.number, Outcome(task.index, error=str(error)))
            except Exception as error:  # a decoder's own failure concerns this recording, not the run
                self.send("outcome", batch.number, Outcome(task.index, error=_one_line(task, error)))
        if alone:
            self.send("start", batch.number)
        self._use_lengths(batch.lengths)
        if not hasattr(self.anonymizer, "submit_batch") or not read:
            return InFlightBatch(batch.number, read, long, None)
        try:
            return InFlightBatch(batch.number, read, long, self._batch("submit_batch", read))
        except LostDeviceError as error:
            self._leave(error)
        except Exception:  # the utterance at fault is found when the batch is finished
            return InFlightBatch(batch.number, read, long, None)

    def _use_lengths(self, lengths: tuple[int, ...]) -> None:
        """Pad batches to these lengths, on a GPU; its sessions for them are opened now."""
        if lengths == self.lengths or not hasattr(self.anonymizer, "use_lengths"):
            return
        self.lengths = lengths
        try:
            self.anonymizer.use_lengths(lengths)
        except LostDeviceError as error:
            self._leave(error)
        except MkcError as error:  # of memory that is short: batches run in smaller parts, and say so
            self.send("note", str(error))

    def _finish(self, in_flight: InFlightBatch) -> list[Future[None]]:
        """Wait for a batch's results and start to write them."""
        futures = []
        for (task, waveform, read_s), result in zip(in_flight.read, self._results(in_flight), strict=True):
            if isinstance(result, str):
                self.send("outcome", in_flight.number, Outcome(task.index, error=result))
            else:
                futures.append(self.writers.submit(self._write, in_flight.number, task, waveform, read_s, result))
        for item in in_flight.long:
            self._stream(in_flight.number, *item)
        return futures

    def _results(self, in_flight: InFlightBatch) -> list[Result | str]:
        """The results of a batch; if it fails as a whole, of each utterance alone, or its error."""
        try:
            if in_flight.pending is not None:
                return list(in_flight.pending.result())
            if len(in_flight.read) > 1:
                return list(self._batch("anonymize_batch", in_flight.read))
        except LostDeviceError as error:
            self._leave(error)
        except ArtifactError as error:
            self._end_run(error)
        except Exception:  # noqa: S110 - the utterance at fault is found below
            pass
        results: list[Result | str] = []
        for task, waveform, read_s in in_flight.read:
            try:
                results += self._batch("anonymize_batch", [(task, waveform, read_s)])
            except LostDeviceError as error:
                self._leave(error)
            except ArtifactError as error:
                self._end_run(error)
            except MkcError as error:
                results.append(f"{task.utterance.shown}: {error}")
            except Exception as error:
                results.append(_one_line(task, error))
        return results

    def _leave(self, error: LostDeviceError) -> NoReturn:
        """End this process: it can no longer use the device; a new process may."""
        self.send("note", str(error))
        os._exit(EXIT_LOST_DEVICE)

    def _end_run(self, error: MkcError) -> NoReturn:
        """Report an error that no recording has caused, and wait for the scheduler to end this process."""
        self.send("fatal", type(error).__name__, str(error))
        while True:
            time.sleep(_POLL_S)

    def _batch(self, method: str, read: list[tuple[Task, NDArray[np.float32], float]]) -> Any:
        """Call a method of the anonymizer for a batch; its utterances have one bank."""
        settings = self.config.settings
        waveforms, ids = [waveform for _, waveform, _ in read], [task.utterance.id for task, _, _ in read]
        draw_ids = [task.utterance.draw_id for task, _, _ in read]
        bank = read[0][0].bank
        # The scheduler has chosen the batch: all of it runs at once.
        options = {"batch_s": float("inf"), **self._options(bank)}
        if any(draw_id is not None for draw_id in draw_ids):
            options["draw_ids"] = draw_ids
        run = getattr(self.anonymizers[bank], method)
        return run(waveforms, settings.mode, settings.stride, settings.draw_seed, ids, **options)

    def _options(self, bank: int) -> dict[str, Any]:
        """Further options of every call, as far as they are set."""
        entries, pad = self.config.banks[bank].entries, self.config.settings.pad
        return {**({} if entries is None else {"entries": entries}), **({"pad": True} if pad else {})}

    def _stream(self, number: int, task: Task, recording: Recording, read_s: float) -> None:
        """Anonymize a recording that is not in memory, and write it while it is computed."""
        settings, write_s = self.config.settings, 0.0
        try:
            with written_waveform(self.config.place_of(task), self.anonymizer.info.sample_rate) as writer:

                def write(block: NDArray[np.float32]) -> None:
                    nonlocal write_s
                    begin = time.perf_counter()
                    writer.write(block)
                    write_s += time.perf_counter() - begin

                result = self.anonymizers[task.bank].anonymize_recording(
                    recording,
                    write,
                    settings.mode,
                    settings.stride,
                    settings.draw_seed,
                    utterance_id=task.utterance.id,
                    draw_id=task.utterance.draw_id,
                    **self._options(task.bank),
                )
        except LostDeviceError as error:
            self._leave(error)
        except ArtifactError as error:
            self._end_run(error)
        except WriteError as error:
            self.send("fatal", type(error).__name__, str(error))
        except MkcError as error:
            self.send("outcome", number, Outcome(task.index, error=f"{task.utterance.shown}: {error}"))
        except Exception as error:
            self.send("outcome", number, Outcome(task.index, error=_one_line(task, error)))
        else:
            self._report(number, task, recording, result, read_s, write_s, writer.size_bytes)

    def _write(self, number: int, task: Task, waveform: NDArray[np.float32], read_s: float, result: Result) -> None:
        begin = time.perf_counter()
        rate = self.anonymizer.info.sample_rate
        try:
            size = write_waveform(self.config.place_of(task), result.waveform, rate)
        except WriteError as error:
            self.send(
                "fatal", type(error).__name__, str(error)
            )  # sent from this thread: the main one may be waiting for work
            return
        except Exception as error:
            self.send("outcome", number, Outcome(task.index, error=_one_line(task, error)))
            return
        self._report(number, task, waveform, result, read_s, time.perf_counter() - begin, size)

    def _report(
        self,
        number: int,
        task: Task,
        waveform: NDArray[np.float32] | Recording,
        result: Result | StreamedResult,
        read_s: float,
        write_s: float,
        size_bytes: int,
    ) -> None:
        """Report that an utterance is written."""
        outcome = Outcome(
            task.index,
            None,
            len(waveform) / self.anonymizer.info.sample_rate,
            len(result.bank_ids),
            size_bytes,
            {"read": read_s, **result.stage_seconds, "write": write_s},
            result.bank_ids.tolist() if self.config.settings.record_draws else None,
            peak=peak_of(waveform),
        )
        self.send("outcome", number, outcome)


def _leave() -> None:
    """End this process and, if it leads its own process group, the commands that it has started."""
    if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _one_line(task: Task, error: Exception) -> str:
    return f"{task.utterance.shown}: {type(error).__name__}: {_short(error)}"


def _short(error: Exception) -> str:
    return one_line(str(error), 200)


def main() -> None:
    """Serve the scheduler at the socket whose number is the first argument, then exit."""
    # A terminal sends Ctrl-C to the whole process group; the scheduler decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    try:
        config: WorkerConfig = connection.recv()
    except (EOFError, OSError):
        return  # the scheduler has ended
    try:
        with _ending_with_scheduler(connection):
            worker = Worker(connection, config)
    except Exception as error:
        known = isinstance(error, MkcError)
        text = str(error) if known else f"a worker cannot start: {type(error).__name__}: {_short(error)}"
        with contextlib.suppress(OSError):
            connection.send(("fatal", type(error).__name__ if known else "MkcError", text))
        return
    worker.run()
    os._exit(0)  # without waiting for threads that still decode


@contextlib.contextmanager
def _ending_with_scheduler(connection: Connection[Any, Any]) -> Iterator[None]:
    """End this process if the scheduler ends during the block. It sends nothing meanwhile."""
    finished = threading.Event()

    def poll() -> None:
        while not finished.wait(_POLL_S):
            if connection.poll():
                _leave()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
