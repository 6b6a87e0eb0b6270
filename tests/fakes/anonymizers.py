"""Stand-ins for the anonymizer of a worker, which imports them by name.

They return what they are given and load nothing, so a worker starts in a fraction of a second. Most of them die, hang
or fail in one way. The environment variable ``STAND_INS`` names a folder in which they note what must happen only once.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from mkc_fast.engine.anonymizer import Anonymizer
from mkc_fast.engine.corpus import worker
from mkc_fast.errors import AudioError

# Samples of the recording that kills, in the tests that have one: no other has as many.
DEADLY = 12345


class Result(NamedTuple):
    """What a worker needs of a result."""

    waveform: np.ndarray
    bank_ids: np.ndarray
    stage_seconds: dict[str, float]


def factory(name: str) -> str:
    """A stand-in as ``WorkerConfig.factory`` names it."""
    return f"{__name__}:{name}"


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def first(name):
    try:
        os.close(os.open(Path(os.environ["STAND_INS"]) / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Echo:
    info = SimpleNamespace(sample_rate=16000, min_samples=400)

    @classmethod
    def load(cls, *args, **options):
        return cls()

    def anonymize_batch(self, waveforms, mode, stride, seed, ids, *, batch_s):
        return [self.one(waveform) for waveform in waveforms]

    def one(self, waveform):
        return Result(waveform, np.zeros(len(waveform) // 320, int), {})


class Slow(Echo):
    def one(self, waveform):
        time.sleep(0.1)
        return super().one(waveform)


class HangsAfterOne(Echo):
    """Its run goes on until it is killed, and has recorded something."""

    answered = 0

    def one(self, waveform):
        if self.answered:
            time.sleep(1000)
        self.answered += 1
        return super().one(waveform)


class SlowToLoad(Echo):
    @classmethod
    def load(cls, *args, **options):
        first("loading")
        time.sleep(60)


class DiesOfOne(Echo):
    def one(self, waveform):
        if len(waveform) == DEADLY:
            die()
        return super().one(waveform)


class DiesReadingOne(Echo):
    @classmethod
    def load(cls, *args, **options):
        read = worker.read_utterance

        def deadly(utterance, *args):
            waveform = read(utterance, *args)
            if len(waveform) == DEADLY:
                die()
            return waveform

        worker.read_utterance = deadly
        return cls()


class FailsToReadOnce(Echo):
    @classmethod
    def load(cls, *args, **options):
        read = worker.read_utterance

        def failing(utterance, *args):
            if first("read failed"):
                raise AudioError("not there for a moment")
            return read(utterance, *args)

        worker.read_utterance = failing
        return cls()


class HangsOnOne(Echo):
    def one(self, waveform):
        if len(waveform) == DEADLY:
            time.sleep(1000)
        return super().one(waveform)


class HangsReadingOne(Echo):
    @classmethod
    def load(cls, *args, **options):
        read = worker.read_utterance

        def endless(utterance, *args):
            waveform = read(utterance, *args)
            while len(waveform) == DEADLY:
                pass
            return waveform

        worker.read_utterance = endless
        return cls()


class HangsLoadingOnce(Echo):
    @classmethod
    def load(cls, *args, **options):
        if first("loaded"):
            time.sleep(1000)
        return cls()


class StartsOnce(Echo):
    @classmethod
    def load(cls, *args, **options):
        if not first("loaded"):
            raise RuntimeError("the device is gone")
        return cls()

    def one(self, waveform):
        if len(waveform) == DEADLY:
            die()
        return super().one(waveform)


class DiesOfAll(Echo):
    def one(self, waveform):
        die()


class FailsOfOne(Echo):
    def one(self, waveform):
        if len(waveform) == DEADLY:
            raise ValueError("a\nline of\nits own")
        return super().one(waveform)


class DiesLoading(Echo):
    @classmethod
    def load(cls, *args, **options):
        die()


class ExitsLoading(Echo):
    @classmethod
    def load(cls, *args, **options):
        os._exit(7)


class FailsLoading(Echo):
    @classmethod
    def load(cls, *args, **options):
        raise RuntimeError("a library\nis missing")


class OnlyOneLoads(Slow):
    @classmethod
    def load(cls, *args, **options):
        if not first("loaded"):
            any(first("death " + str(number)) for number in range(5))
            die()
        return cls()

    def one(self, waveform):
        while not (Path(os.environ["STAND_INS"]) / "death 4").exists():
            time.sleep(0.01)
        return super().one(waveform)


class DiesOnceItHasReported(Echo):
    @classmethod
    def load(cls, *args, **options):
        send = worker.Worker.send

        def last_words(self, kind, *content):
            send(self, kind, *content)
            if kind == "outcome" and first("reported"):
                die()

        worker.Worker.send = last_words
        return cls()


class FailsOnceItHasWritten(Echo):
    @classmethod
    def load(cls, *args, **options):
        send = worker.Worker.send

        def fails(self, kind, *content):
            send(self, *(("fatal", "WriteError", "no more") if kind == "outcome" else (kind, *content)))

        worker.Worker.send = fails
        return cls()


class TellsWhatItRuns(Echo):
    @property
    def ran(self):
        return {"operators": os.environ["OPERATORS"]}


class RunsSomethingElse(Slow):
    @property
    def ran(self):
        return {"operators": "first" if first("told") else "second"}


class TakesEntries(Echo):
    def anonymize_batch(self, waveforms, mode, stride, seed, ids, *, batch_s, entries=None):
        return [self.one(waveform)._replace(bank_ids=np.array(entries)) for waveform in waveforms]


class SaysMuch(Echo):
    def one(self, waveform):
        return super().one(waveform)._replace(bank_ids=np.arange(200_000))


class SlowAnonymizer(Anonymizer):
    """The real one, which takes a moment for each batch."""

    def anonymize_batch(self, *args, **options):
        time.sleep(0.3)
        return super().anonymize_batch(*args, **options)
