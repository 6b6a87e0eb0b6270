"""Stands in for the device: results of the right shape without computing, so that only the host pipeline is left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mkc_fast.engine.artifacts import ModelInfo, read_model_info

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class NullResult(NamedTuple):
    """What a worker reads of ``mkc_fast.engine.anonymizer.Result``, whose module would load ONNX Runtime."""

    waveform: NDArray[np.float32]
    bank_ids: NDArray[np.int64]
    stage_seconds: dict[str, float]


class NullAnonymizer:
    """Gives back each waveform, cut to whole frames."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info

    @classmethod
    def load(cls, model: Path, *_: object, **__: object) -> NullAnonymizer:
        """Read ``model.json`` and nothing else."""
        return cls(read_model_info(model))

    def anonymize_batch(
        self,
        waveforms: Sequence[NDArray[np.float32]],
        mode: str,
        stride: int,
        seed: int | None,
        utterance_ids: Sequence[str],
        *,
        batch_s: float,
    ) -> list[NullResult]:
        """As ``Anonymizer.anonymize_batch``, in no time."""
        del mode, stride, seed, utterance_ids, batch_s
        frames = [self.info.frames(len(waveform)) for waveform in waveforms]
        return [
            NullResult(waveform[: count * self.info.hop], np.broadcast_to(np.int64(0), count), {})
            for waveform, count in zip(waveforms, frames, strict=True)
        ]


class PinnedNullAnonymizer(NullAnonymizer):
    """Keeps its process on one core: what it does in a second is then what a core can do."""

    @classmethod
    def load(cls, model: Path, *_: object, **__: object) -> NullAnonymizer:
        """Pin the process before its worker starts threads, which inherit that."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        return super().load(model)
