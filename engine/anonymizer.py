"""The whole pass as one object: waveform → features → cluster ids → centroids → restored features → waveform."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from mkc_fast.engine.artifacts import Bank, ModelInfo, open_bank, read_model_info
from mkc_fast.engine.audio.read import ForwardSamples, Recording, peak_of, read_waveform
from mkc_fast.engine.audio.waveform import LOUD_PEAK, check_waveform, resampled
from mkc_fast.engine.audio.write import FORMATS, write_waveform
from mkc_fast.engine.batching import group_by_length, parts_of
from mkc_fast.engine.cache_folder import default_cache
from mkc_fast.engine.devices import cuda_index
from mkc_fast.engine.digests import Verification
from mkc_fast.engine.draws import (
    check_draw,
    check_entries,
    check_seed,
    draw_bank_ids,
    draw_entries,
    fresh_seed,
    waveform_id,
)
from mkc_fast.engine.options import (
    AUTO,
    CUDA,
    DEFAULT_WINDOW_S,
    OVERLAP_S,
    Buckets,
    EngineOptions,
    Tuning,
    default_batch_s,
)
from mkc_fast.engine.passes.layout import BATCH_WINDOW_FRAMES, most_frames, window_frames
from mkc_fast.engine.passes.stages import STAGES, NotFiniteError, check_finite, check_shape
from mkc_fast.engine.sessions.graph_facts import check_graphs, files_of
from mkc_fast.engine.sessions.opening import Sessions, open_sessions
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
from mkc_fast.errors import (
    ArgumentError,
    ArtifactError,
    AudioError,
    BankError,
    DeviceError,
    DeviceMemoryError,
    MkcError,
    OutputError,
)
from mkc_fast.kernels import Lookup, make_lookup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from mkc_fast.engine.draws import Mode
    from mkc_fast.engine.passes.device import DevicePass, Pending

_T = TypeVar("_T")
logger = logging.getLogger("mkc_fast")

# The vocoder's buffers take some 15 MB a second of audio; past so many frames it runs in exact windows.
_VOCODER_WINDOW_FRAMES = 1500
# Groups of utterances that are on a device at once: one computes while the next goes up and the last comes down.
_GROUPS_AT_ONCE = 2


@dataclass(frozen=True)
class Result:
    """An anonymized utterance.

    Attributes:
        waveform: (T * hop,) float32 in [-1, 1] at the model's rate: 5 to 25 ms shorter than the input, since a frame of
            20 ms needs 25 ms of it. With ``pad`` it is as long as the input, and ends in silence.
        bank_ids: (T,) int64, the bank entry of each frame.
        cluster_ids: (T,) int32, the cluster of each frame in its entry.
        stage_seconds: Wall-clock seconds of each stage.
    """

    waveform: NDArray[np.float32]
    bank_ids: NDArray[np.int64]
    cluster_ids: NDArray[np.int32]
    stage_seconds: dict[str, float] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class StreamedResult:
    """An anonymized utterance whose waveform was handed on in blocks; attributes as those of ``Result``."""

    bank_ids: NDArray[np.int64]
    cluster_ids: NDArray[np.int32]
    stage_seconds: dict[str, float] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class _Utterance:
    """What the pass is run over.

    Attributes:
        waveform: (S,) float32.
        banks: (T,) int, the bank entry of each frame.
        name: In messages.
    """

    waveform: NDArray[np.float32]
    banks: NDArray[np.int64]
    name: str


class Anonymizer:
    """Anonymizes speech with one exported model and one bank of k-means models (method: arXiv 2508.07086).

    An object is for one thread at a time. As a context manager it closes its sessions at the end of the block.
    """

    def __init__(
        self,
        info: ModelInfo,
        bank: Bank,
        sessions: Sessions,
        lookup: Lookup,
        device: str,
        options: EngineOptions,
        verification: Verification | None = None,
    ) -> None:
        """Use ``Anonymizer.load``."""
        self._verification = verification
        self.info = info
        self.bank = bank
        self.device = device
        self.options = options
        self._closed = False
        self._sessions = sessions
        self._lookup = lookup
        self._device_pass: DevicePass | None = None
        self._padded_s_limit = float("inf")  # of a batch, once the device had too little memory for more
        per_second = info.sample_rate / info.hop
        self._overlap_frames = int(OVERLAP_S * per_second)
        self._window_frames = int(options.max_window_s * per_second)
        if sessions.buckets is not None:
            most = most_frames(sessions.buckets, info)
            self._window_frames = most if sessions.buckets.fixed else min(self._window_frames, most)
            if self._window_frames < 2 * self._overlap_frames:
                raise ArgumentError(
                    f"the buckets take {sessions.buckets.max_seconds:g} s; they must take at least {2 * OVERLAP_S:g}"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the sessions and free the device's memory; every use after that is an ``MkcError``."""
        self._closed = True
        for name in ("_sessions", "_lookup", "_device_pass", "bank"):
            self.__dict__.pop(name, None)

    def _check_open(self) -> None:
        if self._closed:
            raise MkcError("this Anonymizer is closed; load it again")

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
        provider: str = AUTO,
        precision: str = AUTO,
        latency_buckets_s: Sequence[float] = (),
        tuning: Tuning | None = None,
        cache: str | PathLike[str] | None = None,
        options: EngineOptions | None = None,
    ) -> Anonymizer:
        """Open exported artifacts.

        Where this machine has not seen their files as they are now, the files' digests are computed while the graphs
        are opened and the first results are computed; no result is handed out before they are known to fit. A model
        with graphs that are further from float64 than passes says so, with one warning of the logger ``mkc_fast``.

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
            options: All of these in one object, instead of the keywords above.

        Raises:
            ArtifactError: An artifact is missing, damaged, or the two do not fit together; of a digest that does not
                fit, the first result tells.
            DeviceError: The device is not here.
            ArgumentError: ``max_window_s`` is no number of seconds from 8 up, or ``options`` and keywords are given.
        """
        given = EngineOptions(
            provider=provider,
            precision=precision,
            threads=threads,
            max_window_s=max_window_s,
            latency_buckets_s=tuple(latency_buckets_s),
            tuning=tuning or Tuning(),
            cache=None if cache is None else Path(cache),
        )
        if options is None:
            options = given
        elif given != EngineOptions():
            raise ArgumentError("options are given and keywords, too; give one of the two")
        model_path, bank_path = Path(model), Path(bank)
        info, opened = read_model_info(model_path), open_bank(bank_path)
        if opened.info.dim != info.dim:
            raise ArtifactError(f"{bank_path}: has {opened.info.dim} dimensions, {model_path} has {info.dim}")
        if info.warnings:
            logger.warning("%s: %s", model_path, "; ".join(info.warnings))
        index = cuda_index(device)
        verification = Verification(options.cache or default_cache())
        verification.begin(bank_path, opened.info.files)
        arrays = opened.centroids, opened.half_norms, opened.info.num_clusters
        if index is None:
            if options.latency_buckets_s:
                raise DeviceError("latency_buckets_s are CUDA graphs; the device is cpu")
            sessions = open_sessions(model_path, device, options)
            check_graphs(model_path, info, sessions)
            verification.begin(model_path, files_of(model_path, info, sessions.files))
            return cls(info, opened, sessions, make_lookup(*arrays), device, options, verification)
        from mkc_fast.engine.passes.device import DevicePass, Place
        from mkc_fast.kernels.lookup.cupy_lookup import CupyLookup

        place = Place(index)
        stream = place.compute.ptr
        sessions = open_sessions(model_path, device, options, stream=stream)
        check_graphs(model_path, info, sessions)
        verification.begin(model_path, files_of(model_path, info, sessions.files))
        chosen = replace(options, provider=sessions.provider, precision=sessions.precision)
        latency = [
            open_sessions(
                model_path,
                device,
                replace(chosen, tuning=_latency_tuning(chosen.tuning, seconds, info, recorded=chosen.provider == CUDA)),
                stream=stream,
            )
            for seconds in sorted(options.latency_buckets_s)
        ]
        lookup = make_lookup(*arrays, backend="cupy", device=index)
        assert isinstance(lookup, CupyLookup)
        anonymizer = cls(info, opened, sessions, lookup, device, options, verification)
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
        """WavLM features of a waveform: (S,) float in [-1, 1], or int16, at the model's rate → (T, D) float32.

        T is ``(S - min_samples) // hop + 1``. The waveform is fed as it is, without normalization. One longer than
        ``max_window_s`` is encoded in windows: attention then sees no further than its window, so the features are
        close to those of the whole, not equal.

        Raises:
            AudioError: The waveform is not (S,) float or int16, shorter than ``min_samples``, not finite, or its peak
                is above 8.
            StageError: The features are not finite.
        """
        checked = self._checked(waveform, None, "the waveform")
        with self._verified():
            return _joined(self._encoded(checked), self.info.frames(len(checked)), self.info.dim)

    def assign(self, features: ArrayLike, bank_ids: ArrayLike) -> NDArray[np.int32]:
        """The nearest cluster of each frame in that frame's bank entry: (T, D), (T,) int → (T,) int32.

        Of clusters at the same distance the lowest id wins.

        Raises:
            BankError: A shape, type or id does not fit the bank, or features are not finite.
        """
        self._check_open()
        with self._verified():
            return self._lookup.assign(features, bank_ids)

    def lookup(self, bank_ids: ArrayLike, cluster_ids: ArrayLike) -> NDArray[np.float32]:
        """The centroids of these ids: (T,) int, (T,) int → (T, D) float32.

        Raises:
            BankError: A shape, type or id does not fit the bank.
            StageError: A centroid is not finite.
        """
        self._check_open()
        with self._verified():
            return check_finite("lookup", self._lookup.lookup(bank_ids, cluster_ids))

    def restore(self, quantized: ArrayLike) -> NDArray[np.float32]:
        """The conformer: centroids (T, D) → features (T, D) float32, in windows where ``encode`` would use them.

        Raises:
            BankError: The shape or type is another, or values are not finite.
            StageError: The result is not finite.
        """
        checked = self._check_features(quantized)
        with self._verified():
            return _joined(self._restored(len(checked), lambda a, b: checked[a:b]), len(checked), self.info.dim)

    def vocode(self, restored: ArrayLike) -> NDArray[np.float32]:
        """HiFi-GAN: features (T, D) → waveform (T * hop,) float32 in [-1, 1].

        Long inputs run in windows that overlap by the generator's receptive field, which changes no sample.

        Raises:
            BankError: The shape or type is another, or values are not finite.
            StageError: The result is not finite.
        """
        checked = self._check_features(restored)
        with self._verified():
            return np.concatenate(list(self._vocoded(len(checked), iter([(0, checked)]))))

    def draw_entries(self, kmeans_num: int, seed: int | None = None) -> NDArray[np.int64]:
        """A random subset of the bank's entries, for ``entries`` of ``anonymize``: (min(N, kmeans_num),) int64.

        With a seed it is what ``mkc-fast infer --kmeans-num --seed`` draws; without one it comes from the operating
        system's entropy. More than there are draws all, with a warning in the log ``mkc_fast``.

        Raises:
            BankError: ``kmeans_num`` is not a whole number from 1 up.
            ArgumentError: The seed is not a whole number of at most 256 bits.
        """
        check_seed(seed)
        drawn = draw_entries(len(self.bank), kmeans_num, seed)
        if kmeans_num > len(drawn):
            logger.warning(
                "kmeans_num is %d, the bank has %d k-means models: all of them are used", kmeans_num, len(drawn)
            )
        return drawn

    def anonymize(
        self,
        waveform: ArrayLike,
        mode: Mode = "frame",
        stride: int = 1,
        seed: int | None = None,
        utterance_id: str | None = None,
        bank_ids: ArrayLike | None = None,
        *,
        entries: ArrayLike | None = None,
        sample_rate: float | None = None,
        pad: bool = False,
    ) -> Result:
        """Anonymize one utterance.

        Args:
            waveform: (S,) float in [-1, 1] or int16, which is scaled by 1/32768, at the model's rate. A peak above 1
                is warned of in the log ``mkc_fast``, one above 8 refused.
            mode: ``"audio"`` draws one bank entry for the whole utterance, ``"frame"`` one every ``stride`` frames.
            stride: Frames that share a draw.
            seed: Makes the draws repeatable: they then depend on seed, utterance id and frame alone. Without it they
                come from the operating system's entropy, and nobody can predict them. At most 256 bits.
            utterance_id: With a seed, what tells this utterance's draws from others'; default: a digest of its samples.
            bank_ids: (T,) int, the bank entry of each frame, instead of drawing.
            entries: (n,) int, the bank entries to draw from; default: all. ``draw_entries`` draws some at random.
            sample_rate: Of the waveform, which is resampled to the model's; default: the model's. The output has the
                model's rate in any case.
            pad: Fill the output's end with silence, up to the length of the input (at the model's rate); without it the
                output is 5 to 25 ms shorter.

        Raises:
            AudioError: The waveform is not (S,) float or int16, too short, not finite, or its peak is above 8.
            BankError: ``bank_ids`` or ``entries`` do not fit, or both are given.
            ArgumentError: An unknown mode, a stride below 1, or a seed or sample rate that is not possible.
            StageError: What a stage makes of this waveform is not finite.
            ArtifactError: A graph gives another number of frames or samples than the waveform has.
        """
        check_draw(mode, stride, seed)
        name = "the waveform" if utterance_id is None else f"utterance {utterance_id}"
        checked = self._checked(waveform, sample_rate, name)
        if bank_ids is not None and entries is not None:
            raise BankError("bank_ids are given and entries to draw them from; give one of the two")
        banks = self._banks(checked, mode, stride, seed, utterance_id, bank_ids, self._entries(entries))
        with self._failing_verified():
            utterances = [_Utterance(checked, banks, name)]
            return PendingBatch([[0]], utterances, self._submitted, self._verified, pad=pad).result()[0]

    def anonymize_file(
        self,
        path: str | PathLike[str],
        out: str | PathLike[str] | None = None,
        mode: Mode = "frame",
        stride: int = 1,
        seed: int | None = None,
        utterance_id: str | None = None,
        bank_ids: ArrayLike | None = None,
        *,
        entries: ArrayLike | None = None,
        pad: bool = False,
    ) -> Result:
        """Anonymize a recording of any format, rate and channel count, and write the result.

        The result is held in memory: 0.23 GB an hour. ``mkc-fast infer`` (``run_corpus``) holds no long recording.

        Args:
            path: The recording.
            out: Where the output goes, 16-bit WAV or FLAC by its ending, at the model's rate. It is written
                atomically, and replaces what is there. Default: it is not written.
            mode: As for ``anonymize``.
            stride: As for ``anonymize``.
            seed: As for ``anonymize``.
            utterance_id: As for ``anonymize``, except that the default is the file's stem, as in ``infer``.
            bank_ids: As for ``anonymize``.
            entries: As for ``anonymize``.
            pad: As for ``anonymize``.

        Raises:
            AudioError: The file is missing, unreadable, truncated, too short, or not finite.
            OutputError: ``out`` is the recording itself, or cannot be written.
            ArgumentError: ``out`` ends neither in .wav nor in .flac; or as for ``anonymize``.
            MkcError: As for ``anonymize``.
        """
        source, target = Path(path), None if out is None else Path(out)
        check_draw(mode, stride, seed)
        if target is not None:
            if target.suffix[1:].lower() not in FORMATS:
                raise ArgumentError(f"{target}: ends in {target.suffix or 'nothing'}; expected .wav or .flac")
            with contextlib.suppress(OSError, ValueError):
                if target.samefile(source):
                    raise OutputError(f"{target}: is the recording itself; choose another output")
        waveform = read_waveform(source, self.info.sample_rate, self.info.min_samples)
        name = source.stem if utterance_id is None else utterance_id
        result = self.anonymize(waveform, mode, stride, seed, name, bank_ids, entries=entries, pad=pad)
        if target is not None:
            write_waveform(target, result.waveform, self.info.sample_rate)
        return result

    def anonymize_recording(
        self,
        recording: Recording,
        write: Callable[[NDArray[np.float32]], None],
        mode: Mode = "frame",
        stride: int = 1,
        seed: int | None = None,
        *,
        utterance_id: str,
        entries: ArrayLike | None = None,
        pad: bool = False,
    ) -> StreamedResult:
        """Anonymize a recording of any length while it is decoded: what is held is a window of it.

        The draws and samples are those of ``anonymize``; on a GPU its windows run one by one, through the host.

        Args:
            recording: Of ``read_utterance``.
            write: Is given the output, (n,) float32 at a time.
            mode: As for ``anonymize``.
            stride: As for ``anonymize``.
            seed: As for ``anonymize``.
            utterance_id: As for ``anonymize``.
            entries: As for ``anonymize``.
            pad: As for ``anonymize``.

        Raises:
            MkcError: As for ``anonymize``, or the recording is not what it was when it was first read. What was written
                until then is not to be kept.
        """
        self._check_open()
        check_draw(mode, stride, seed)
        name = f"utterance {utterance_id}"
        self._warn_of_peak(recording, name)
        banks = self._banks(recording, mode, stride, seed, utterance_id, None, self._entries(entries))
        clock, samples, written = _Clock(), recording.forward(), 0
        try:
            with self._verified(), self._device_errors():
                cluster_ids, speech = self._begun(samples, banks, clock)
                samples.finish()
                for part in speech:
                    write(part)
                    written += len(part)
        except NotFiniteError as error:
            raise error.of(name) from None
        while pad and written < len(recording):
            silence = np.zeros(min(len(recording) - written, self._window_frames * self.info.hop), np.float32)
            write(silence)
            written += len(silence)
        return StreamedResult(banks, cluster_ids, dict(clock.seconds))

    def anonymize_batch(
        self,
        waveforms: Sequence[ArrayLike],
        mode: Mode = "frame",
        stride: int = 1,
        seed: int | None = None,
        utterance_ids: Sequence[str] | None = None,
        *,
        batch_s: float | None = None,
        entries: ArrayLike | None = None,
        sample_rate: float | None = None,
        pad: bool = False,
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
            sample_rate: As for ``anonymize``; all waveforms have this one.
            pad: As for ``anonymize``: each output is as long as its own input.

        Raises:
            MkcError: As ``anonymize``, of the utterance that it names; or there is not an id for every waveform.
        """
        return self.submit_batch(
            waveforms,
            mode,
            stride,
            seed,
            utterance_ids,
            batch_s=batch_s,
            entries=entries,
            sample_rate=sample_rate,
            pad=pad,
        ).result()

    def submit_batch(
        self,
        waveforms: Sequence[ArrayLike],
        mode: Mode = "frame",
        stride: int = 1,
        seed: int | None = None,
        utterance_ids: Sequence[str] | None = None,
        *,
        batch_s: float | None = None,
        entries: ArrayLike | None = None,
        sample_rate: float | None = None,
        pad: bool = False,
    ) -> PendingBatch:
        """``anonymize_batch`` in two steps: begin here, and ask the object returned for the results.

        On a GPU the first step does not wait for the device, so that the next batch can be begun before the last one's
        results are asked for. On a CPU it does all the work.

        Raises:
            MkcError: As ``anonymize_batch``; what only the device can tell comes with the results.
        """
        ids = [None] * len(waveforms) if utterance_ids is None else list(utterance_ids)
        if len(ids) != len(waveforms):
            raise ArgumentError(f"{len(waveforms)} waveforms, but {len(ids)} utterance ids")
        check_draw(mode, stride, seed)
        subset, utterances = self._entries(entries), []
        for number, (waveform, utterance_id) in enumerate(zip(waveforms, ids, strict=True)):
            name = f"waveform {number}" if utterance_id is None else f"utterance {utterance_id}"
            try:
                checked = self._checked(waveform, sample_rate, name)
            except AudioError as error:
                raise AudioError(f"{name}: {error}") from None
            banks = self._banks(checked, mode, stride, seed, utterance_id, None, subset)
            utterances.append(_Utterance(checked, banks, name))
        if batch_s is None:
            batch_s = self.options.batch_s
        if batch_s is None:
            batch_s = default_batch_s(self.device)
        groups = self._groups([utterance.waveform for utterance in utterances], batch_s)
        with self._failing_verified():
            return PendingBatch(groups, utterances, self._submitted, self._verified, pad=pad)

    def _checked(self, waveform: ArrayLike, sample_rate: float | None, name: str) -> NDArray[np.float32]:
        """A waveform (S,) float32 at the model's rate."""
        self._check_open()
        if sample_rate is not None:
            waveform = resampled(check_waveform(waveform, 1), sample_rate, self.info.sample_rate)
        checked = check_waveform(waveform, self.info.min_samples)
        self._warn_of_peak(checked, name)
        return checked

    def _warn_of_peak(self, waveform: NDArray[np.float32] | Recording, name: str) -> None:
        peak = peak_of(waveform)
        if peak > LOUD_PEAK:
            # ``peak`` lets a run over many recordings count these instead of printing each.
            said = "%s: peaks at %.3g, samples are expected in [-1, 1]; is its scale right?"
            logger.warning(said, name, peak, extra={"peak": peak})

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

    def _submitted(self, utterances: list[_Utterance]) -> _Part:
        """Begin several utterances that run at once, or one that may be long."""
        if self._device_pass is None:
            if len(utterances) == 1:
                return _Done([self._run_one(utterances[0])])
            return _Done(self._run_batch(utterances))
        checked = [replace(each, banks=self._lookup.checked_bank_ids(each.banks)) for each in utterances]
        return self._on_device(self._device_pass, checked)

    def _on_device(self, device: DevicePass, utterances: list[_Utterance], *, shrink: bool = False) -> _Part:
        """Begin utterances on the device; a batch that needs too much memory is split into halves."""
        padded_s = len(utterances) * max(len(each.waveform) for each in utterances) / self.info.sample_rate
        if len(utterances) == 1 or padded_s <= self._padded_s_limit:
            try:
                waveforms, banks = [each.waveform for each in utterances], [each.banks for each in utterances]
                return _OnDevice(device.submit(waveforms, banks, shrink=shrink), utterances)
            except DeviceMemoryError as error:
                device.recover()
                if len(utterances) == 1:
                    if shrink:
                        raise
                    # Once more, now that nothing else is there.
                    return self._on_device(device, utterances, shrink=True)
                self._padded_s_limit, shrink = padded_s / 2, True
                logger.warning(
                    "%s: too little memory for %d utterances (%.0f s, padded) at once, going on with halves: %s",
                    self.device,
                    len(utterances),
                    padded_s,
                    error,
                )
        middle, parts = len(utterances) // 2, []
        for half in (slice(None, middle), slice(middle, None)):
            part = self._on_device(device, utterances[half], shrink=shrink)
            parts.append(_Done(part.result()) if shrink else part)  # where memory is short, one after the other
        return _Joined(parts)

    def _device_errors(self) -> contextlib.AbstractContextManager[None]:
        """What a device raises while the host runs its graphs, in one line."""
        return contextlib.nullcontext() if self._device_pass is None else self._device_pass.errors()

    def _banks(
        self,
        waveform: NDArray[np.float32] | Recording,
        mode: Mode,
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
        if utterance_id is None:
            assert not isinstance(waveform, Recording)
            utterance_id = waveform_id(waveform)
        drawn = draw_bank_ids(
            frames,
            len(self.bank) if entries is None else len(entries),
            mode=mode,
            stride=stride,
            seed=fresh_seed() if seed is None else int(seed),
            utterance_id=utterance_id,
        )
        return drawn if entries is None else entries[drawn]

    def _entries(self, given: ArrayLike | None) -> NDArray[np.int64] | None:
        return None if given is None else check_entries(given, len(self.bank))

    def _run_one(self, utterance: _Utterance) -> Result:
        """The whole pass over one utterance; of a long one, no more than a window's features are held at a time."""
        clock, banks = _Clock(), utterance.banks
        waveform, filled = np.empty(len(banks) * self.info.hop, np.float32), 0
        try:
            cluster_ids, speech = self._begun(utterance.waveform, banks, clock)
            for part in speech:
                waveform[filled : filled + len(part)] = part
                filled += len(part)
        except NotFiniteError as error:
            raise error.of(utterance.name) from None
        return Result(waveform, banks.astype(np.int64), cluster_ids, dict(clock.seconds))

    def _begun(
        self, waveform: NDArray[np.float32] | ForwardSamples, banks: NDArray[np.int64], clock: _Clock
    ) -> tuple[NDArray[np.int32], Iterator[NDArray[np.float32]]]:
        """Read an utterance: its cluster ids, and its samples in consecutive parts, computed as they are asked for."""
        frames = len(banks)
        cluster_ids = np.empty(frames, np.int32)
        for start, features in clock.over("encode", self._encoded(waveform)):
            part = slice(start, start + len(features))
            with clock.of("assign"):
                cluster_ids[part] = self.assign(features, banks[part])
        restored = self._restored(frames, lambda a, b: self.lookup(banks[a:b], cluster_ids[a:b]))
        speech = self._vocoded(frames, clock.over("restore", restored, within="vocode"))
        return cluster_ids, clock.over("vocode", speech)

    def _run_batch(self, utterances: list[_Utterance]) -> list[Result]:
        """The whole pass over several utterances at once."""
        try:
            return self._run_together([each.waveform for each in utterances], [each.banks for each in utterances])
        except NotFiniteError as error:
            raise error.of(utterances[error.row].name) from None

    def _run_together(self, waveforms: list[NDArray[np.float32]], banks: list[NDArray[np.int64]]) -> list[Result]:
        clock, dim = _Clock(), self.info.dim
        with clock.of("encode"):
            lengths = np.array([len(waveform) for waveform in waveforms], np.int64)
            padded = np.zeros((len(waveforms), int(lengths.max())), np.float32)
            for row, waveform in zip(padded, waveforms, strict=True):
                row[: len(waveform)] = waveform
            shape = len(waveforms), self.info.frames(padded.shape[1]), dim
            features = self._run("wavlm", "features", {"waveform": padded, "lengths": lengths}, shape)
        counts = [len(part) for part in banks]
        with clock.of("assign"):
            together = np.concatenate(_rows("encode", features, counts))
            all_banks = np.concatenate(banks)
            all_ids = self.assign(together, all_banks)
            quantized = np.zeros_like(features)
            ends = np.cumsum(counts)
            cluster_ids = np.split(all_ids, ends[:-1])
            for row, count, part in zip(
                quantized, counts, np.split(self._lookup.lookup(all_banks, all_ids), ends[:-1]), strict=True
            ):
                row[:count] = part
            _rows("lookup", quantized, counts)
        with clock.of("restore"):
            inputs = {"features": quantized, "lengths": np.array(counts, np.int64)}
            restored = _rows("restore", self._run("conformer", "restored", inputs, shape), counts)
        with clock.of("vocode"):
            speech = self._vocoded_batch(restored)
        # An utterance's share of the batch's time is its share of the frames.
        shares = [{stage: s * count / sum(counts) for stage, s in clock.seconds.items()} for count in counts]
        return [Result(*parts) for parts in zip(speech, banks, cluster_ids, shares, strict=True)]

    def _run(self, graph: str, output: str, inputs: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Run a graph on the host's arrays: its output of this shape, float32."""
        session = getattr(self._sessions, graph)
        return check_shape(graph, session.run([output], inputs)[0], shape)

    def _encoded(self, waveform: NDArray[np.float32] | ForwardSamples) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Features of a waveform in consecutive pieces: the first frame's number, (n, D)."""
        hop, least = self.info.hop, self.info.min_samples
        frames = self.info.frames(len(waveform))

        def compute(start: int, stop: int) -> NDArray[np.float32]:
            begin, end = sample_range(start, stop, frames, len(waveform), hop, least)
            samples = waveform[begin:end]
            inputs = {"waveform": samples[None], "lengths": np.array([len(samples)], np.int64)}
            return check_finite("encode", self._run("wavlm", "features", inputs, (1, stop - start, self.info.dim))[0])

        return crossfaded(frames, self._window_frames, self._overlap_frames, compute, NUMPY_ROWS)

    def _restored(
        self, frames: int, quantized: Callable[[int, int], NDArray[np.float32]]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """What the conformer makes of ``quantized(start, stop)``, in consecutive pieces."""

        def compute(start: int, stop: int) -> NDArray[np.float32]:
            inputs = {"features": quantized(start, stop)[None], "lengths": np.array([stop - start], np.int64)}
            shape = 1, stop - start, self.info.dim
            return check_finite("restore", self._run("conformer", "restored", inputs, shape)[0])

        return crossfaded(frames, self._window_frames, self._overlap_frames, compute, NUMPY_ROWS)

    def _vocoded(self, frames: int, pieces: Iterator[tuple[int, NDArray[np.float32]]]) -> Iterator[NDArray[np.float32]]:
        """The waveform of features that come in consecutive pieces, computed in exact windows as they come."""
        hop, reach = self.info.hop, self.info.vocoder_reach
        size = max(_VOCODER_WINDOW_FRAMES, 4 * reach)
        if self._sessions.buckets is not None:
            size = window_frames(self._sessions.buckets, self.info)
        for window, features in exact_pieces(exact_windows(frames, size, reach), pieces, NUMPY_ROWS):
            shape = 1, len(features) * hop
            part = self._run("vocoder", "waveform", {"features": features[None]}, shape)[0]
            yield check_finite("vocode", _kept(window, part, hop))

    def _vocoded_batch(self, restored: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Waveforms of several utterances: windows of one length together, utterances shorter than that by length."""
        hop, reach = self.info.hop, self.info.vocoder_reach
        size = common_window([len(features) for features in restored], max(BATCH_WINDOW_FRAMES, 4 * reach), reach)
        waveforms = [np.empty(len(features) * hop, np.float32) for features in restored]
        for group in window_groups([exact_windows(len(features), size, reach) for features in restored]):
            batch = np.stack([restored[index][window.start : window.stop] for index, window in group.windows])
            parts = self._run("vocoder", "waveform", {"features": batch}, (len(batch), group.length * hop))
            for (index, window), part in zip(group.windows, parts, strict=True):
                kept = check_finite("vocode", _kept(window, part, hop), index)
                waveforms[index][window.keep_start * hop : window.keep_stop * hop] = kept
        return waveforms

    def _check_features(self, features: ArrayLike) -> NDArray[np.float32]:
        self._check_open()
        array = np.asarray(features)
        if array.ndim != 2 or array.shape[1] != self.info.dim or not len(array) or array.dtype.kind != "f":
            raise BankError(
                f"features have shape {array.shape} and type {array.dtype}; expected (T, {self.info.dim}) float32"
            )
        with np.errstate(over="ignore"):
            checked: NDArray[np.float32] = np.require(array, np.float32, ["C", "A"])
        if not np.isfinite(checked).all():
            raise BankError("features are not finite")
        return checked


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
    utterances: list[_Utterance]

    def result(self) -> list[Result]:
        try:
            passed = self.pending.result()
        except NotFiniteError as error:
            raise error.of(self.utterances[error.row].name) from None
        return [
            Result(each.waveform, utterance.banks.astype(np.int64), each.cluster_ids, each.stage_seconds)
            for each, utterance in zip(passed, self.utterances, strict=True)
        ]


class PendingBatch:
    """A batch that has begun; ask for its ``result`` once."""

    def __init__(
        self,
        groups: list[list[int]],
        utterances: list[_Utterance],
        submit: Callable[[list[_Utterance]], _Part],
        verified: Callable[[], contextlib.AbstractContextManager[None]],
        *,
        pad: bool,
    ) -> None:
        self._groups, self._utterances, self._submit, self._pad = iter(groups), utterances, submit, pad
        self._verified = verified
        self._begun: deque[tuple[list[int], _Part]] = deque()
        self._begin()

    @property
    def done(self) -> bool:
        """Whether ``result`` has nothing to wait for and nothing to compute."""
        return all(isinstance(part, _Done) for _, part in self._begun)

    def _begin(self) -> None:
        """Begin as many groups as may be on a device at once."""
        while len(self._begun) < _GROUPS_AT_ONCE and (group := next(self._groups, None)) is not None:
            self._begun.append((group, self._submit([self._utterances[index] for index in group])))

    def result(self) -> list[Result]:
        """Of each utterance, in their order; waits for the device.

        Raises:
            StageError: What a stage makes of an utterance, which it names, is not finite.
            DeviceError: The device failed.
        """
        results: dict[int, Result] = {}
        with self._verified():
            while self._begun:
                group, part = self._begun.popleft()
                results.update(zip(group, part.result(), strict=True))
                self._begin()
        ordered = [results[index] for index in range(len(self._utterances))]
        if not self._pad:
            return ordered
        return [_padded(each, len(self._utterances[index].waveform)) for index, each in enumerate(ordered)]


def _padded(result: Result, samples: int) -> Result:
    """A result with so many samples, the last of them silence."""
    waveform = np.zeros(samples, np.float32)
    waveform[: len(result.waveform)] = result.waveform
    return replace(result, waveform=waveform)


def _latency_tuning(tuning: Tuning, seconds: float, info: ModelInfo, *, recorded: bool) -> Tuning:
    """For single utterances of up to so many seconds, padded to that, in one window of the vocoder."""
    if not seconds * info.sample_rate >= info.min_samples + 2 * info.vocoder_reach * info.hop:
        raise DeviceError(f"a latency bucket has {seconds:g} s; utterances so short run without one")
    buckets = Buckets(max_batch=1, max_seconds=seconds, fixed=True)
    buckets = replace(buckets, window_frames=most_frames(buckets, info))
    return replace(tuning, buckets=buckets, cuda_graph=recorded)


def _rows(stage: str, values: NDArray[np.float32], counts: list[int]) -> list[NDArray[np.float32]]:
    """What a stage gave each of several utterances: (T, D) of (B, most T, D), finite."""
    return [
        check_finite(stage, row[:count], index) for index, (row, count) in enumerate(zip(values, counts, strict=True))
    ]


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


def _kept(window: Window, part: NDArray[np.float32], hop: int) -> NDArray[np.float32]:
    """What a window keeps of its samples."""
    return part[(window.keep_start - window.start) * hop : (window.keep_stop - window.start) * hop]


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
