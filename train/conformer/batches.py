"""Makes the conformer's inputs: features, quantized by entries of the bank that are drawn for each utterance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mkc_fast.engine.draws import draw_bank_ids
from mkc_fast.train.loop.sampler import generator_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mkc_fast.kernels import Lookup
    from mkc_fast.train.conformer.sources import Source
    from mkc_fast.train.loop.sampler import Piece


@dataclass(frozen=True)
class Batch:
    """Padded inputs and targets of a batch, on the CPU.

    Attributes:
        quantized: (B, T, D) float32, the input.
        original: (B, T, D) float32, the target.
        lengths: (B,) int64, in frames.
    """

    quantized: torch.Tensor
    original: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class Quantizer:
    """Draws bank entries and masked frames, and quantizes.

    Attributes:
        lookup: Over the whole bank.
        entries: Of the bank, those that are drawn from, ascending.
        mode: As in ``ConformerSettings``.
        stride: Likewise.
        masked: Likewise.
        seed: Decides all draws, with the utterance and the epoch.
    """

    lookup: Lookup
    entries: NDArray[np.int64]
    mode: str
    stride: int
    masked: float
    seed: str

    def quantize(self, features: NDArray[np.float32], key: str) -> NDArray[np.float32]:
        """Features (T, D) float32 → their centroids (T, D) float32; ``key`` tells the draws of an utterance apart."""
        frames = len(features)
        drawn = draw_bank_ids(
            frames, len(self.entries), mode=self.mode, stride=self.stride, seed=self.seed, utterance_id=key
        )
        if count := int(frames * self.masked):
            features = features.copy()
            features[generator_of(self.seed, "masked", key).permutation(frames)[:count]] = 0.0
        bank_ids = self.entries[drawn]
        return self.lookup.lookup(bank_ids, self.lookup.assign(features, bank_ids))


def make_batch(source: Source, quantizer: Quantizer, pieces: Sequence[Piece]) -> Batch:
    """The inputs of a batch.

    Raises:
        AudioError: A recording cannot be read.
    """
    originals = [source.read(piece.index, piece.begin, piece.begin + piece.frames) for piece in pieces]
    lengths = torch.tensor([len(features) for features in originals])
    shape = len(pieces), int(lengths.max()), source.dim
    quantized, original = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, (piece, features) in enumerate(zip(pieces, originals, strict=True)):
        original[row, : len(features)] = features
        key = f"{piece.epoch}\0{source.ids[piece.index]}"
        quantized[row, : len(features)] = quantizer.quantize(features, key)
    return Batch(torch.from_numpy(quantized), torch.from_numpy(original), lengths)
