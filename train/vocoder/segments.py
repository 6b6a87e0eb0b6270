"""Parts of recordings with their features: as the encoder gives them, or as a conformer restores them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mkc_fast.engine.audio.read import Recording, read_utterance
from mkc_fast.engine.draws import draw_bank_ids
from mkc_fast.errors import AudioError, ListError
from mkc_fast.names import AUDIO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mkc_fast.engine.anonymizer import Anonymizer
    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.train.conformer.sources import Source
    from mkc_fast.train.loop.sampler import Piece


@dataclass(frozen=True)
class Segments:
    """A batch, on the CPU.

    Attributes:
        features: (B, T, D) float32.
        waveform: (B, T * hop) float32.
    """

    features: torch.Tensor
    waveform: torch.Tensor


class SegmentReader:
    """Reads parts of recordings.

    Args:
        info: Of the model.
        source: Features by utterance.
        utterances: The recordings; those that the source does not have are left out.
        anonymizer: Restores the features, quantized with an entry of its bank that is drawn for an utterance and epoch;
            None: they are taken as they are.
        seed: Of these draws.

    Raises:
        ListError: The source has none of the recordings.
    """

    def __init__(
        self, info: ModelInfo, source: Source, utterances: Sequence[Utterance], anonymizer: Anonymizer | None, seed: str
    ) -> None:
        known = {utterance.id: utterance for utterance in utterances}
        self.indices = [index for index, name in enumerate(source.ids) if name in known]
        if not self.indices:
            raise ListError("the features are of none of these recordings")
        self._info, self._source, self._known = info, source, known
        self._anonymizer, self._seed, self._lock = anonymizer, seed, threading.Lock()

    def batch(self, pieces: Sequence[Piece]) -> Segments:
        """The parts of a batch, all of one length.

        Raises:
            AudioError: A recording cannot be read, or is shorter than its features.
        """
        features = np.stack([self._features(piece) for piece in pieces])
        waveform = np.stack([self._samples(piece) for piece in pieces])
        return Segments(torch.from_numpy(features), torch.from_numpy(waveform))

    def _features(self, piece: Piece) -> NDArray[np.float32]:
        end = piece.begin + piece.frames
        if self._anonymizer is None:
            return self._whole(piece, self._source.read(piece.index, piece.begin, end))
        features = self._source.read(piece.index, 0, self._source.frames[piece.index])
        key = f"{piece.epoch}\0{self._source.ids[piece.index]}"
        bank_ids = draw_bank_ids(
            len(features), len(self._anonymizer.bank), mode=AUDIO, stride=1, seed=self._seed, utterance_id=key
        )
        with self._lock:
            quantized = self._anonymizer.lookup(bank_ids, self._anonymizer.assign(features, bank_ids))
            restored = self._anonymizer.restore(quantized)
        return self._whole(piece, restored[piece.begin : end])

    def _samples(self, piece: Piece) -> NDArray[np.float32]:
        utterance = self._known[self._source.ids[piece.index]]
        waveform = read_utterance(utterance, self._info.sample_rate, self._info.min_samples)
        assert not isinstance(waveform, Recording)
        hop = self._info.hop
        part = waveform[piece.begin * hop : (piece.begin + piece.frames) * hop]
        if len(part) != piece.frames * hop:
            raise AudioError(f"{utterance.shown}: shorter than its features say")
        return part

    def _whole(self, piece: Piece, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(features) != piece.frames:
            raise AudioError(f"{self._source.ids[piece.index]}: fewer frames than its header says")
        return features
