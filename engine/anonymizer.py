"""The whole pass as one object: waveform → features → cluster ids → centroids → restored features → waveform."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast import ArtifactError, AudioError, BankError, MkcError
from mkc_fast.engine.artifacts import Bank, ModelInfo, open_bank, read_model_info
from mkc_fast.engine.audio import check_waveform
from mkc_fast.engine.draws import check_draw, draw_bank_ids, fresh_seed, waveform_id
from mkc_fast.engine.sessions import Sessions, open_sessions
from mkc_fast.engine.windows import exact_windows
from mkc_fast.kernels import Lookup, make_lookup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray

STAGES = ("encode", "assign", "restore", "vocode")
# The vocoder's buffers take some 30 MB a second of audio; past this many frames it runs in exact windows.
_VOCODER_WINDOW_FRAMES = 1500


@dataclass(frozen=True)
class Result:
    """An anonymized utterance.

    Attributes:
        waveform: (T * hop,) float32 in [-1, 1].
        bank_ids: (T,) int64, the bank entry of each frame.
        cluster_ids: (T,) int32, the cluster of each frame in its entry.
        stage_seconds: Wall-clock seconds of each stage.
    """

    waveform: NDArray[np.float32]
    bank_ids: NDArray[np.int64]
    cluster_ids: NDArray[np.int32]
    stage_seconds: dict[str, float] = field(default_factory=dict, compare=False, repr=False)


class Anonymizer:
    """Anonymizes speech with one exported model and one bank of k-means models (method: arXiv 2508.07086)."""

    def __init__(self, info: ModelInfo, bank: Bank, sessions: Sessions, lookup: Lookup) -> None:
        """Use ``Anonymizer.load``."""
        self.info = info
        self.bank = bank
        self._sessions = sessions
        self._lookup = lookup

    @classmethod
    def load(
        cls, model: str | PathLike[str], bank: str | PathLike[str], device: str = "cpu", *, threads: int | None = None
    ) -> Anonymizer:
        """Open exported artifacts.

        Args:
            model: Directory made by ``export_model``.
            bank: Directory made by ``build_bank``; it is mapped, not read, so its size costs no time.
            device: ``"cpu"`` or ``"cuda:<number>"``.
            threads: Threads of one operator on the CPU; default: one a core.

        Raises:
            ArtifactError: An artifact is missing, damaged, or the two do not fit together.
            DeviceError: The device is not here.
        """
        model_path, bank_path = Path(model), Path(bank)
        info, opened = read_model_info(model_path), open_bank(bank_path)
        if opened.info.dim != info.dim:
            raise ArtifactError(f"{bank_path}: has {opened.info.dim} dimensions, {model_path} has {info.dim}")
        sessions = open_sessions(model_path, device, threads)
        lookup = make_lookup(opened.centroids, opened.half_norms, opened.info.num_clusters)
        return cls(info, opened, sessions, lookup)

    def encode(self, waveform: ArrayLike) -> NDArray[np.float32]:
        """WavLM features of a waveform: (S,) float in [-1, 1] at the model's rate → (T, D) float32.

        T is ``(S - min_samples) // hop + 1``. The waveform is fed as it is, without normalization.

        Raises:
            AudioError: The waveform is not (S,) float, shorter than ``min_samples``, or not finite.
        """
        checked = check_waveform(waveform, self.info.min_samples)
        inputs = {"waveform": checked[None], "lengths": np.array([len(checked)], np.int64)}
        features: NDArray[np.float32] = self._sessions.wavlm.run(["features"], inputs)[0][0]
        if not np.isfinite(features).all():
            raise AudioError("the features of this waveform are not finite; are its samples within [-1, 1]?")
        return features

    def assign(self, features: ArrayLike, bank_ids: ArrayLike) -> NDArray[np.int32]:
        """The nearest cluster of each frame in that frame's bank entry: (T, D), (T,) int → (T,) int32.

        Of clusters at the same distance the lowest id wins.

        Raises:
            BankError: A shape, type or id does not fit the bank, or features are not finite.
        """
        return self._lookup.assign(features, bank_ids)

    def lookup(self, bank_ids: ArrayLike, cluster_ids: ArrayLike) -> NDArray[np.float32]:
        """The centroids of these ids: (T,) int, (T,) int → (T, D) float32.

        Raises:
            BankError: A shape, type or id does not fit the bank.
        """
        return self._lookup.lookup(bank_ids, cluster_ids)

    def restore(self, quantized: ArrayLike) -> NDArray[np.float32]:
        """The conformer: centroids (T, D) → features (T, D) float32.

        Raises:
            BankError: The shape or type is another, or values are not finite.
        """
        checked = self._check_features(quantized)
        inputs = {"features": checked[None], "lengths": np.array([len(checked)], np.int64)}
        restored: NDArray[np.float32] = self._sessions.conformer.run(["restored"], inputs)[0][0]
        return restored

    def vocode(self, restored: ArrayLike) -> NDArray[np.float32]:
        """HiFi-GAN: features (T, D) → waveform (T * hop,) float32 in [-1, 1].

        Long inputs run in windows that overlap by the generator's receptive field, which changes no sample.

        Raises:
            BankError: The shape or type is another, or values are not finite.
        """
        checked = self._check_features(restored)
        hop, reach = self.info.hop, self.info.vocoder_reach
        waveform = np.empty(len(checked) * hop, np.float32)
        for window in exact_windows(len(checked), max(_VOCODER_WINDOW_FRAMES, 4 * reach), reach):
            inputs = {"features": checked[None, window.start : window.stop]}
            part = self._sessions.vocoder.run(["waveform"], inputs)[0][0]
            begin, end = (window.keep_start - window.start) * hop, (window.keep_stop - window.start) * hop
            waveform[window.keep_start * hop : window.keep_stop * hop] = part[begin:end]
        return waveform

    def anonymize(
        self,
        waveform: ArrayLike,
        mode: str = "frame",
        stride: int = 1,
        seed: int | None = None,
        utterance_id: str | None = None,
        bank_ids: ArrayLike | None = None,
    ) -> Result:
        """Anonymize one utterance.

        Args:
            waveform: (S,) float in [-1, 1] at the model's rate.
            mode: ``"frame"`` draws a bank entry every ``stride`` frames, ``"audio"`` one for the whole utterance.
            stride: Frames that share a draw.
            seed: Makes the draws repeatable: they then depend on seed, utterance id and frame alone. Without it they
                come from the operating system's entropy, and nobody can predict them.
            utterance_id: With a seed, what tells this utterance's draws from others'; default: a digest of its samples.
            bank_ids: (T,) int, the bank entry of each frame, instead of drawing.

        Raises:
            AudioError: The waveform is not (S,) float, too short, or not finite.
            BankError: ``bank_ids`` does not fit.
            MkcError: An unknown mode or a stride below 1.
        """
        check_draw(mode, stride)
        checked = check_waveform(waveform, self.info.min_samples)
        frames = self.info.frames(len(checked))
        if bank_ids is not None:
            banks = np.asarray(bank_ids)
            if banks.shape != (frames,):
                raise BankError(f"bank_ids has shape {banks.shape}; this waveform has {frames} frames")
        else:
            banks = draw_bank_ids(
                frames,
                len(self.bank),
                mode=mode,
                stride=stride,
                seed=fresh_seed() if seed is None else _check_seed(seed),
                utterance_id=waveform_id(checked) if utterance_id is None else utterance_id,
            )
        seconds: dict[str, float] = {}
        with _timed(seconds, "encode"):
            features = self.encode(checked)
        with _timed(seconds, "assign"):
            cluster_ids = self.assign(features, banks)
            quantized = self.lookup(banks, cluster_ids)
        with _timed(seconds, "restore"):
            restored = self.restore(quantized)
        with _timed(seconds, "vocode"):
            speech = self.vocode(restored)
        return Result(speech, banks.astype(np.int64), cluster_ids, seconds)

    def anonymize_batch(
        self,
        waveforms: Sequence[ArrayLike],
        mode: str = "frame",
        stride: int = 1,
        seed: int | None = None,
        utterance_ids: Sequence[str] | None = None,
    ) -> list[Result]:
        """Anonymize several utterances, of any lengths; each gets what ``anonymize`` gives it alone.

        Raises:
            MkcError: As ``anonymize``, or there is not an id for every waveform.
        """
        ids = [None] * len(waveforms) if utterance_ids is None else list(utterance_ids)
        if len(ids) != len(waveforms):
            raise MkcError(f"{len(waveforms)} waveforms, but {len(ids)} utterance ids")
        return [
            self.anonymize(waveform, mode, stride, seed, utterance_id)
            for waveform, utterance_id in zip(waveforms, ids, strict=True)
        ]

    def _check_features(self, features: ArrayLike) -> NDArray[np.float32]:
        array = np.asarray(features)
        if array.ndim != 2 or array.shape[1] != self.info.dim or not len(array) or array.dtype.kind != "f":
            raise BankError(
                f"features have shape {array.shape} and type {array.dtype}; expected (T, {self.info.dim}) float32"
            )
        if not np.isfinite(array).all():
            raise BankError("features are not finite")
        return np.ascontiguousarray(array, np.float32)


def _check_seed(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise MkcError(f"seed is {seed!r}; expected a whole number")
    return int(seed)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - begin
