"""The speaker encoder (GE2E, arXiv 1710.10467) whose weights the package resemblyzer holds, without its code.

The package itself needs librosa, and a detector of speech that needs a compiler and an old setuptools. What is computed
here is what it computes: the volume raised to -30 dBFS, long silences cut out by WebRTC's detector, 40 mel bands of
25 ms every 10 ms, three LSTM layers over windows of 1.6 s, and the mean of their embeddings.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import AudioError, MkcError
from mkc_fast.evaluation.models import SAMPLE_RATE, ModelFacts, model_files, package_version, packaged
from mkc_fast.extras import required

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_NAME, _WEIGHTS = "resemblyzer", "pretrained.pt"
_BANDS, _HIDDEN, _LAYERS = 40, 256, 3
_WINDOW, _HOP = 400, 160  # samples of a frame, and from frame to frame
_PART_FRAMES, _PART_STEP, _LEAST_COVERAGE = 160, 77, 0.75
_PARTS_AT_ONCE = 256
_LEAST_DBFS = -30.0
_VAD_WINDOW, _VAD_MODE, _VAD_MEAN, _VAD_REACH = 480, 3, 8, 3  # samples; strictest; windows averaged; added to each side


@dataclass(frozen=True)
class Resemblyzer:
    """The encoder as a model: a waveform → an embedding (256,) float32 of length 1."""

    def facts(self) -> ModelFacts:
        """The package and its file of weights."""
        path = packaged(_NAME, _WEIGHTS)
        return ModelFacts("speaker encoder of resemblyzer", package_version(_NAME), model_files([path]))

    def open(self) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Load the weights; nothing in their file is executed."""
        with required("the speaker encoder", "torch", "webrtcvad"):
            import torch
            import webrtcvad  # noqa: F401 - so that it is missing here, not at the first recording
        path = packaged(_NAME, _WEIGHTS)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
            network = torch.nn.ModuleDict(
                {
                    "lstm": torch.nn.LSTM(_BANDS, _HIDDEN, _LAYERS, batch_first=True),
                    "linear": torch.nn.Linear(_HIDDEN, _HIDDEN),
                }
            )
            network.load_state_dict({key: value for key, value in state.items() if not key.startswith("similarity")})
        except Exception as error:  # torch raises many types on damaged files
            raise MkcError(f"{path}: not the weights of the speaker encoder ({type(error).__name__})") from None
        network.eval()
        bands = mel_bands()

        def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
            speech = _speech_of(_louder(waveform))
            if not len(speech):  # else all such recordings have one embedding, that of silence
                raise AudioError("has no speech that the detector finds, so it has no speaker")
            parts = _parts(_mel(speech, bands))
            with _one_thread(torch), torch.inference_mode():
                embeddings = [
                    _embedded(torch, network, parts[begin : begin + _PARTS_AT_ONCE])
                    for begin in range(0, len(parts), _PARTS_AT_ONCE)
                ]
            mean = np.concatenate(embeddings).mean(axis=0)
            return np.asarray(mean / np.linalg.norm(mean), np.float32)

        return embed


@contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """So few rows are not worth several threads, which wait for each other at each of the 160 frames."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _embedded(torch: Any, network: Any, parts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embeddings (P, 256) of mel frames (P, 160, 40)."""
    _, (hidden, _) = network["lstm"](torch.from_numpy(parts))
    raw = torch.relu(network["linear"](hidden[-1]))
    return np.asarray((raw / torch.norm(raw, dim=1, keepdim=True)).numpy(), np.float32)


def _louder(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The waveform at -30 dBFS at least.

    Raises:
        AudioError: It is silent.
    """
    power = float(np.mean(waveform.astype(np.float64) ** 2))
    if not power:
        raise AudioError("is silent, so it has no speaker")
    gain = 10 ** ((_LEAST_DBFS - 10 * np.log10(power)) / 20)
    return (waveform * gain).astype(np.float32) if gain > 1 else waveform


def _speech_of(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The waveform without the silences that are longer than 0.2 s or so."""
    import webrtcvad

    windows = waveform[: len(waveform) // _VAD_WINDOW * _VAD_WINDOW].reshape(-1, _VAD_WINDOW)
    samples = np.round(np.clip(windows, -1, 1) * 32767).astype("<i2")
    detector = webrtcvad.Vad(mode=_VAD_MODE)
    voiced = np.array([detector.is_speech(window.tobytes(), SAMPLE_RATE) for window in samples], np.float64)
    if not len(voiced):
        return waveform[:0]
    padded = np.pad(voiced, ((_VAD_MEAN - 1) // 2, _VAD_MEAN // 2))
    speech = np.round(np.convolve(padded, np.full(_VAD_MEAN, 1 / _VAD_MEAN), "valid")) > 0
    near = np.convolve(np.pad(speech, _VAD_REACH), np.ones(2 * _VAD_REACH + 1), "valid") > 0
    return windows[near].reshape(-1)


def _mel(waveform: NDArray[np.float32], bands: NDArray[np.float32]) -> NDArray[np.float32]:
    """Energies (T, 40) of mel bands, with silence after the end so that the last part is whole."""
    frames = -(-(len(waveform) + 1) // _HOP)
    starts = list(range(0, max(1, frames - _PART_FRAMES + _PART_STEP + 1), _PART_STEP))
    covered = (len(waveform) - starts[-1] * _HOP) / (_PART_FRAMES * _HOP)
    if covered < _LEAST_COVERAGE and len(starts) > 1:
        starts.pop()
    length = max(len(waveform), (starts[-1] + _PART_FRAMES) * _HOP)
    padded = np.pad(waveform, (_WINDOW // 2, length - len(waveform) + _WINDOW // 2))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    spans = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][: starts[-1] + _PART_FRAMES]
    spectrum = np.abs(np.fft.rfft(spans * window, axis=1)) ** 2
    return np.asarray(spectrum @ bands.T, np.float32)


def _parts(mel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Parts (P, 160, 40) of mel frames, one every 0.77 s."""
    return np.stack([mel[start : start + _PART_FRAMES] for start in range(0, len(mel) - _PART_FRAMES + 1, _PART_STEP)])


def mel_bands() -> NDArray[np.float32]:
    """Weights (40, 201) of triangular bands of equal area, on the mel scale of Slaney's Auditory Toolbox, to 8 kHz."""
    edges = _hertz(np.linspace(0, _mels(SAMPLE_RATE / 2), _BANDS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, _WINDOW // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None], np.float32)


# The scale is linear up to 1000 Hz, 15 mels, and then has 27 mels for a factor of 6.4.
_LINEAR, _BEND_HZ, _BEND, _STEP = 200 / 3, 1000.0, 15.0, np.log(6.4) / 27


def _mels(hertz: float) -> float:
    return float(_BEND + np.log(hertz / _BEND_HZ) / _STEP) if hertz >= _BEND_HZ else hertz / _LINEAR


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mels >= _BEND, _BEND_HZ * np.exp(_STEP * (np.maximum(mels, _BEND) - _BEND)), mels * _LINEAR)
