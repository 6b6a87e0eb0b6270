"""What is measured of each recording by itself, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.audio.read import Recording, read_utterance
from mkc_fast.errors import AudioError, MkcError
from mkc_fast.evaluation.models import SAMPLE_RATE
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from numpy.typing import NDArray

    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.evaluation.models import Model

# Less is no speech, and some of the models need as much.
_LEAST_SAMPLES = SAMPLE_RATE // 10
_WAITING = 4  # recordings for each process that are handed out at once


@dataclass(frozen=True)
class Models:
    """The models that listen; None: that is not measured."""

    verifier: Model[NDArray[np.float32]] | None = None
    recognizer: Model[str] | None = None
    quality: Model[NDArray[np.float64]] | None = None
    pitch: Model[NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Heard:
    """What was measured of a recording; None is what was not.

    Attributes:
        seconds: Its length.
        embedding: Of its speaker, (E,).
        words: That were recognized.
        ratings: Of its quality, (3,).
        pitch: Hz of each frame, 0 where it is not voiced.
        refused: Why a model gave nothing, by the model's name in ``Models``.
    """

    seconds: float
    embedding: NDArray[np.float32] | None = None
    words: str | None = None
    ratings: NDArray[np.float64] | None = None
    pitch: NDArray[np.float32] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)


class Listener:
    """Opened models."""

    def __init__(self, models: Models) -> None:
        """Open the models.

        Raises:
            MkcError: One cannot be opened.
        """
        self._open: dict[str, Callable[[NDArray[np.float32]], Any]] = {
            name: model.open() for name, model in vars(models).items() if model is not None
        }

    def listen(self, utterance: Utterance, kinds: Sequence[str]) -> Heard:
        """Measure a recording.

        Args:
            utterance: The recording.
            kinds: The models that hear it, by their names in ``Models``; those that are None are passed over.

        Raises:
            AudioError: It cannot be read, or is shorter than 0.1 s.
        """
        waveform = read_utterance(utterance, SAMPLE_RATE, _LEAST_SAMPLES)
        assert not isinstance(waveform, Recording)
        found: dict[str, Any] = {}
        refused = {}
        for name in kinds:
            if name in self._open:
                try:
                    found[name] = self._open[name](waveform)
                except AudioError as error:
                    refused[name] = f"{utterance.shown}: {error}"
        embedding = found.get("verifier")
        if embedding is not None and not (np.isfinite(embedding).all() and np.any(embedding)):
            refused["verifier"] = f"{utterance.shown}: its embedding is zero, or not finite"
            del found["verifier"]
        return Heard(
            len(waveform) / SAMPLE_RATE,
            found.get("verifier"),
            found.get("recognizer"),
            found.get("quality"),
            found.get("pitch"),
            refused,
        )


@dataclass(frozen=True)
class Task:
    """A recording to listen to.

    Attributes:
        key: Names it in the results.
        utterance: The recording.
        kinds: The models that hear it, by their names in ``Models``.
    """

    key: tuple[str, str]
    utterance: Utterance
    kinds: tuple[str, ...]


Outcome = Heard | str


def listen_to_all(
    tasks: Sequence[Task], models: Models, jobs: int, progress: Callable[[int, int], None]
) -> dict[tuple[str, str], Outcome]:
    """What was heard of each recording by its key; of one that cannot be read, why.

    Args:
        tasks: Recordings.
        models: What hears them.
        jobs: Processes, each with one thread; 1 is this one.
        progress: Called with (done, all) after each recording.

    Raises:
        MkcError: A model cannot be opened, a process died, or embeddings have no or another length.
    """
    found: dict[tuple[str, str], Outcome] = {}
    outcomes = _here(tasks, models) if jobs == 1 else _elsewhere(tasks, models, jobs)
    first: tuple[str, tuple[int, ...]] | None = None
    with closing(outcomes):
        for key, outcome in outcomes:
            if isinstance(outcome, Heard) and outcome.embedding is not None:
                here = (f"{printable(key[1])} ({key[0]})", np.shape(outcome.embedding))
                first = first or here
                if len(here[1]) != 1 or here[1] != first[1]:
                    raise MkcError(
                        f"the embedding of {here[0]} has the shape {list(here[1])}, that of {first[0]} "
                        f"{list(first[1])}; expected the same number of values for every recording, without an axis of "
                        "time: (E,)"
                    )
            found[key] = outcome
            progress(len(found), len(tasks))
    return found


def _here(tasks: Sequence[Task], models: Models) -> Generator[tuple[tuple[str, str], Outcome], None, None]:
    listener = Listener(models)
    for task in tasks:
        yield task.key, _outcome(listener, task)


def _outcome(listener: Listener, task: Task) -> Outcome:
    try:
        return listener.listen(task.utterance, task.kinds)
    except AudioError as error:
        return str(error)


_listener: Listener | MkcError | None = None  # of a process of the pool


def _open_listener(models: Models) -> None:
    global _listener  # noqa: PLW0603 - a process of a pool keeps its models between tasks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the parent, which ends the pool
    try:
        _listener = Listener(models)
    except MkcError as error:
        _listener = error


def _listen(task: Task) -> Outcome:
    if isinstance(_listener, MkcError):
        raise _listener
    assert _listener is not None
    return _outcome(_listener, task)


def _elsewhere(
    tasks: Sequence[Task], models: Models, jobs: int
) -> Generator[tuple[tuple[str, str], Outcome], None, None]:
    context = multiprocessing.get_context("spawn")
    waiting: dict[Future[Outcome], Task] = {}
    left = iter(tasks)
    pool = ProcessPoolExecutor(jobs, context, _open_listener, (models,))
    try:
        while True:
            for task in left:
                waiting[pool.submit(_listen, task)] = task
                if len(waiting) >= _WAITING * jobs:
                    break
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                task = waiting.pop(future)
                yield task.key, future.result()
    except BrokenProcessPool:
        raise MkcError("a process that listens died, perhaps for lack of memory: try fewer, with --jobs") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
