"""The whole pass as one object: waveform → features → cluster ids → centroids → restored features → waveform."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from mkc_fast import ArtifactError, AudioError, BankError, DeviceError, DeviceMemoryError, MkcError
from mkc_fast.engine.artifacts import Bank, ModelInfo, open_bank, read_model_info
from mkc_fast.engine.audio import check_waveform
from mkc_fast.engine.batching import DEFAULT_WINDOW_S, default_batch_s, group_by_length, parts_of
from mkc_fast.engine.devices import cuda_index
from mkc_fast.engine.digests import Verification
from mkc_fast.engine.draws import check_draw, check_entries, draw_bank_ids, draw_entries, fresh_seed, waveform_id
from mkc_fast.engine.graph_facts import check_graphs, files_of
from mkc_fast.engine.layout import BATCH_WINDOW_FRAMES, most_frames, window_frames
from mkc_fast.engine.providers import CUDA, Buckets, Tuning, default_cache
from mkc_fast.engine.sessions import Sessions, open_sessions
from mkc_fast.engine.windows import (
    NUMPY_ROWS,
    Window,
    common_window,
    crossfaded,
    exact_pieces,
    exact_windows,
    sample_range,
    window_groups,
)
from mkc_fast.kernels import Lookup, make_lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray

    from mkc_fast.engine.device_pass import DevicePass, Pending

_T = TypeVar("_T")
logger = logging.getLogger("mkc_fast")

STAGES = ("encode", "assign", "restore", "vocode")
# Neighbouring windows share so much: a quarter of it at either end is dropped, the middle half is faded.
_OVERLAP_S = 4.0
# The vocoder's buffers take some 15 MB a second of audio; past so many frames it runs in exact windows.
_VOCODER_WINDOW_FRAMES = 1500
# Groups of utterances that are on a device at once: one computes while the next goes up and the last comes down.
_GROUPS_AT_ONCE = 2


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

    def __init__(
        self,
        info: ModelInfo,
        bank: Bank,
        sessions: Sessions,
        lookup: Lookup,
        device: str,
        max_window_s: float,
        verification: Verification | None = None,
    ) -> None:
        """Use ``Anonymizer.load``."""
        self._verification = verification
        self.info = info
        self.bank = bank
        self.device = device
        self._sessions = sessions
        self._lookup = lookup
        self._device_pass: DevicePass | None = None
        self._padded_s_limit = float("inf")  # of a batch, once the device had too little memory for more
        per_second = info.sample_rate / info.hop
        self._overlap_frames = int(_OVERLAP_S * per_second)
        self._window_frames = int(max_window_s * per_second)
        if self._window_frames < 2 * self._overlap_frames:
            raise MkcError(f"max_window_s is {max_window_s:g}; it must be at least {2 * _OVERLAP_S:g}")
        if sessions.buckets is not None:
            most = most_frames(sessions.buckets, info)
            self._window_frames = most if sessions.buckets.fixed else min(self._window_frames, most)
            if self._window_frames < 2 * self._overlap_frames:
                raise MkcError(
                    f"the buckets take {sessions.buckets.max_seconds:g} s; they must take at least {2 * _OVERLAP_S:g}"
                )

    @property
    def chosen(self) -> str:
        """One line: what the graphs run on, in which precision, and why nothing faster."""
        return self._sessions.chosen

    @property
    def ran(self) -> dict[str, object]:
        """What decides the last bits of every sample: provider, precision, operators, ONNX Runtime's version, device.

        Two that are equal compute the same from the same draws, if batches are the same; ``infer`` records it.
        """
        return dict(self._sessions.ran)

    @classmethod
    def load(
        cls,
        model: str | PathLike[str],
        bank: str | PathLike[str],
        device: str = "cpu",
        *,
        threads: int | None = None,
        max_window_s: float = DEFAULT_WINDOW_S,
        provider: str = "auto",
        precision: str = "auto",
        latency_buckets_s: Sequence[float] = (),
        tuning: Tuning | None = None,
        cache: str | PathLike[str] | None = None,
    ) -> Anonymizer:
        """Open exported artifacts.

        Where this machine has not seen their files as they are now, the files' digests are computed while the graphs
        are opened and the first results are computed; no result is handed out before they are known to fit.

        Args:
            model: Directory made by ``export_model``.
            bank: Directory made by ``build_bank``; it is mapped, not read, so its size costs no time.
            device: ``"cpu"`` or ``"cuda:<number>"``.
            threads: Threads of one operator on the CPU; default: one a core.
            max_window_s: A longer recording is encoded and restored in windows of so many seconds, cross-faded.
            provider: Of ONNX Runtime: ``"auto"``, ``"tensorrt"``, ``"cuda"`` or ``"cpu"``; never silently replaced.
            precision: ``"auto"``, ``"fp32"``, ``"tf32"``, ``"fp16"``, ``"bf16"``, ``"int8"``, as the provider has them.
            latency_buckets_s: On a GPU, sizes in seconds, such as ``(1, 3, 10, 30)``, for which the graphs are also
                opened with fixed shapes and recorded as CUDA graphs: a single utterance is padded to the least that it
                fits, and runs without a launch for each operator. Each size holds another copy of the weights.
            tuning: Sizes and options of the provider, for benchmarks.
            cache: Folder of TensorRT's engines, of what a CPU prepares and of known digests; default: the user's cache
                folder.

        Raises:
            ArtifactError: An artifact is missing, damaged, or the two do not fit together; of a digest that does not
                fit, the first result tells.
            DeviceError: The device is not here.
        """
        model_path, bank_path = Path(model), Path(bank)
        info, opened = read_model_info(model_path), open_bank(bank_path)
        if opened.info.dim != info.dim:
            raise ArtifactError(f"{bank_path}: has {opened.info.dim} dimensions, {model_path} has {info.dim}")
        index, kept = cuda_index(device), None if cache is None else Path(cache)
        verification = Verification(kept or default_cache())
        verification.begin(bank_path, opened.info.files)
        arrays = opened.centroids, opened.half_norms, opened.info.num_clusters
        if index is None:
            if latency_buckets_s:
                raise DeviceError("latency_buckets_s are CUDA graphs; the device is cpu")
            sessions = open_sessions(
                model_path, device, threads, provider=provider, precision=precision, cache=kept, tuning=tuning
            )
            check_graphs(model_path, info, sessions)
            verification.begin(model_path, files_of(model_path, info, sessions.files))
            return cls(info, opened, sessions, make_lookup(*arrays), device, max_window_s, verification)
        from mkc_fast.engine.device_pass import DevicePass, Place
        from mkc_fast.kernels.cupy_lookup import CupyLookup

        place = Place(index)
        stream = place.compute.ptr
        sessions = open_sessions(
            model_path,
            device,
            threads,
            provider=provider,
            precision=precision,
            cache=kept,
            stream=stream,
            tuning=tuning,
        )
        check_graphs(model_path, info, sessions)
        verification.begin(model_path, files_of(model_path, info, sessions.files))
        latency = [
            open_sessions(
                model_path,
                device,
                threads,
                provider=sessions.provider,
                precision=sessions.precision,
                cache=kept,
                stream=stream,
                tuning=_latency_tuning(tuning or Tuning(), seconds, info, recorded=sessions.provider == CUDA),
            )
            for seconds in sorted(latency_buckets_s)
        ]
        lookup = make_lookup(*arrays, backend="cupy", device=index)
        assert isinstance(lookup, CupyLookup)
        anonymizer = cls(info, opened, sessions, lookup, device, max_window_s, verification)
        anonymizer._device_pass = DevicePass(
            place,
            info,
            lookup,
            sessions,
            latency,
            window_frames=anonymizer._window_frames,
            overlap_frames=anonymizer._overlap_frames,
        )
        anonymizer._device_pass.warm_up()
        return anonymizer

    def encode(self, waveform: ArrayLike) -> NDArray[np.float32]:
        """WavLM features of a waveform: (S,) float in [-1, 1] at the model's rate → (T, D) float32.

        T is ``(S - min_samples) // hop + 1``. The waveform is fed as it is, without normalization. One longer than
        ``max_window_s`` is encoded in windows: attention then sees no further than its window, so the features are
        close to those of the whole, not equal.

        Raises:
            AudioError: The waveform is not (S,) float, shorter than ``min_samples``, or not finite.
        """
        checked = check_waveform(waveform, self.info.min_samples)
        with self._verified():
            return _joined(self._encoded(checked), self.info.frames(len(checked)), self.info.dim)

    def assign(self, features: ArrayLike, bank_ids: ArrayLike) -> NDArray[np.int32]:
        """The nearest cluster of each frame in that frame's bank entry: (T, D), (T,) int → (T,) int32.

        Of clusters at the same distance the lowest id wins.

        Raises:
            BankError: A shape, type or id does not fit the bank, or features are not finite.
        """
        with self._verified():
            return self._lookup.assign(features, bank_ids)

    def lookup(self, bank_ids: ArrayLike, cluster_ids: ArrayLike) -> NDArray[np.float32]:
        """The centroids of these ids: (T,) int, (T,) int → (T, D) float32.

        Raises:
            BankError: A shape, type or id does not fit the bank.
        """
        with self._verified():
            return self._lookup.lookup(bank_ids, cluster_ids)

    def restore(self, quantized: ArrayLike) -> NDArray[np.float32]:
        """The conformer: centroids (T, D) → features (T, D) float32, in windows where ``encode`` would use them.

        Raises:
            BankError: The shape or type is another, or values are not finite.
        """
        checked = self._check_features(quantized)
        with self._verified():
            return _joined(self._restored(len(checked), lambda a, b: checked[a:b]), len(checked), self.info.dim)

    def vocode(self, restored: ArrayLike) -> NDArray[np.float32]:
        """HiFi-GAN: features (T, D) → waveform (T * hop,) float32 in [-1, 1].

        Long inputs run in windows that overlap by the generator's receptive field, which changes no sample.

        Raises:
            BankError: The shape or type is another, or values are not finite.
        """
        checked = self._check_features(restored)
        with self._verified():
            return self._vocoded(len(checked), iter([(0, checked)]))

    def draw_entries(self, kmeans_num: int, seed: int | None = None) -> NDArray[np.int64]:
        """A random subset of the bank's entries, for ``entries`` of ``anonymize``: (min(N, kmeans_num),) int64.

        With a seed it is what ``mkc-fast infer --kmeans-num --seed`` draws; without one it comes from the operating
        system's entropy. More than there are draws all.

        Raises:
            BankError: ``kmeans_num`` is not a whole number from 1 up.
            MkcError: The seed is not a whole number.
        """
        return draw_entries(len(self.bank), kmeans_num, None if seed is None else _check_seed(seed))

    def anonymize(
        self,
        waveform: ArrayLike,
        mode: str = "frame",
        stride: int = 1,
        seed: int | None = None,
        utterance_id: str | None = None,
        bank_ids: ArrayLike | None = None,
        *,
        entries: ArrayLike | None = None,
    ) -> Result:
        """Anonymize one utterance.

        Args:
            waveform: (S,) float in [-1, 1] at the model's rate.
            mode: ``"audio"`` draws one bank entry for the whole utterance, ``"frame"`` one every ``stride`` frames.
            stride: Frames that share a draw.
            seed: Makes the draws repeatable: they then depend on seed, utterance id and frame alone. Without it they
                come from the operating system's entropy, and nobody can predict them.
            utterance_id: With a seed, what tells this utterance's draws from others'; default: a digest of its samples.
            bank_ids: (T,) int, the bank entry of each frame, instead of drawing.
            entries: (n,) int, the bank entries to draw from; default: all. ``draw_entries`` draws some at random.

        Raises:
            AudioError: The waveform is not (S,) float, too short, or not finite.
            BankError: ``bank_ids`` or ``entries`` do not fit, or both are given.
            MkcError: An unknown mode or a stride below 1.
        """
        check_draw(mode, stride)
        checked = check_waveform(waveform, self.info.min_samples)
        if bank_ids is not None and entries is not None:
            raise BankError("bank_ids are given and entries to draw them from; give one of the two")
        banks = self._banks(checked, mode, stride, seed, utterance_id, bank_ids, self._entries(entries))
        with self._verified():
            return self._submitted([checked], [banks]).result()[0]

    def anonymize_batch(
        self,
        waveforms: Sequence[ArrayLike],
        mode: str = "frame",
        stride: int = 1,
        seed: int | None = None,
        utterance_ids: Sequence[str] | None = None,
        *,
        batch_s: float | None = None,
        entries: ArrayLike | None = None,
    ) -> list[Result]:
        """Anonymize several utterances, of any lengths; each gets what ``anonymize`` gives it alone.

        The draws and cluster ids are the same, and the samples to 1e-4.

        Args:
            waveforms: As for ``anonymize``.
            mode: As for ``anonymize``.
            stride: As for ``anonymize``.
            seed: As for ``anonymize``; without it each utterance has draws of its own.
            utterance_ids: One for each waveform.
            batch_s: Padded seconds of audio that run at once; 0 runs each alone. Default: 0 on a CPU, where batches
                do not pay, and 240 on a GPU.
            entries: As for ``anonymize``.

        Raises:
            MkcError: As ``anonymize``, or there is not an id for every waveform.
        """
        return self.submit_batch(
            waveforms, mode, stride, seed, utterance_ids, batch_s=batch_s, entries=entries
        ).result()

    def submit_batch(
        self,
        waveforms: Sequence[ArrayLike],
        mode: str = "frame",
        stride: int = 1,
        seed: int | None = None,
        utterance_ids: Sequence[str] | None = None,
        *,
        batch_s: float | None = None,
        entries: ArrayLike | None = None,
    ) -> PendingBatch:
        """``anonymize_batch`` in two steps: begin here, and ask the object returned for the results.

        On a GPU the first step does not wait for the device, so that the next batch can be begun before the last one's
        results are asked for. On a CPU it does all the work.

        Raises:
            MkcError: As ``anonymize_batch``; what only the device can tell comes with the results.
        """
        ids = [None] * len(waveforms) if utterance_ids is None else list(utterance_ids)
        if len(ids) != len(waveforms):
            raise MkcError(f"{len(waveforms)} waveforms, but {len(ids)} utterance ids")
        check_draw(mode, stride)
        checked = [check_waveform(waveform, self.info.min_samples) for waveform in waveforms]
        subset = self._entries(entries)
        banks = [
            self._banks(waveform, mode, stride, seed, utterance_id, None, subset)
            for waveform, utterance_id in zip(checked, ids, strict=True)
        ]
        if batch_s is None:
            batch_s = default_batch_s(self.device)
        with self._failing_verified():
            return PendingBatch(self._groups(checked, batch_s), checked, banks, self._submitted, self._verified)

    @contextlib.contextmanager
    def _verified(self) -> Iterator[None]:
        """Let nothing out of the block, a result or an error, before the artifacts' files are known to be as made."""
        with self._failing_verified():
            yield
        if self._verification is not None:
            self._verification.wait()

    @contextlib.contextmanager
    def _failing_verified(self) -> Iterator[None]:
        """Let no error out of the block that a changed file explains."""
        try:
            yield
        except Exception:
            if self._verification is not None:
                self._verification.wait()
            raise

    def _groups(self, waveforms: Sequence[NDArray[np.float32]], batch_s: float) -> list[list[int]]:
        """Which of them run together: of like length, no longer than a window, and as many as the sessions take."""
        seconds = [len(waveform) / self.info.sample_rate for waveform in waveforms]
        most = self._sessions.buckets.max_batch if self._sessions.buckets is not None else len(waveforms)
        groups: list[list[int]] = []
        for group in group_by_length(seconds, batch_s):
            long = [i for i in group if self.info.frames(len(waveforms[i])) > self._window_frames]
            groups += [[index] for index in long]
            groups += parts_of(group[len(long) :], most)
        return groups

    def _submitted(self, waveforms: list[NDArray[np.float32]], banks: list[NDArray[np.int64]]) -> _Part:
        """Begin several utterances that run at once, or one that may be long."""
        if self._device_pass is None:
            if len(waveforms) == 1:
                return _Done([self._run_one(waveforms[0], banks[0])])
            return _Done(self._run_batch(waveforms, banks))
        return self._on_device(self._device_pass, waveforms, [self._lookup.checked_bank_ids(part) for part in banks])

    def _on_device(
        self,
        device: DevicePass,
        waveforms: list[NDArray[np.float32]],
        banks: list[NDArray[np.int64]],
        *,
        shrink: bool = False,
    ) -> _Part:
        """Begin utterances on the device, in halves where it has too little memory for all of them."""
        padded_s = len(waveforms) * max(map(len, waveforms)) / self.info.sample_rate
        if len(waveforms) == 1 or padded_s <= self._padded_s_limit:
            try:
                return _OnDevice(device.submit(waveforms, banks, shrink=shrink), banks)
            except DeviceMemoryError as error:
                device.recover()
                if len(waveforms) == 1:
                    if shrink:
                        raise
                    # Once more, now that nothing else is there.
                    return self._on_device(device, waveforms, banks, shrink=True)
                self._padded_s_limit, shrink = padded_s / 2, True
                logger.warning(
                    "%s: too little memory for %d utterances (%.0f s, padded) at once, going on with half of that: %s",
                    self.device,
                    len(waveforms),
                    padded_s,
                    error,
                )
        middle, parts = len(waveforms) // 2, []
        for half in (slice(None, middle), slice(middle, None)):
            part = self._on_device(device, waveforms[half], banks[half], shrink=shrink)
            parts.append(_Done(part.result()) if shrink else part)  # where memory is short, one after the other
        return _Joined(parts)

    def _banks(
        self,
        waveform: NDArray[np.float32],
        mode: str,
        stride: int,
        seed: int | None,
        utterance_id: str | None,
        given: ArrayLike | None,
        entries: NDArray[np.int64] | None,
    ) -> NDArray[np.int64]:
        """The bank entry of each frame, given or drawn (from ``entries``, where these are given)."""
        frames = self.info.frames(len(waveform))
        if given is not None:
            banks = np.asarray(given)
            if banks.shape != (frames,):
                raise BankError(f"bank_ids has shape {banks.shape}; this waveform has {frames} frames")
            return banks
        drawn = draw_bank_ids(
            frames,
            len(self.bank) if entries is None else len(entries),
            mode=mode,
            stride=stride,
            seed=fresh_seed() if seed is None else _check_seed(seed),
            utterance_id=waveform_id(waveform) if utterance_id is None else utterance_id,
        )
        return drawn if entries is None else entries[drawn]

    def _entries(self, given: ArrayLike | None) -> NDArray[np.int64] | None:
        return None if given is None else check_entries(given, len(self.bank))

    def _run_one(self, waveform: NDArray[np.float32], banks: NDArray[np.int64]) -> Result:
        """The whole pass over one utterance; of a long one, no more than a window's features are held at a time."""
        clock = _Clock()
        frames = len(banks)
        cluster_ids = np.empty(frames, np.int32)
        for start, features in clock.over("encode", self._encoded(waveform)):
            part = slice(start, start + len(features))
            with clock.of("assign"):
                cluster_ids[part] = self.assign(features, banks[part])
        restored = self._restored(frames, lambda a, b: self.lookup(banks[a:b], cluster_ids[a:b]))
        with clock.of("vocode"):
            speech = self._vocoded(frames, clock.over("restore", restored, within="vocode"))
        return Result(speech, banks.astype(np.int64), cluster_ids, dict(clock.seconds))

    def _run_batch(self, waveforms: list[NDArray[np.float32]], banks: list[NDArray[np.int64]]) -> list[Result]:
        """The whole pass over several utterances at once."""
        clock = _Clock()
        with clock.of("encode"):
            lengths = np.array([len(waveform) for waveform in waveforms], np.int64)
            padded = np.zeros((len(waveforms), int(lengths.max())), np.float32)
            for row, waveform in zip(padded, waveforms, strict=True):
                row[: len(waveform)] = waveform
            features = self._sessions.wavlm.run(["features"], {"waveform": padded, "lengths": lengths})[0]
        counts = [len(part) for part in banks]
        with clock.of("assign"):
            together = np.concatenate([row[:count] for row, count in zip(features, counts, strict=True)])
            all_banks = np.concatenate(banks)
            all_ids = self.assign(_finite(together), all_banks)
            quantized = np.zeros_like(features)
            ends = np.cumsum(counts)
            cluster_ids = np.split(all_ids, ends[:-1])
            for row, count, part in zip(
                quantized, counts, np.split(self.lookup(all_banks, all_ids), ends[:-1]), strict=True
            ):
                row[:count] = part
        with clock.of("restore"):
            inputs = {"features": quantized, "lengths": np.array(counts, np.int64)}
            restored = self._sessions.conformer.run(["restored"], inputs)[0]
        with clock.of("vocode"):
            speech = self._vocoded_batch([row[:count] for row, count in zip(restored, counts, strict=True)])
        # An utterance's share of the batch's time is its share of the frames.
        shares = [{stage: s * count / sum(counts) for stage, s in clock.seconds.items()} for count in counts]
        return [Result(*parts) for parts in zip(speech, banks, cluster_ids, shares, strict=True)]

    def _encoded(self, waveform: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Features of a waveform in consecutive pieces: the first frame's number, (n, D)."""
        hop, least = self.info.hop, self.info.min_samples
        frames = self.info.frames(len(waveform))

        def compute(start: int, stop: int) -> NDArray[np.float32]:
            begin, end = sample_range(start, stop, frames, len(waveform), hop, least)
            samples = waveform[begin:end]
            inputs = {"waveform": samples[None], "lengths": np.array([len(samples)], np.int64)}
            return _finite(self._sessions.wavlm.run(["features"], inputs)[0][0])

        return crossfaded(frames, self._window_frames, self._overlap_frames, compute, NUMPY_ROWS)

    def _restored(
        self, frames: int, quantized: Callable[[int, int], NDArray[np.float32]]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """What the conformer makes of ``quantized(start, stop)``, in consecutive pieces."""

        def compute(start: int, stop: int) -> NDArray[np.float32]:
            inputs = {"features": quantized(start, stop)[None], "lengths": np.array([stop - start], np.int64)}
            restored: NDArray[np.float32] = self._sessions.conformer.run(["restored"], inputs)[0][0]
            return restored

        return crossfaded(frames, self._window_frames, self._overlap_frames, compute, NUMPY_ROWS)

    def _vocoded(self, frames: int, pieces: Iterator[tuple[int, NDArray[np.float32]]]) -> NDArray[np.float32]:
        """The waveform of features that come in consecutive pieces, computed in exact windows as they come."""
        hop, reach = self.info.hop, self.info.vocoder_reach
        waveform = np.empty(frames * hop, np.float32)
        size = max(_VOCODER_WINDOW_FRAMES, 4 * reach)
        if self._sessions.buckets is not None:
            size = window_frames(self._sessions.buckets, self.info)
        for window, features in exact_pieces(exact_windows(frames, size, reach), pieces, NUMPY_ROWS):
            part = self._sessions.vocoder.run(["waveform"], {"features": features[None]})[0][0]
            _keep(waveform, window, part, hop)
        return waveform

    def _vocoded_batch(self, restored: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Waveforms of several utterances: windows of one length together, utterances shorter than that by length."""
        hop, reach = self.info.hop, self.info.vocoder_reach
        size = common_window([len(features) for features in restored], max(BATCH_WINDOW_FRAMES, 4 * reach), reach)
        waveforms = [np.empty(len(features) * hop, np.float32) for features in restored]
        for group in window_groups([exact_windows(len(features), size, reach) for features in restored]):
            batch = np.stack([restored[index][window.start : window.stop] for index, window in group.windows])
            parts = self._sessions.vocoder.run(["waveform"], {"features": batch})[0]
            for (index, window), part in zip(group.windows, parts, strict=True):
                _keep(waveforms[index], window, part, hop)
        return waveforms

    def _check_features(self, features: ArrayLike) -> NDArray[np.float32]:
        array = np.asarray(features)
        if array.ndim != 2 or array.shape[1] != self.info.dim or not len(array) or array.dtype.kind != "f":
            raise BankError(
                f"features have shape {array.shape} and type {array.dtype}; expected (T, {self.info.dim}) float32"
            )
        if not np.isfinite(array).all():
            raise BankError("features are not finite")
        return np.ascontiguousarray(array, np.float32)


class _Part(Protocol):
    """Utterances that have begun."""

    def result(self) -> list[Result]:
        """Of each, in their order."""


@dataclass(frozen=True)
class _Done:
    """Utterances that are finished."""

    results: list[Result]

    def result(self) -> list[Result]:
        return self.results


@dataclass(frozen=True)
class _Joined:
    """Utterances that run in several parts."""

    parts: list[_Part]

    def result(self) -> list[Result]:
        return [result for part in self.parts for result in part.result()]


@dataclass(frozen=True)
class _OnDevice:
    """Utterances that a device computes."""

    pending: Pending
    banks: list[NDArray[np.int64]]

    def result(self) -> list[Result]:
        return [
            Result(each.waveform, part.astype(np.int64), each.cluster_ids, each.stage_seconds)
            for each, part in zip(self.pending.result(), self.banks, strict=True)
        ]


class PendingBatch:
    """A batch that has begun; ask for its ``result`` once."""

    def __init__(
        self,
        groups: list[list[int]],
        waveforms: list[NDArray[np.float32]],
        banks: list[NDArray[np.int64]],
        submit: Callable[[list[NDArray[np.float32]], list[NDArray[np.int64]]], _Part],
        verified: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._verified = verified
        self._groups, self._waveforms, self._banks, self._submit = iter(groups), waveforms, banks, submit
        self._begun: deque[tuple[list[int], _Part]] = deque()
        self._begin()

    @property
    def done(self) -> bool:
        """Whether ``result`` has nothing to wait for and nothing to compute."""
        return all(isinstance(part, _Done) for _, part in self._begun)

    def _begin(self) -> None:
        """Begin as many groups as may be on a device at once."""
        while len(self._begun) < _GROUPS_AT_ONCE and (group := next(self._groups, None)) is not None:
            part = self._submit([self._waveforms[i] for i in group], [self._banks[i] for i in group])
            self._begun.append((group, part))

    def result(self) -> list[Result]:
        """Of each utterance, in their order; waits for the device.

        Raises:
            AudioError: The features of an utterance are not finite.
            DeviceError: The device failed.
        """
        results: dict[int, Result] = {}
        with self._verified():
            while self._begun:
                group, part = self._begun.popleft()
                results.update(zip(group, part.result(), strict=True))
                self._begin()
        return [results[index] for index in range(len(self._waveforms))]


def _latency_tuning(tuning: Tuning, seconds: float, info: ModelInfo, *, recorded: bool) -> Tuning:
    """For single utterances of up to so many seconds, padded to that, in one window of the vocoder."""
    if not seconds * info.sample_rate >= info.min_samples + 2 * info.vocoder_reach * info.hop:
        raise DeviceError(f"a latency bucket has {seconds:g} s; utterances so short run without one")
    buckets = Buckets(max_batch=1, max_seconds=seconds, fixed=True)
    buckets = replace(buckets, window_frames=most_frames(buckets, info))
    return replace(tuning, buckets=buckets, cuda_graph=recorded)


def _check_seed(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise MkcError(f"seed is {seed!r}; expected a whole number")
    return int(seed)


def _finite(features: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(features).all():
        raise AudioError("the features of this waveform are not finite; are its samples within [-1, 1]?")
    return features


def _joined(pieces: Iterator[tuple[int, NDArray[np.float32]]], frames: int, dim: int) -> NDArray[np.float32]:
    """Consecutive pieces as one array (frames, dim)."""
    start, first = next(pieces)
    if len(first) == frames:
        return first
    whole = np.empty((frames, dim), np.float32)
    whole[start : start + len(first)] = first
    for begin, piece in pieces:
        whole[begin : begin + len(piece)] = piece
    return whole


def _keep(waveform: NDArray[np.float32], window: Window, part: NDArray[np.float32], hop: int) -> None:
    """Put what a window keeps of its samples where they belong."""
    begin, end = (window.keep_start - window.start) * hop, (window.keep_stop - window.start) * hop
    waveform[window.keep_start * hop : window.keep_stop * hop] = part[begin:end]


class _Clock:
    """Adds up wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count the block towards a stage."""
        begin = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - begin

    def over(self, stage: str, items: Iterator[_T], within: str | None = None) -> Iterator[_T]:
        """Count what it takes to get each item towards a stage, and not towards the one it happens ``within``."""
        while True:
            begin = time.perf_counter()
            item = next(items, None)
            taken = time.perf_counter() - begin
            self.seconds[stage] += taken
            if within:
                self.seconds[within] -= taken
            if item is None:
                return
            yield item
