"""Where features come from: a cache on disk, or the encoder as they are needed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mkc_fast.engine.audio.read import Recording, read_utterance
from mkc_fast.engine.corpus.plan import lengths_s
from mkc_fast.engine.datasets.lines import read_lines
from mkc_fast.errors import AudioError, ListError
from mkc_fast.text import printable
from mkc_fast.train.loop.sampler import generator_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.engine.encoder import Encoder
    from mkc_fast.train.features.cache import FeatureCache


class Source(Protocol):
    """Features by utterance.

    Attributes:
        ids: Of the utterances.
        speakers: Who speaks; None where that is not known.
        frames: Of each utterance.
        dim: D.
        threads: That may read at once to a good end.
    """

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def speakers(self) -> Sequence[str | None]: ...

    @property
    def frames(self) -> Sequence[int]: ...

    @property
    def dim(self) -> int: ...

    @property
    def threads(self) -> int: ...

    def read(self, index: int, begin: int, end: int) -> NDArray[np.float32]:
        """Frames ``begin`` to ``end`` of an utterance: (n, D) float32."""
        ...


class CachedFeatures:
    """Features of a cache."""

    threads = 4

    def __init__(self, cache: FeatureCache) -> None:
        self._cache = cache
        self.ids = [entry.id for entry in cache.entries]
        self.speakers = [entry.speaker for entry in cache.entries]
        self.frames = [entry.frames for entry in cache.entries]
        self.dim = cache.facts.encoder.dim

    def read(self, index: int, begin: int, end: int) -> NDArray[np.float32]:
        """Frames ``begin`` to ``end`` of an utterance: (n, D) float32."""
        return self._cache.read(index, begin, end)


class EncodedSpeech:
    """Features that the encoder computes each time.

    Raises:
        ListError: No recording has a readable header.
    """

    threads = 1

    def __init__(self, encoder: Encoder, utterances: Sequence[Utterance], speakers: Mapping[str, str]) -> None:
        self._encoder, self._lock = encoder, threading.Lock()
        info = encoder.info
        counts = [info.frames(int(length * info.sample_rate)) for length in lengths_s(utterances)]
        self._utterances = [utterance for utterance, count in zip(utterances, counts, strict=True) if count]
        if not self._utterances:
            raise ListError("no recording can be read, or all are too short")
        self.ids = [utterance.id for utterance in self._utterances]
        self.speakers = [speakers.get(utterance.id) for utterance in self._utterances]
        self.frames = [count for count in counts if count]
        self.dim = info.dim

    def read(self, index: int, begin: int, end: int) -> NDArray[np.float32]:
        """Frames ``begin`` to ``end`` of an utterance: (n, D) float32.

        Raises:
            AudioError: The recording cannot be read, or is shorter than its header says.
        """
        info, utterance = self._encoder.info, self._utterances[index]
        waveform = read_utterance(utterance, info.sample_rate, info.min_samples)
        assert not isinstance(waveform, Recording)
        with self._lock:
            features = self._encoder.encode(waveform)
        if len(features) <= begin:
            raise AudioError(f"{utterance.shown}: {len(features)} frames, its header says {self.frames[index]}")
        return features[begin:end]


def held_out_speakers(valid: str, source: Source, seed: str) -> set[str]:
    """The speakers that are held out.

    Args:
        valid: A share, such as ``0.05``, or the path of a list of speakers, one a line.
        source: Of the training.
        seed: Decides which are drawn for a share.

    Raises:
        ListError: Speakers are not known, none or all would be held out, or the list is not readable.
    """
    known = sorted({speaker for speaker in source.speakers if speaker is not None})
    if not known:
        raise ListError("speakers are not known, so none can be held out; give utt2spk, or make the cache with it")
    try:
        share = float(valid)
    except ValueError:
        held = {line.strip() for _, line in read_lines(Path(valid), standard_input=False)} & set(known)
        if not held:
            raise ListError(f"{valid}: none of its speakers is in the speech") from None
    else:
        if not 0 < share < 1:
            raise ListError(f"valid is {printable(valid)}; expected a share of the speakers between 0 and 1, or a list")
        count = max(1, round(share * len(known)))
        held = set(generator_of(seed, "held out").permutation(known)[:count].tolist())
    if len(held) == len(known):
        raise ListError("all speakers would be held out, and none is left to train on")
    return held
