"""Graphs for CUDA run in a few shapes, each with a session of its own, and give what the CPU gives; without a GPU."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

from mkc_fast import Anonymizer, ArgumentError, DeviceError
from mkc_fast.benchmarks.utterances import draw_lengths
from mkc_fast.engine.artifacts import ModelInfo
from mkc_fast.engine.options import EngineOptions, Tuning
from mkc_fast.engine.passes.layout import lay_out_in
from mkc_fast.engine.passes.shapes import FRAME_STEP, Bucket, Shapes, chosen_lengths, ladder
from mkc_fast.engine.sessions.shaped import Use
from mkc_fast.engine.windows import exact_windows, two_windows
from tests.conftest import Artifacts
from tests.engine.passes.test_device import assert_equal, assert_vocoded_once_with_context, utterances
from tests.fakes.cuda import fake_gpu

TWO_HOURS = 571  # utterances as long as LibriSpeech's


def info_of(artifacts: Artifacts) -> ModelInfo:
    return artifacts.anonymizer.info


# ---- Which shapes ----


def test_the_padding_of_two_hours_is_under_a_tenth(cuda_artifacts: Artifacts) -> None:
    info = info_of(cuda_artifacts)
    frames = [info.frames(int(seconds * 16000)) for seconds in draw_lengths(TWO_HOURS)]
    lengths = chosen_lengths(frames, 2000, info)
    assert len(lengths) <= 17
    shapes = Shapes(lengths, 12000, full=True)
    groups = shapes.groups(frames)
    assert sorted(index for group in groups for index in group) == list(range(len(frames)))
    buckets = [shapes.bucket(len(group), max(frames[index] for index in group)) for group in groups]
    assert sum(frames) > 0.9 * sum(bucket.rows * bucket.frames for bucket in buckets)
    # One shape of the vocoder's windows for all utterances would take more, whatever its length.
    vocoded = sum(int(np.prod(bucket.window(info))) for bucket in buckets)
    reach = info.vocoder_reach
    for size in range(4 * reach, 1000, 20):
        one_shape = sum(size * max(2, len(exact_windows(count, size, reach))) for count in frames)
        assert vocoded < one_shape


@pytest.mark.parametrize("count", [1, 7, 400])
def test_no_fewer_lengths_would_do(cuda_artifacts: Artifacts, count: int) -> None:
    """The choice is the best there is: as found by trying all, where these are few."""
    info = info_of(cuda_artifacts)
    rng = np.random.default_rng(count)
    frames = rng.choice([40, 100, 180, 260, 400, 900], count).tolist()
    chosen = chosen_lengths(frames, 1000, info, padding=0.2)
    assert chosen[-1] == 1000
    rounded = sorted({-(-frame // FRAME_STEP) * FRAME_STEP for frame in frames})

    def padded(lengths: tuple[int, ...]) -> int:
        return sum(Shapes(lengths, 1).padded(frame) for frame in frames)

    assert sum(frames) >= 0.8 * padded(chosen)
    inner = [length for length in chosen if length in rounded]
    for left_out in inner[:-1]:
        fewer = tuple(length for length in chosen if length != left_out)
        assert padded(fewer) >= padded(chosen)


def test_every_length_fits_the_ladder_with_little_padding(cuda_artifacts: Artifacts) -> None:
    info = info_of(cuda_artifacts)
    shapes = Shapes(ladder(2000, info), 12000)
    assert all(length % FRAME_STEP == 0 for length in shapes.lengths)
    for frames in range(1, 2001):
        padded = shapes.padded(frames)
        assert frames <= padded
        assert padded <= max(1.25 * frames + 2 * FRAME_STEP, shapes.lengths[0])
    with pytest.raises(ArgumentError, match="2001 frames"):
        shapes.padded(2001)


def test_small_batches_have_small_buckets_unless_every_batch_is_to_be_full() -> None:
    shapes = Shapes((100, 200), 1600)
    assert [shapes.bucket(rows, 150).rows for rows in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]
    assert shapes.bucket(9, 90) == Bucket(16, 100)
    full = dataclasses.replace(shapes, full=True)
    assert [full.bucket(rows, 150).rows for rows in (1, 8)] == [8, 8]
    assert full.bucket(2, 150, least=True).rows == 2
    with pytest.raises(ArgumentError, match="8 run at once"):
        shapes.bucket(9, 150)
    assert shapes.groups([50, 5000, 120, 60]) == [[1], [2, 3, 0]]
    assert shapes.groups([50, 120, 60], budget=250) == [[1], [2, 0]]


# ---- Windows ----


@pytest.mark.parametrize("frames", [12, 13, 20, 30, 31, 40, 47, 48])
def test_two_windows_give_every_frame_its_context(frames: int) -> None:
    size, reach = 30, 6
    first, last = two_windows(frames, size, reach)
    assert (first.start, last.stop) == (0, frames)
    assert {window.stop - window.start for window in (first, last)} == {size}
    assert (first.keep_start, first.keep_stop, last.keep_stop) == (0, last.keep_start, frames)
    assert first.keep_stop <= min(frames, size) - reach
    assert last.keep_start - max(0, last.start) >= reach
    for wrong in (11, 49):
        with pytest.raises(ValueError, match="do not fit"):
            two_windows(wrong, size, reach)


@pytest.mark.parametrize("counts", [[1], [29], [30], [31], [40], [200], [200, 199, 100, 30, 12, 1], [77] * 8])
def test_every_frame_is_vocoded_once_with_its_context(cuda_artifacts: Artifacts, counts: list[int]) -> None:
    info, bucket = info_of(cuda_artifacts), Bucket(8, 200)
    layout = lay_out_in(bucket, counts, info)
    assert (layout.rows, layout.frames) == (8, 200)
    assert {(run.count, run.length) for run in layout.runs if run.bound} <= {bucket.window(info)}
    assert_vocoded_once_with_context(layout, counts, info)


# ---- The pass ----


@pytest.mark.parametrize("schedule", range(4))
def test_batches_equal_the_cpu_one_by_one(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, clip: np.ndarray, schedule: int
) -> None:
    gpu = fake_gpu.install(monkeypatch, schedule=schedule, fused=True)
    anonymizer = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, "cuda:0")
    waveforms, names = utterances(clip)
    for batch_s in (1000.0, 12.0, 0.0):
        found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=batch_s)
        assert_equal(found, cuda_artifacts, waveforms, names)
        if batch_s == 1000:
            assert gpu.runs[0][1]["waveform"][0] >= len(waveforms), "they did not run at once"
    assert len(gpu.shaped) == len(set(gpu.shaped)), "a session was opened twice"


@pytest.mark.parametrize("schedule", [1, 3])
def test_long_recordings_equal_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, clip: np.ndarray, schedule: int
) -> None:
    gpu = fake_gpu.install(monkeypatch, schedule=schedule, fused=True)
    short = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, max_window_s=8.03)
    cpu = dataclasses.replace(cuda_artifacts, anonymizer=short)
    anonymizer = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, "cuda:0", max_window_s=8.03)
    long = np.tile(clip, 8)
    waveforms, names = [long, clip, long[: 16000 * 9 + 77]], ["long", "short", "longer than a window"]
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99)
    assert_equal(found, cpu, waveforms, names)
    windows = {run[1]["waveform"] for run in gpu.runs if run[0].startswith("wavlm")}
    assert (1, 408 * 320 + 399) in windows


def test_a_run_over_a_shuffled_corpus_opens_nothing_after_its_warm_up(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, clip: np.ndarray
) -> None:
    gpu = fake_gpu.install(monkeypatch, fused=True)
    options = EngineOptions(batch_s=12, max_window_s=8)
    anonymizer = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, "cuda:0", options=options)
    info = anonymizer.info
    seconds = np.random.default_rng(3).uniform(0.7, 7, 24)
    waveforms = [np.tile(clip, 3)[: int(each * 16000)] for each in seconds] + [np.tile(clip, 4)]
    names = [f"u{index}" for index in range(len(waveforms))]
    frames = [info.frames(len(waveform)) for waveform in waveforms]
    anonymizer.use_lengths(chosen_lengths(frames, 400, info))
    opened = len(gpu.shaped)
    anonymizer.use_lengths(chosen_lengths(frames, 400, info))
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names)
    assert len(gpu.shaped) == opened, "a shape was opened in a run"
    cpu = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, max_window_s=8)
    assert_equal(found, dataclasses.replace(cuda_artifacts, anonymizer=cpu), waveforms, names)
    for wrong in ([], [64, 64, 400], [400, 64], [64]):
        with pytest.raises(ArgumentError, match="lengths must ascend"):
            anonymizer.use_lengths(wrong)
    cpu.use_lengths([64, 400])  # a CPU has no shapes


def recording_anonymizer(artifacts: Artifacts) -> Anonymizer:
    """One that records batches of 12 s."""
    options = EngineOptions(batch_s=12, max_window_s=8, tuning=Tuning(record_batches=True))
    return Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", options=options)


@pytest.mark.parametrize("schedule", [0, 2])
def test_recorded_batches_equal_the_cpu_and_record_nothing_later(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, clip: np.ndarray, schedule: int
) -> None:
    gpu = fake_gpu.install(monkeypatch, schedule=schedule, fused=True)
    anonymizer = recording_anonymizer(cuda_artifacts)
    anonymizer.use_lengths([64, 200, 400])
    warmed, opened = len(gpu.runs), len(gpu.shaped)
    long = np.tile(clip, 4)
    waveforms, names = utterances(clip)
    waveforms, names = [*waveforms, long], [*names, "longer than a window"]
    pending = [anonymizer.submit_batch(waveforms, seed=3, utterance_ids=names) for _ in range(2)]
    cpu = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, max_window_s=8)
    for batch in pending:
        assert_equal(batch.result(), dataclasses.replace(cuda_artifacts, anonymizer=cpu), waveforms, names)
    first = {(graph, tuple(sizes.items())) for graph, sizes, _ in gpu.runs[:warmed]}
    later = [(graph, tuple(sizes.items()), number) for graph, sizes, number in gpu.runs[warmed:]]
    replayed = [run for run in later if run[2]]
    assert {run[:2] for run in replayed} <= first, "something is recorded in a run"
    # What is shorter than any window of the vocoder has a run of its own, which is not recorded.
    assert {graph for graph, _, number in later if not number} <= {"vocoder.cuda"}
    assert {shape[3] for shape in gpu.shaped[:opened]} == {Use.RECORDED_BATCH}


def test_shapes_without_room_are_not_recorded_and_run_all_the_same(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, clip: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = fake_gpu.install(monkeypatch, fused=True)
    anonymizer = recording_anonymizer(cuda_artifacts)
    real = anonymizer._device_pass._fits
    short = {1: "in the rehearsal", 4: "in the recording"}  # by call: of each shape one, then of those that fitted
    calls: list[Bucket] = []

    def fits(graphs: object, bucket: Bucket, frames: int) -> bool:
        if len(calls) in short:
            gpu.failures = [RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 77")]
        calls.append(bucket)
        return real(graphs, bucket, frames)

    monkeypatch.setattr(anonymizer._device_pass, "_fits", fits)
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        anonymizer.use_lengths([64, 200, 400])
    assert "2 of 4 are recorded" in caplog.text
    assert len(calls) == 4 + 3
    recorded = anonymizer._device_pass._limits.recorded
    assert recorded == set(calls) - {calls[1], calls[4]}
    warmed = len(gpu.runs)
    waveforms, names = utterances(clip)
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names)
    cpu = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, max_window_s=8)
    assert_equal(found, dataclasses.replace(cuda_artifacts, anonymizer=cpu), waveforms, names)
    for graph, sizes, number in gpu.runs[warmed:]:
        if graph.startswith("conformer"):
            assert bool(number) == (Bucket(*sizes["features"][:2]) in recorded)


def test_other_lengths_are_recorded_anew(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, clip: np.ndarray
) -> None:
    gpu = fake_gpu.install(monkeypatch, fused=True)
    anonymizer = recording_anonymizer(cuda_artifacts)
    anonymizer.use_lengths([64, 400])
    first = set(gpu.shaped)
    anonymizer.use_lengths([80, 200, 400])
    again = gpu.shaped[len(first) :]
    assert set(again) & first, "sessions of old recordings were kept"
    waveforms, names = utterances(clip)
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names)
    cpu = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, max_window_s=8)
    assert_equal(found, dataclasses.replace(cuda_artifacts, anonymizer=cpu), waveforms, names)


def test_a_full_device_records_nothing(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = fake_gpu.install(monkeypatch, fused=True)
    anonymizer = recording_anonymizer(cuda_artifacts)
    gpu.cupy.free_bytes = gpu.cupy.total_bytes // 10
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        anonymizer.use_lengths([64, 400])
    assert "0 of 3 are recorded" in caplog.text
    assert {use for *_, use in gpu.shaped} == {Use.QUEUED}


def test_only_graphs_of_one_shape_record_batches(monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts) -> None:
    fake_gpu.install(monkeypatch)
    with pytest.raises(DeviceError, match="record_batches needs the graphs for CUDA"):
        recording_anonymizer(cuda_artifacts)


@pytest.mark.parametrize("record_batches", [False, True])
def test_the_residual_kernel_serves_batches_and_long_recordings(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, clip: np.ndarray, record_batches: bool
) -> None:
    gpu = fake_gpu.install(monkeypatch, fused=True)
    tuning = Tuning(residual_kernel=True, record_batches=record_batches)
    options = EngineOptions(batch_s=12, max_window_s=8, tuning=tuning)
    anonymizer = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, "cuda:0", options=options)
    anonymizer.use_lengths([64, 400])
    waveforms, names = utterances(clip)
    waveforms, names = [*waveforms, np.tile(clip, 4)], [*names, "longer than a window"]
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names)
    cpu = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, max_window_s=8)
    expected = cpu.anonymize_batch(waveforms, seed=3, utterance_ids=names)
    for each, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(each.cluster_ids, other.cluster_ids)
        error = each.waveform - other.waveform
        assert np.sqrt(np.mean(error**2)) < 0.02 * np.sqrt(np.mean(other.waveform**2))
    assert "residual_pair_narrow" in gpu.cupy.launched
    graphs = {graph for graph, _, _ in gpu.runs}
    assert not any(graph.startswith("vocoder.cuda") for graph in graphs)
    assert {"vocoder.stage0.cuda.fp16", "vocoder.stage1.cuda.fp16"} <= graphs


def test_too_little_memory_makes_smaller_shapes(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, clip: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = fake_gpu.install(monkeypatch, fused=True)
    anonymizer = Anonymizer.load(cuda_artifacts.model, cuda_artifacts.bank, "cuda:0", options=EngineOptions(batch_s=12))
    waveforms, names = [clip[:20000]] * 8, [f"u{index}" for index in range(8)]
    gpu.failures = [RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 77")]
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names)
    assert_equal(found, cuda_artifacts, waveforms, names)
    assert "too little memory for 8 utterances" in caplog.text
    assert {sizes["waveform"][0] for graph, sizes, _ in gpu.runs[-3:] if graph.startswith("wavlm")} == {4}
