"""The whole pass on the host: one utterance of any length in windows, or several utterances at once."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.passes.clock import StageClock
from mkc_fast.engine.passes.layout import BATCH_WINDOW_FRAMES, window_frames
from mkc_fast.engine.passes.pending import StartedPass
from mkc_fast.engine.passes.results import Result
from mkc_fast.engine.passes.stages import NotFiniteError, check_finite, check_shape
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
from mkc_fast.names import ASSIGN, CONFORMER, ENCODE, LOOKUP, RESTORE, VOCODE, VOCODER, WAVLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.audio.read import ForwardSamples
    from mkc_fast.engine.passes.results import Utterance
    from mkc_fast.engine.sessions.cpu import Session
    from mkc_fast.engine.sessions.opening import Sessions
    from mkc_fast.kernels.lookup import Lookup
    from mkc_fast.names import Graph, Stage

# The vocoder's buffers take about 15 MB a second of audio; past this many frames it runs in exact windows.
_VOCODER_WINDOW_FRAMES = 1500


class Encoding:
    """WavLM on the host: a waveform of any length in windows.

    Args:
        info: Of the model.
        session: The graph.
        window_frames: A longer utterance is encoded in windows of this many frames.
        overlap_frames: Frames that neighbouring windows share.
    """

    def __init__(self, info: ModelInfo, session: Session, window_frames: int, overlap_frames: int) -> None:
        self._info, self._session = info, session
        self._window_frames, self._overlap_frames = window_frames, overlap_frames

    def encode(self, waveform: NDArray[np.float32] | ForwardSamples) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Features of a waveform in consecutive pieces: the first frame's number, (n, D)."""
        hop, least = self._info.hop, self._info.min_samples
        frames = self._info.frames(len(waveform))

        def compute(start: int, stop: int) -> NDArray[np.float32]:
            begin, end = sample_range(start, stop, frames, len(waveform), hop, least)
            samples = waveform[begin:end]
            inputs = {"waveform": samples[None], "lengths": np.array([len(samples)], np.int64)}
            shape = 1, stop - start, self._info.dim
            features = check_shape(WAVLM, self._session.run(["features"], inputs)[0], shape)
            return check_finite(ENCODE, features[0])

        return crossfaded(frames, self._window_frames, self._overlap_frames, compute, NUMPY_ROWS)

    def together(self, waveforms: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Features of waveforms padded to the longest: (B, longest T, D); unchecked, and padding has no meaning."""
        lengths = np.array([len(waveform) for waveform in waveforms], np.int64)
        padded = np.zeros((len(waveforms), int(lengths.max())), np.float32)
        for row, waveform in zip(padded, waveforms, strict=True):
            row[: len(waveform)] = waveform
        shape = len(waveforms), self._info.frames(padded.shape[1]), self._info.dim
        inputs = {"waveform": padded, "lengths": lengths}
        return check_shape(WAVLM, self._session.run(["features"], inputs)[0], shape)


class HostPass:
    """Runs the graphs on arrays of the host, each stage as soon as the one before it has given a piece.

    Args:
        info: Of the model.
        sessions: The graphs.
        lookup: Over the bank.
        window_frames: A longer utterance is encoded and restored in windows of this many frames.
        overlap_frames: Frames that neighbouring windows share.
    """

    def __init__(
        self, info: ModelInfo, sessions: Sessions, lookup: Lookup, *, window_frames: int, overlap_frames: int
    ) -> None:
        self._info, self._sessions, self._lookup = info, sessions, lookup
        self._window_frames, self._overlap_frames = window_frames, overlap_frames
        self._encoding = Encoding(info, sessions.wavlm, window_frames, overlap_frames)

    def with_lookup(self, lookup: Lookup) -> HostPass:
        """The same pass over another bank."""
        other = copy.copy(self)
        other._lookup = lookup
        return other

    def start(self, utterances: Sequence[Utterance]) -> StartedPass:
        """Compute utterances that run at once, or one of any length; as in ``Pass``."""
        if len(utterances) == 1:
            return StartedPass.finished([self._run_one(utterances[0])])
        return StartedPass.finished(self._run_batch(utterances))

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Nothing to turn: the sessions of a CPU raise in one line."""
        return contextlib.nullcontext()

    def stream(
        self, waveform: NDArray[np.float32] | ForwardSamples, banks: NDArray[np.int64], clock: StageClock
    ) -> tuple[NDArray[np.int32], Iterator[NDArray[np.float32]]]:
        """Read one utterance, and compute its samples as they are asked for; a window's features are held at a time.

        Args:
            waveform: (S,) float32, read forward once.
            banks: (T,) int, the bank entry of each frame.
            clock: Counts the seconds of each stage.

        Returns:
            The cluster ids (T,) int32, and the samples (T * hop,) float32 in consecutive parts.

        Raises:
            NotFiniteError: What a stage gives is not finite.
        """
        frames = len(banks)
        cluster_ids = np.empty(frames, np.int32)
        for start, features in clock.measure_items(ENCODE, self.encode(waveform)):
            part = slice(start, start + len(features))
            with clock.measure(ASSIGN):
                cluster_ids[part] = self._lookup.assign(features, banks[part])

        def quantized(start: int, stop: int) -> NDArray[np.float32]:
            return check_finite(LOOKUP, self._lookup.lookup(banks[start:stop], cluster_ids[start:stop]))

        restored = clock.measure_items(RESTORE, self.restore(frames, quantized), within=VOCODE)
        return cluster_ids, clock.measure_items(VOCODE, self.vocode(frames, restored))

    def _run_one(self, utterance: Utterance) -> Result:
        clock, banks = StageClock(), utterance.banks
        waveform, filled = np.empty(len(banks) * self._info.hop, np.float32), 0
        try:
            cluster_ids, speech = self.stream(utterance.waveform, banks, clock)
            for part in speech:
                waveform[filled : filled + len(part)] = part
                filled += len(part)
        except NotFiniteError as error:
            raise error.of(utterance.name) from None
        return Result(waveform, banks.astype(np.int64), cluster_ids, dict(clock.seconds))

    def _run_batch(self, utterances: Sequence[Utterance]) -> list[Result]:
        try:
            return self._run_together([each.waveform for each in utterances], [each.banks for each in utterances])
        except NotFiniteError as error:
            raise error.of(utterances[error.row].name) from None

    def _run_together(self, waveforms: list[NDArray[np.float32]], banks: list[NDArray[np.int64]]) -> list[Result]:
        clock = StageClock()
        with clock.measure(ENCODE):
            features = self._encoding.together(waveforms)
        counts = [len(part) for part in banks]
        with clock.measure(ASSIGN):
            together = np.concatenate(checked_rows(ENCODE, features, counts))
            all_banks = np.concatenate(banks)
            all_ids = self._lookup.assign(together, all_banks)
            quantized = np.zeros_like(features)
            ends = np.cumsum(counts)
            cluster_ids = np.split(all_ids, ends[:-1])
            for row, count, part in zip(
                quantized, counts, np.split(self._lookup.lookup(all_banks, all_ids), ends[:-1]), strict=True
            ):
                row[:count] = part
            checked_rows(LOOKUP, quantized, counts)
        with clock.measure(RESTORE):
            inputs = {"features": quantized, "lengths": np.array(counts, np.int64)}
            restored = checked_rows(RESTORE, self._run(CONFORMER, "restored", inputs, features.shape), counts)
        with clock.measure(VOCODE):
            speech = self._vocode_batch(restored)
        # An utterance's share of the batch's time is its share of the frames.
        shares = [{stage: s * count / sum(counts) for stage, s in clock.seconds.items()} for count in counts]
        return [Result(*parts) for parts in zip(speech, banks, cluster_ids, shares, strict=True)]

    def encode(self, waveform: NDArray[np.float32] | ForwardSamples) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Features of a waveform in consecutive pieces: the first frame's number, (n, D)."""
        return self._encoding.encode(waveform)

    def restore(
        self, frames: int, quantized: Callable[[int, int], NDArray[np.float32]]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Restored features of the centroids ``quantized(start, stop)``, in consecutive pieces."""

        def compute(start: int, stop: int) -> NDArray[np.float32]:
            inputs = {"features": quantized(start, stop)[None], "lengths": np.array([stop - start], np.int64)}
            shape = 1, stop - start, self._info.dim
            return check_finite(RESTORE, self._run(CONFORMER, "restored", inputs, shape)[0])

        return crossfaded(frames, self._window_frames, self._overlap_frames, compute, NUMPY_ROWS)

    def vocode(self, frames: int, pieces: Iterator[tuple[int, NDArray[np.float32]]]) -> Iterator[NDArray[np.float32]]:
        """The waveform of features that come in consecutive pieces, computed in exact windows as they come."""
        hop, reach = self._info.hop, self._info.vocoder_reach
        size = max(_VOCODER_WINDOW_FRAMES, 4 * reach)
        if self._sessions.buckets is not None:
            size = window_frames(self._sessions.buckets, self._info)
        for window, features in exact_pieces(exact_windows(frames, size, reach), pieces, NUMPY_ROWS):
            shape = 1, len(features) * hop
            part = self._run(VOCODER, "waveform", {"features": features[None]}, shape)[0]
            yield check_finite(VOCODE, _kept(window, part, hop))

    def _vocode_batch(self, restored: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Waveforms of several utterances: windows of one length together, utterances shorter than that by length."""
        hop, reach = self._info.hop, self._info.vocoder_reach
        size = common_window([len(features) for features in restored], max(BATCH_WINDOW_FRAMES, 4 * reach), reach)
        waveforms = [np.empty(len(features) * hop, np.float32) for features in restored]
        for group in window_groups([exact_windows(len(features), size, reach) for features in restored]):
            batch = np.stack([restored[index][window.start : window.stop] for index, window in group.windows])
            parts = self._run(VOCODER, "waveform", {"features": batch}, (len(batch), group.length * hop))
            for (index, window), part in zip(group.windows, parts, strict=True):
                kept = check_finite(VOCODE, _kept(window, part, hop), index)
                waveforms[index][window.keep_start * hop : window.keep_stop * hop] = kept
        return waveforms

    def _run(self, graph: Graph, output: str, inputs: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Run a graph on the host's arrays: its output of this shape, float32."""
        session = getattr(self._sessions, graph)
        return check_shape(graph, session.run([output], inputs)[0], shape)


def checked_rows(stage: Stage, values: NDArray[np.float32], counts: list[int]) -> list[NDArray[np.float32]]:
    """The values of each of several utterances: (T, D) of (B, longest T, D), all finite."""
    return [
        check_finite(stage, row[:count], index) for index, (row, count) in enumerate(zip(values, counts, strict=True))
    ]


def _kept(window: Window, part: NDArray[np.float32], hop: int) -> NDArray[np.float32]:
    """The samples of a window that are kept."""
    return part[(window.keep_start - window.start) * hop : (window.keep_stop - window.start) * hop]
