"""Stands in for a whole worker's work: no file is read, computed or written, so only what surrounds it is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.benchmarks.null_anonymizer import NullAnonymizer
from mkc_fast.engine.corpus import worker

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mkc_fast.engine.datasets.dataset import Utterance

# The factory as a run names it.
NOTHING = f"{__name__}:Nothing"
_SAMPLES = 16_000


class Nothing(NullAnonymizer):
    """Every recording is a second of zeros, and no output is written: only in a process of its own."""

    @classmethod
    def load(cls, model: Path, *_: object, **__: object) -> NullAnonymizer:
        """Replace what the worker of this process reads and writes with."""
        zeros = np.zeros(_SAMPLES, np.float32)

        def read(utterance: Utterance, *_: object) -> NDArray[np.float32]:
            del utterance
            return zeros

        def write(path: Path, waveform: NDArray[np.float32], sample_rate: int) -> int:
            del path, sample_rate
            return 2 * len(waveform)

        vars(worker).update(read_utterance=read, write_waveform=write)
        return super().load(model)
