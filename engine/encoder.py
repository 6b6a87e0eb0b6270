"""WavLM alone: speech → features, for whoever trains on them and has no bank yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.engine.artifacts import read_model_info
from mkc_fast.engine.batching import group_for_pass
from mkc_fast.engine.cache_folder import default_cache
from mkc_fast.engine.devices import cuda_index
from mkc_fast.engine.digests import Verification
from mkc_fast.engine.options import OVERLAP_S, EngineOptions, default_batch_s
from mkc_fast.engine.passes.host import Encoding, checked_rows
from mkc_fast.engine.sessions.graph_facts import check_graphs, files_of
from mkc_fast.engine.sessions.opening import open_sessions
from mkc_fast.names import CPU, ENCODE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.audio.read import ForwardSamples


class Encoder:
    """Computes WavLM features with an exported model; it is for one thread at a time.

    Attributes:
        info: Of the model.
        chosen: One line: what the graph runs on, and in which precision.
    """

    def __init__(
        self,
        info: ModelInfo,
        encoding: Encoding,
        chosen: str,
        verification: Verification,
        window_frames: int,
        batch_s: float,
    ) -> None:
        """Use ``Encoder.load``."""
        self.info, self.chosen = info, chosen
        self._encoding, self._verification = encoding, verification
        self._window_frames, self._batch_s = window_frames, batch_s

    @classmethod
    def load(cls, model: str | PathLike[str], device: str = CPU, *, options: EngineOptions | None = None) -> Encoder:
        """Open an exported model.

        Args:
            model: Directory made by ``export_model``.
            device: ``"cpu"`` or ``"cuda:<number>"``.
            options: Provider, precision, threads, window, batch. Default: ``EngineOptions()``, whose features are
                float32's on every device.

        Raises:
            ArtifactError: The model is missing or damaged.
            DeviceError: The device is not here.
        """
        path, options = Path(model), options or EngineOptions()
        info = read_model_info(path)
        cuda_index(device)
        verification = Verification(options.cache or default_cache())
        sessions = open_sessions(path, device, options)
        check_graphs(path, info, sessions)
        verification.begin(path, files_of(path, info, sessions.files))
        per_second = info.sample_rate / info.hop
        window, overlap = int(options.max_window_s * per_second), int(OVERLAP_S * per_second)
        batch_s = default_batch_s(device) if options.batch_s is None else options.batch_s
        if sessions.buckets is not None:
            batch_s = 0.0  # such sessions take no batch of any size
        encoding = Encoding(info, sessions.wavlm, window, overlap)
        return cls(info, encoding, sessions.chosen, verification, window, batch_s)

    def batches(self, frames: Sequence[int]) -> list[list[int]]:
        """Which recordings ``encode_batch`` takes at once: indices of these numbers of frames, by length."""
        seconds = [count * self.info.hop / self.info.sample_rate for count in frames]
        return group_for_pass(frames, seconds, self._batch_s, window_frames=self._window_frames, max_batch=None)

    def encode(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of a checked waveform: (S,) float32 at the model's rate → (T, D) float32, as ``Anonymizer.encode``.

        Raises:
            ArtifactError: A file of the model was changed.
            NotFiniteError: The features are not finite.
        """
        return np.concatenate([part for _, part in self.parts(waveform)])

    def encode_batch(self, waveforms: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Features of checked waveforms that run at once: (S,) float32 each → (T, D) float32 each.

        One waveform gets the same features in a batch and alone, to rounding.

        Raises:
            ArtifactError: A file of the model was changed.
            NotFiniteError: The features are not finite.
        """
        counts = [self.info.frames(len(waveform)) for waveform in waveforms]
        if len(waveforms) == 1 or max(counts) > self._window_frames:
            return [self.encode(waveform) for waveform in waveforms]
        rows = checked_rows(ENCODE, self._encoding.together(waveforms), counts)
        self._verification.wait()
        return rows

    def parts(self, waveform: NDArray[np.float32] | ForwardSamples) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The features in consecutive parts, for recordings of any length: the first frame's number, (n, D).

        Raises:
            ArtifactError: A file of the model was changed.
            NotFiniteError: The features are not finite.
        """
        for part in self._encoding.encode(waveform):
            self._verification.wait()
            yield part
