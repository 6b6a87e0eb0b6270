"""The whole pass as one object: waveform → features → cluster ids → centroids → restored features → waveform."""

from __future__ import annotations

import contextlib
import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.engine.artifacts import Bank, ModelInfo, check_dimensions, open_bank, read_model_info
from mkc_fast.engine.audio.read import Recording, peak_of, read_waveform
from mkc_fast.engine.audio.waveform import LOUD_PEAK, check_waveform, resampled
from mkc_fast.engine.audio.write import write_waveform
from mkc_fast.engine.batching import group_for_pass
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
from mkc_fast.engine.options import DEFAULT_WINDOW_S, OVERLAP_S, Buckets, EngineOptions, Tuning, default_batch_s
from mkc_fast.engine.passes.clock import StageClock
from mkc_fast.engine.passes.host import HostPass
from mkc_fast.engine.passes.pending import PendingBatch
from mkc_fast.engine.passes.results import Result, StreamedResult, Utterance
from mkc_fast.engine.passes.shapes import Shapes, budget_of, ladder, whole_steps
from mkc_fast.engine.passes.stages import NotFiniteError, check_finite
from mkc_fast.engine.sessions.graph_facts import check_graphs, files_of
from mkc_fast.engine.sessions.opening import Sessions, open_sessions
from mkc_fast.engine.sessions.providers import most_frames
from mkc_fast.errors import ArgumentError, AudioError, BankError, DeviceError, MkcError, OutputError
from mkc_fast.kernels import Lookup, make_lookup
from mkc_fast.names import AUTO, CPU, FORMATS, FRAME, LOOKUP
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from mkc_fast.engine.passes.device import DevicePass
    from mkc_fast.engine.passes.pending import Pass
    from mkc_fast.kernels.lookup.cupy_lookup import CupyLookup
    from mkc_fast.names import Mode, Precision, Provider

__all__ = ["Anonymizer", "PendingBatch", "Result", "StreamedResult"]

