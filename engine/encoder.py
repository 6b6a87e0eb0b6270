"""WavLM alone: speech → features, for whoever trains on them and has no bank yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.engine.artifacts import read_model_info
from mkc_fast.engine.cache_folder import default_cache
from mkc_fast.engine.devices import cuda_index
from mkc_fast.engine.digests import Verification
from mkc_fast.engine.options import OVERLAP_S, EngineOptions
from mkc_fast.engine.passes.host import Encoding
from mkc_fast.engine.sessions.graph_facts import check_graphs, files_of
from mkc_fast.engine.sessions.opening import open_sessions
from mkc_fast.names import CPU

if TYPE_CHECKING:
    from collections.abc import Iterator
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

    def __init__(self, info: ModelInfo, encoding: Encoding, chosen: str, verification: Verification) -> None:
        """Use ``Encoder.load``."""
        self.info, self.chosen = info, chosen
        self._encoding, self._verification = encoding, verification

    @classmethod
    def load(cls, model: str | PathLike[str], device: str = CPU, *, options: EngineOptions | None = None) -> Encoder:
        """Open an exported model.

        Args:
            model: Directory made by ``export_model``.
            device: ``"cpu"`` or ``"cuda:<number>"``.
            options: Provider, precision, threads, window. Default: ``EngineOptions()``, whose features are float32's on
                every device.

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
        return cls(info, Encoding(info, sessions.wavlm, window, overlap), sessions.chosen, verification)

    def encode(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of a checked waveform: (S,) float32 at the model's rate → (T, D) float32, as ``Anonymizer.encode``.

        Raises:
            ArtifactError: A file of the model was changed.
            NotFiniteError: The features are not finite.
        """
        return np.concatenate([part for _, part in self.parts(waveform)])

    def parts(self, waveform: NDArray[np.float32] | ForwardSamples) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The features in consecutive parts, for recordings of any length: the first frame's number, (n, D).

        Raises:
            ArtifactError: A file of the model was changed.
            NotFiniteError: The features are not finite.
        """
        for part in self._encoding.encode(waveform):
            self._verification.wait()
            yield part
