"""What goes into a pass over a batch and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Utterance:
    """The input of a pass.

    Attributes:
        waveform: (S,) float32.
        banks: (T,) int, the bank entry of each frame.
        name: In messages.
    """

    waveform: NDArray[np.float32]
    banks: NDArray[np.int64]
    name: str


@dataclass(frozen=True)
class Result:
    """An anonymized utterance.

    Attributes:
        waveform: (T * hop,) float32 in [-1, 1] at the model's rate: 5 to 25 ms shorter than the input, since a frame of
            20 ms needs 25 ms of it. With ``pad`` it is as long as the input, and ends in silence.
        bank_ids: (T,) int64, the bank entry of each frame.
        cluster_ids: (T,) int32, the cluster of each frame in its entry.
        stage_seconds: Wall-clock seconds of each stage.
    """

    waveform: NDArray[np.float32]
    bank_ids: NDArray[np.int64]
    cluster_ids: NDArray[np.int32]
    stage_seconds: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def padded(self, samples: int) -> Result:
        """The same, filled up with silence to this number of samples."""
        waveform = np.zeros(samples, np.float32)
        waveform[: len(self.waveform)] = self.waveform
        return replace(self, waveform=waveform)


@dataclass(frozen=True)
class StreamedResult:
    """An anonymized utterance whose waveform was handed on in blocks; attributes as those of ``Result``."""

    bank_ids: NDArray[np.int64]
    cluster_ids: NDArray[np.int32]
    stage_seconds: dict[str, float] = field(default_factory=dict, compare=False, repr=False)