logger = logging.getLogger("mkc_fast")


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
        self._host_pass = HostPass(
            info, sessions, lookup, window_frames=self._window_frames, overlap_frames=self._overlap_frames
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the sessions and free the device's memory; every use after that is an ``MkcError``."""
        self._closed = True
        for name in ("_sessions", "_lookup", "_host_pass", "_device_pass", "bank"):
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
        device: str = CPU,
        *,
        threads: int | None = None,
        max_window_s: float = DEFAULT_WINDOW_S,
        provider: Provider = AUTO,
        precision: Precision = AUTO,
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
            precision: ``"auto"``, ``"fp32"``, ``"tf32"``, ``"mixed"``, ``"fp16"``, ``"bf16"`` or ``"int8"``, as the
                provider has them (``EngineOptions``).
            latency_buckets_s: On a GPU, sizes in seconds, such as ``(1, 3, 10, 30)``, for which the graphs are also
                opened with fixed shapes and recorded as CUDA graphs: a single utterance is padded to the least that it
                fits, and runs without a launch for each operator. Without graphs for CUDA, and on TensorRT, each size
                holds another copy of the weights.
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
        check_dimensions(bank_path, opened, str(model_path), info)
        if info.warnings:
            logger.warning("%s: %s", model_path, "; ".join(info.warnings))
        index = cuda_index(device)
        verification = Verification(options.cache or default_cache())
        verification.begin(bank_path, opened.info.files)
        if index is None:
            if options.latency_buckets_s:
                raise DeviceError("latency_buckets_s are CUDA graphs; the device is cpu")
            sessions = open_sessions(model_path, device, options)
            check_graphs(model_path, info, sessions)
            verification.begin(model_path, files_of(model_path, info, sessions.files))
            return cls(info, opened, sessions, _host_lookup(opened, options.threads), device, options, verification)
        from mkc_fast.engine.passes.device import DevicePass
        from mkc_fast.engine.passes.device_context import DeviceContext

        context = DeviceContext(index)
        stream = context.compute.ptr
        sessions = open_sessions(model_path, device, options, stream=stream)
        check_graphs(model_path, info, sessions)
        verification.begin(model_path, files_of(model_path, info, sessions.files))
        chosen = replace(options, provider=sessions.provider, precision=sessions.precision)
        latency: list[Sessions | int] = []
        for seconds in sorted(options.latency_buckets_s):
            tuning = _latency_tuning(chosen.tuning, seconds, info)
            if sessions.shaped is not None:
                assert tuning.buckets is not None
                latency.append(whole_steps(most_frames(tuning.buckets, info)))
            else:
                latency.append(open_sessions(model_path, device, replace(chosen, tuning=tuning), stream=stream))
        lookup = _device_lookup(opened, index)
        anonymizer = cls(info, opened, sessions, lookup, device, options, verification)
        shapes = None
        if sessions.shaped is not None and sessions.shaped.shares_weights and options.tuning.buckets is None:
            batch_s = default_batch_s(device) if options.batch_s is None else options.batch_s
            shapes = Shapes(ladder(whole_steps(anonymizer._window_frames), info), budget_of(batch_s, info))
        if options.tuning.record_batches and shapes is None:
            raise DeviceError("record_batches needs the graphs for CUDA, and sizes that are not kept to buckets")
        anonymizer._device_pass = DevicePass(
            context,
            info,
            lookup,
            sessions,
            latency,
            shapes=shapes,
            record_batches=options.tuning.record_batches,
            window_frames=anonymizer._window_frames,
            overlap_frames=anonymizer._overlap_frames,
        )
        anonymizer._device_pass.warm_up()
        return anonymizer

    def with_bank(self, bank: str | PathLike[str]) -> Anonymizer:
        """Another anonymizer of the same model on the same device, with another bank.

        The two share the graphs, so this costs neither their time nor their memory. They are for one thread together,
        and either may be closed first.

        Args:
            bank: Directory made by ``build_bank``.

        Raises:
            ArtifactError: The bank is missing, damaged, or does not fit the model.
            DeviceError: There is too little memory for the look-up.
        """
        self._check_open()
        path = Path(bank)
        opened = open_bank(path)
        check_dimensions(path, opened, "the model", self.info)
        if self._verification is not None:
            self._verification.begin(path, opened.info.files)
        other = copy.copy(self)
        other.bank = opened
        if self._device_pass is None:
            other._lookup = _host_lookup(opened, self.options.threads)
        else:
            index = cuda_index(self.device)
            assert index is not None
            other._lookup = lookup = _device_lookup(opened, index)
            other._device_pass = self._device_pass.with_lookup(lookup)
        other._host_pass = self._host_pass.with_lookup(other._lookup)
        return other

    def use_lengths(self, lengths: Sequence[int]) -> None:
        """Pad the batches of a GPU to these lengths from now on, and run each length once.

        Every length has sessions of its own, and the batches that follow plan and allocate nothing. Without this call,
        a length's sessions are opened when it first occurs. ``mkc_fast.engine.passes.shapes.chosen_lengths`` finds the
        lengths that suit a corpus; ``infer`` does so by itself. On a CPU, on TensorRT and with a model without graphs
        for CUDA this does nothing.

        Args:
            lengths: In frames, ascending; the longest takes the windows of recordings longer than ``max_window_s``.

        Raises:
            ArgumentError: They do not ascend, or the longest is shorter than a window.
            DeviceError: The device failed.
        """
        self._check_open()
        if self._device_pass is None:
            return
        if list(lengths) != sorted(set(lengths)) or not lengths or lengths[-1] < self._window_frames:
            raise ArgumentError(
                f"lengths must ascend to at least {self._window_frames} frames; got {one_line(str(list(lengths)), 80)}"
            )
        self._device_pass.use_lengths(lengths)

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
            return _joined(self._host_pass.encode(checked), self.info.frames(len(checked)), self.info.dim)

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
            return check_finite(LOOKUP, self._lookup.lookup(bank_ids, cluster_ids))

    def restore(self, quantized: ArrayLike) -> NDArray[np.float32]:
        """The conformer: centroids (T, D) → features (T, D) float32, in windows where ``encode`` would use them.

        Raises:
            BankError: The shape or type is another, or values are not finite.
            StageError: The result is not finite.
        """
        checked = self._check_features(quantized)
        with self._verified():
            pieces = self._host_pass.restore(len(checked), lambda start, stop: checked[start:stop])
            return _joined(pieces, len(checked), self.info.dim)

    def vocode(self, restored: ArrayLike) -> NDArray[np.float32]:
        """HiFi-GAN: features (T, D) → waveform (T * hop,) float32 in [-1, 1].

        Long inputs run in windows that overlap by the generator's receptive field, which changes no sample.

        Raises:
            BankError: The shape or type is another, or values are not finite.
            StageError: The result is not finite.
        """
        checked = self._check_features(restored)
        with self._verified():
            return np.concatenate(list(self._host_pass.vocode(len(checked), iter([(0, checked)]))))

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
        mode: Mode = FRAME,
        stride: int = 1,
        seed: int | None = None,
        utterance_id: str | None = None,
        bank_ids: ArrayLike | None = None,
        *,
        entries: ArrayLike | None = None,
        sample_rate: float | None = None,
        pad: bool = False,
        draw_id: str | None = None,
    ) -> Result:
        """Anonymize one utterance.

        Args:
            waveform: (S,) float in [-1, 1] or int16, which is scaled by 1/32768, at the model's rate. A peak above 1
                is warned of in the log ``mkc_fast``, one above 8 refused.
            mode: ``"audio"`` draws one bank entry for the whole utterance, ``"frame"`` one every ``stride`` frames.
            stride: Frames that share a draw.
            seed: Makes the draws repeatable: they then depend on seed, utterance id and frame alone. Without it they
                come from the operating system's entropy, and cannot be predicted. At most 256 bits.
            utterance_id: With a seed, what tells this utterance's draws from others'; default: a digest of its samples.
            bank_ids: (T,) int, the bank entry of each frame, instead of drawing.
            entries: (n,) int, the bank entries to draw from; default: all. ``draw_entries`` draws some at random.
            sample_rate: Of the waveform, which is resampled to the model's; default: the model's. The output has the
                model's rate in any case.
            pad: Fill the output's end with silence, up to the length of the input (at the model's rate); without it the
                output is 5 to 25 ms shorter.
            draw_id: With a seed, decides the draws in place of ``utterance_id``: what shares it, such as the utterances
                of a speaker (``speaker_draw``), shares its draws.

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
        banks = self._banks(checked, mode, stride, seed, utterance_id, draw_id, bank_ids, self._entries(entries))
        with self._failing_verified():
            utterances = [Utterance(checked, banks, name)]
            return PendingBatch([[0]], utterances, self._pass, self._verified, pad=pad).result()[0]

    def anonymize_file(
        self,
        path: str | PathLike[str],
        out: str | PathLike[str] | None = None,
        mode: Mode = FRAME,
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
        mode: Mode = FRAME,
        stride: int = 1,
        seed: int | None = None,
        *,
        utterance_id: str,
        entries: ArrayLike | None = None,
        pad: bool = False,
        draw_id: str | None = None,
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
            draw_id: As for ``anonymize``.

        Raises:
            MkcError: As for ``anonymize``, or the recording is not what it was when it was first read. What was written
                until then is not to be kept.
        """
        self._check_open()
        check_draw(mode, stride, seed)
        name = f"utterance {utterance_id}"
        self._warn_of_peak(recording, name)
        banks = self._banks(recording, mode, stride, seed, utterance_id, draw_id, None, self._entries(entries))
        clock, samples, written = StageClock(), recording.forward(), 0
        try:
            with self._verified(), self._pass.errors():
                cluster_ids, speech = self._host_pass.stream(samples, banks, clock)
                samples.finish()
                self._wait_for_digests()  # before anything is handed out
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
        mode: Mode = FRAME,
        stride: int = 1,
        seed: int | None = None,
        utterance_ids: Sequence[str] | None = None,
        *,
        batch_s: float | None = None,
        entries: ArrayLike | None = None,
        sample_rate: float | None = None,
        pad: bool = False,
        draw_ids: Sequence[str | None] | None = None,
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
            draw_ids: One for each waveform, as ``draw_id`` of ``anonymize``; None: as without.

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
            draw_ids=draw_ids,
        ).result()

    def submit_batch(
        self,
        waveforms: Sequence[ArrayLike],
        mode: Mode = FRAME,
        stride: int = 1,
        seed: int | None = None,
        utterance_ids: Sequence[str] | None = None,
        *,
        batch_s: float | None = None,
        entries: ArrayLike | None = None,
        sample_rate: float | None = None,
        pad: bool = False,
        draw_ids: Sequence[str | None] | None = None,
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
        shared = [None] * len(waveforms) if draw_ids is None else list(draw_ids)
        if len(shared) != len(waveforms):
            raise ArgumentError(f"{len(waveforms)} waveforms, but {len(shared)} draw ids")
        check_draw(mode, stride, seed)
        subset, utterances = self._entries(entries), []
        for number, (waveform, utterance_id, draw_id) in enumerate(zip(waveforms, ids, shared, strict=True)):
            name = f"waveform {number}" if utterance_id is None else f"utterance {utterance_id}"
            try:
                checked = self._checked(waveform, sample_rate, name)
            except AudioError as error:
                raise AudioError(f"{name}: {error}") from None
            banks = self._banks(checked, mode, stride, seed, utterance_id, draw_id, None, subset)
            utterances.append(Utterance(checked, banks, name))
        if batch_s is None:
            batch_s = self.options.batch_s
        if batch_s is None:
            batch_s = default_batch_s(self.device)
        frames = [len(utterance.banks) for utterance in utterances]
        shapes = None if self._device_pass is None else self._device_pass.shapes
        if shapes is not None:
            groups = shapes.groups(frames, batch_s * self.info.sample_rate / self.info.hop)
        else:
            groups = group_for_pass(
                frames,
                [len(utterance.waveform) / self.info.sample_rate for utterance in utterances],
                batch_s,
                window_frames=self._window_frames,
                max_batch=None if self._sessions.buckets is None else self._sessions.buckets.max_batch,
            )
        with self._failing_verified():
            return PendingBatch(groups, utterances, self._pass, self._verified, pad=pad)

    @property
    def _pass(self) -> Pass:
        return self._host_pass if self._device_pass is None else self._device_pass

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
        self._wait_for_digests()

    @contextlib.contextmanager
    def _failing_verified(self) -> Iterator[None]:
        """Let no error out of the block that a changed file explains."""
        try:
            yield
        except Exception:
            self._wait_for_digests()
            raise

    def _wait_for_digests(self) -> None:
        if self._verification is not None:
            self._verification.wait()

    def _banks(
        self,
        waveform: NDArray[np.float32] | Recording,
        mode: Mode,
        stride: int,
        seed: int | None,
        utterance_id: str | None,
        draw_id: str | None,
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
        if draw_id is None:
            draw_id = utterance_id
        if draw_id is None:
            assert not isinstance(waveform, Recording)
            draw_id = waveform_id(waveform)
        drawn = draw_bank_ids(
            frames,
            len(self.bank) if entries is None else len(entries),
            mode=mode,
            stride=stride,
            seed=fresh_seed() if seed is None else int(seed),
            utterance_id=draw_id,
        )
        return drawn if entries is None else entries[drawn]

    def _entries(self, given: ArrayLike | None) -> NDArray[np.int64] | None:
        return None if given is None else check_entries(given, len(self.bank))

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


def _host_lookup(bank: Bank, threads: int | None) -> Lookup:
    return make_lookup(bank.centroids, bank.half_norms, bank.info.num_clusters, threads=threads, half=bank.half)


def _device_lookup(bank: Bank, index: int) -> CupyLookup:
    from mkc_fast.kernels.lookup.cupy_lookup import CupyLookup

    lookup = make_lookup(bank.centroids, bank.half_norms, bank.info.num_clusters, backend="cupy", device=index)
    assert isinstance(lookup, CupyLookup)
    return lookup


def _latency_tuning(tuning: Tuning, seconds: float, info: ModelInfo) -> Tuning:
    """For single utterances of up to so many seconds, padded to that, in one window of the vocoder."""
    if not seconds * info.sample_rate >= info.min_samples + 2 * info.vocoder_reach * info.hop:
        raise DeviceError(f"a latency bucket has {seconds:g} s; utterances so short run without one")
    buckets = Buckets(max_batch=1, max_seconds=seconds, fixed=True)
    buckets = replace(buckets, window_frames=most_frames(buckets, info))
    return replace(tuning, buckets=buckets)


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
