"""Measures what a model's conformer restores, with the engine: features, their centroids, and what is made of these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.errors import ListError
from mkc_fast.train.features.cache import FeatureCache

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from mkc_fast.engine.anonymizer import Anonymizer


@dataclass(frozen=True)
class Restored:
    """Mean squared errors of a speaker's features, over frames and dimensions.

    Attributes:
        frames: That were compared.
        quantized: Of the centroids.
        restored: Of what the conformer makes of them.
    """

    frames: int
    quantized: float
    restored: float

    @property
    def less(self) -> float:
        """The share of the centroids' error that the conformer removes."""
        return 1 - self.restored / self.quantized


def measure_restoration(
    anonymizer: Anonymizer, features: str | PathLike[str], speakers: Sequence[str]
) -> dict[str, Restored]:
    """Errors of speakers' features, quantized with the bank entries of the other speakers named, and restored.

    Args:
        anonymizer: Model and bank, whose entries have the names of speakers.
        features: A cache of features.
        speakers: To compare: the utterances of each with the entry of each other one.

    Raises:
        ListError: A speaker has no entry in the bank, or no utterance in the cache.
    """
    cache = FeatureCache.open(Path(features))
    names = anonymizer.bank.info.names
    missing = [name for name in speakers if name not in names]
    if missing:
        raise ListError(f"the bank has no entry {missing[0]}")
    found = {}
    for speaker in speakers:
        utterances = [index for index, entry in enumerate(cache.entries) if entry.speaker == speaker]
        others = [names.index(name) for name in speakers if name != speaker]
        frames, quantized_error, restored_error = 0, 0.0, 0.0
        for index in utterances:
            original = cache.read(index)
            for other in others:
                bank_ids = np.full(len(original), other)
                quantized = anonymizer.lookup(bank_ids, anonymizer.assign(original, bank_ids))
                restored = anonymizer.restore(quantized)
                frames += len(original)
                quantized_error += float(np.square(quantized - original, dtype=np.float64).mean(1).sum())
                restored_error += float(np.square(restored - original, dtype=np.float64).mean(1).sum())
        if not frames:
            raise ListError(f"the cache has no utterance of the speaker {speaker}")
        found[speaker] = Restored(frames, quantized_error / frames, restored_error / frames)
    return found


__all__ = ["Restored", "measure_restoration"]
