"""Which parts of which utterances each step takes: a function of the seed and of how far the training is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

# Batches whose utterances are sorted by length together: more give less padding, and less random batches.
_SORTED_BATCHES = 16


@dataclass(frozen=True)
class Piece:
    """A part of an utterance.

    Attributes:
        index: Of the utterance.
        begin: Its first frame.
        frames: How many.
        epoch: How often the utterance was seen before; decides its draws with the seed.
    """

    index: int
    begin: int
    frames: int
    epoch: int


@dataclass(frozen=True)
class Place:
    """How far the batches of a training are: the epoch, and the batches of it that are done."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class StepPlan:
    """What a step takes.

    Attributes:
        batches: Of all processes, in turn.
        after: Where the next step begins.
    """

    batches: list[list[Piece]]
    after: Place

    @property
    def frames(self) -> int:
        """Of all batches, without padding."""
        return sum(piece.frames for batch in self.batches for piece in batch)


def number_of(*key: object, bits: int = 63) -> int:
    """A number that only this key gives, for generators of random numbers that must be the same in every run."""
    text = "\0".join(map(str, ("mkc-fast train 1", *key)))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") >> (64 - bits)


def generator_of(*key: object) -> np.random.Generator:
    """A generator of random numbers that only this key gives."""
    return np.random.Generator(np.random.PCG64(number_of(*key)))


class Sampler:
    """Takes every utterance once an epoch, in batches of similar lengths.

    Args:
        frames: Of each utterance.
        utterances: Those that are taken, by index.
        batch_frames: The most frames of a batch, with padding; a longer utterance has a batch of its own.
        max_frames: Of an utterance with more, a part of so many is taken, another in each epoch.
        seed: Decides all of it.
    """

    def __init__(
        self, frames: Sequence[int], utterances: Sequence[int], batch_frames: int, max_frames: int, seed: str
    ) -> None:
        self._frames, self._utterances, self._seed = frames, utterances, seed
        self._batch_frames, self._max_frames = batch_frames, max_frames
        self._epoch, self._batches = -1, list[list[Piece]]()

    def step(self, place: Place, count: int) -> StepPlan:
        """The next ``count`` batches."""
        batches: list[list[Piece]] = []
        epoch, number = place.epoch, place.batch
        while len(batches) < count:
            of_epoch = self.epoch(epoch)
            if number >= len(of_epoch):
                epoch, number = epoch + 1, 0
                continue
            batches.append(of_epoch[number])
            number += 1
        return StepPlan(batches, Place(epoch, number))

    def epoch(self, epoch: int) -> list[list[Piece]]:
        """All batches of an epoch."""
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._draw(epoch)
        return self._batches

    def _draw(self, epoch: int) -> list[list[Piece]]:
        random = generator_of(self._seed, "epoch", epoch)
        pieces = []
        for position in random.permutation(len(self._utterances)).tolist():
            index = self._utterances[position]
            count = min(self._frames[index], self._max_frames)
            begin = int(random.integers(self._frames[index] - count + 1))
            pieces.append(Piece(index, begin, count, epoch))
        average = sum(piece.frames for piece in pieces) / len(pieces)
        together = _SORTED_BATCHES * max(1, int(self._batch_frames / average))
        batches: list[list[Piece]] = []
        for first in range(0, len(pieces), together):
            batches += batched(sorted(pieces[first : first + together], key=_length), self._batch_frames)
        return [batches[number] for number in random.permutation(len(batches)).tolist()]


def batched(pieces: Sequence[Piece], batch_frames: int) -> list[list[Piece]]:
    """Pieces, sorted by length, in batches of at most so many padded frames."""
    batches: list[list[Piece]] = []
    for piece in pieces:
        if batches and piece.frames * (len(batches[-1]) + 1) <= batch_frames:
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return batches


def _length(piece: Piece) -> int:
    return piece.frames
