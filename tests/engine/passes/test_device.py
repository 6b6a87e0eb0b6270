"""The pass on a GPU equals that on the CPU, whatever the streams make of their freedom; without a GPU."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from mkc_fast import Anonymizer, BankError, DeviceError, DeviceMemoryError, LostDeviceError
from mkc_fast.engine.artifacts import ModelInfo
from mkc_fast.engine.options import Buckets, Tuning
from mkc_fast.engine.passes.layout import Layout, lay_out
from mkc_fast.engine.sessions.shaped import Use
from mkc_fast.engine.windows import NUMPY_ROWS
from mkc_fast.export import build_bank
from mkc_fast.kernels.cuda.rows import DeviceRows
from tests.conftest import Artifacts
from tests.fakes.cuda import fake_gpu
from tests.fakes.cuda.fake_gpu import FakeGpu

SIZES = [400, 719, 720, 9000, 16000, 16001, 33333, 70000]


@pytest.fixture(params=[2])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A machine with a GPU; the parameter orders what its streams leave open."""
    return fake_gpu.install(monkeypatch, schedule=request.param)


def assert_equal(
    found: list, artifacts: Artifacts, waveforms: list[np.ndarray], names: list[str], **how: object
) -> None:
    for name, waveform, result in zip(names, waveforms, found, strict=True):
        alone = artifacts.anonymizer.anonymize(waveform, seed=3, utterance_id=name, **how)
        np.testing.assert_array_equal(result.bank_ids, alone.bank_ids)
        np.testing.assert_array_equal(result.cluster_ids, alone.cluster_ids)
        assert result.cluster_ids.dtype == alone.cluster_ids.dtype
        assert result.waveform.shape == alone.waveform.shape
        np.testing.assert_allclose(result.waveform, alone.waveform, atol=1e-4, rtol=0)
        assert set(result.stage_seconds) == {"encode", "assign", "restore", "vocode"}


def utterances(clip: np.ndarray) -> tuple[list[np.ndarray], list[str]]:
    waveforms = [clip[:size] for size in SIZES] + [np.tile(clip, 3)]
    return waveforms, [f"u{index}" for index in range(len(waveforms))]


@pytest.mark.parametrize(("gpu", "batch_s"), [(0, 1000.0), (1, 1000.0), (2, 12.0), (3, 0.0)], indirect=["gpu"])
def test_batches_equal_the_cpu_one_by_one(gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray, batch_s: float) -> None:
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0")
    waveforms, names = utterances(clip)
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=batch_s)
    assert_equal(found, artifacts, waveforms, names)
    if batch_s == 1000:
        assert gpu.runs[0][1]["waveform"][0] == len(waveforms), "they did not run at once"


@pytest.mark.parametrize("gpu", range(4), indirect=True)
def test_one_batch_can_be_begun_before_the_last_has_ended(gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray) -> None:
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0")
    waveforms, names = utterances(clip)
    pending = [
        anonymizer.submit_batch(
            waveforms[start : start + 3], seed=3, utterance_ids=names[start : start + 3], batch_s=99
        )
        for start in (0, 3, 6)
    ]
    assert not any(batch.done for batch in pending)
    found = [result for batch in pending for result in batch.result()]
    assert_equal(found, artifacts, waveforms, names)


@pytest.mark.parametrize("gpu", [1, 3], indirect=True)
def test_long_recordings_equal_the_cpu(gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray) -> None:
    cpu = dataclasses.replace(artifacts, anonymizer=Anonymizer.load(artifacts.model, artifacts.bank, max_window_s=8))
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", max_window_s=8)
    long = np.tile(clip, 8)  # 40 s: windows that fade, and two of the vocoder's
    waveforms, names = [long, clip, long[: 16000 * 9 + 77]], ["long", "short", "longer than a window"]
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99)
    assert_equal(found, cpu, waveforms, names)
    assert {run[1]["waveform"] for run in gpu.runs if run[0] == "wavlm"} >= {(1, 400 * 320 + 399)}


@pytest.mark.parametrize("gpu", range(4), indirect=True)
def test_two_banks_share_the_graphs_and_give_what_each_gives_alone(
    gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray, golden: Path, tmp_path: Path
) -> None:
    build_bank(golden / "kmeans.scp", tmp_path / "other", kmeans_num=2, seed=1)
    cpu = dataclasses.replace(artifacts, anonymizer=artifacts.anonymizer.with_bank(tmp_path / "other"))
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0")
    opened = len(gpu.opened)
    other = anonymizer.with_bank(tmp_path / "other")
    assert len(gpu.opened) == opened, "the graphs were opened again"
    waveforms, names = utterances(clip)
    pending = [
        (each, start, each.submit_batch(waveforms[start : start + 3], seed=3, utterance_ids=names[start : start + 3]))
        for start in (0, 3, 6)
        for each in (anonymizer, other)
    ]
    for each, start, batch in pending:
        host = artifacts if each is anonymizer else cpu
        assert_equal(batch.result(), host, waveforms[start : start + 3], names[start : start + 3])


@pytest.mark.parametrize("free", [3, 1 << 10])
def test_a_bank_that_does_not_fit_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, artifacts: Artifacts, clip: np.ndarray, free: int
) -> None:
    _, clusters, dim = artifacts.anonymizer.bank.centroids.shape
    gpu = fake_gpu.install(monkeypatch, free_bytes=2 * free * 4 * clusters * dim)  # half of it is for the bank
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", max_window_s=8)
    assert anonymizer._lookup.resident == (free > 8)
    cpu = dataclasses.replace(artifacts, anonymizer=Anonymizer.load(artifacts.model, artifacts.bank, max_window_s=8))
    waveforms, names = [clip, np.tile(clip, 3), clip[:5000]], list("abc")
    assert_equal(anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=60), cpu, waveforms, names)
    assert gpu.runs


def test_audio_mode_and_given_ids(gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray) -> None:
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0")
    result = anonymizer.anonymize(clip, mode="audio", seed=3, utterance_id="u")
    assert_equal([result], artifacts, [clip], ["u"], mode="audio")
    frames = anonymizer.info.frames(len(clip))
    given = np.arange(frames) % 8
    np.testing.assert_array_equal(anonymizer.anonymize(clip, bank_ids=given).bank_ids, given)
    with pytest.raises(BankError, match="bank_ids"):
        anonymizer.anonymize(clip, bank_ids=np.full(frames, 99))


def test_the_stages_alone_equal_the_cpu(gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray) -> None:
    anonymizer, cpu = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0"), artifacts.anonymizer
    features = anonymizer.encode(clip)
    # Of values up to 5: the CPU has operators of its own, whose sums run in another order.
    np.testing.assert_allclose(features, cpu.encode(clip), atol=5e-5)
    banks = np.arange(len(features)) % 8
    ids = anonymizer.assign(features, banks)
    np.testing.assert_array_equal(ids, cpu.assign(features, banks))
    np.testing.assert_array_equal(anonymizer.lookup(banks, ids), cpu.lookup(banks, ids))


# ---- Sizes ----


def test_bounded_buckets_are_kept_to(gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray) -> None:
    """As for TensorRT: no more utterances, no longer ones, one length of windows."""
    buckets = Buckets(max_batch=2, max_seconds=8, window_frames=70)
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", tuning=Tuning(buckets))
    cpu = dataclasses.replace(artifacts, anonymizer=Anonymizer.load(artifacts.model, artifacts.bank, max_window_s=8))
    waveforms, names = utterances(clip)
    assert_equal(anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99), cpu, waveforms, names)
    windows = {run[1]["features"][1] for run in gpu.runs if run[0] == "vocoder"}
    assert max(windows) == 70
    assert all(run[1]["waveform"][0] <= 2 for run in gpu.runs if run[0] == "wavlm")
    assert max(run[1]["waveform"][1] for run in gpu.runs if run[0] == "wavlm") <= 400 * 320 + 399


def test_fixed_buckets_have_one_shape_each(gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray) -> None:
    buckets = Buckets(max_batch=3, max_seconds=8, window_frames=90, fixed=True)
    tuning = Tuning(buckets, cuda_graph=True)
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", tuning=tuning)
    cpu = dataclasses.replace(artifacts, anonymizer=Anonymizer.load(artifacts.model, artifacts.bank, max_window_s=8))
    waveforms, names = utterances(clip)
    assert_equal(anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99), cpu, waveforms, names)
    shapes = {(graph, tuple(sizes.values())) for graph, sizes, number in gpu.runs if number != "-1"}
    reach = anonymizer.info.vocoder_reach
    assert {shape for graph, shape in shapes if graph == "wavlm"} == {((3, 400 * 320 + 399), (3,))}
    assert {shape[0][1] for graph, shape in shapes if graph == "vocoder"} == {90, 2 * reach}


@pytest.mark.parametrize("fused", [False, True])
def test_latency_buckets_pad_and_record_single_utterances(
    monkeypatch: pytest.MonkeyPatch, cuda_artifacts: Artifacts, clip: np.ndarray, fused: bool
) -> None:
    gpu, artifacts = fake_gpu.install(monkeypatch, fused=fused), cuda_artifacts
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", latency_buckets_s=[4, 1])
    assert len(gpu.opened) == 1
    assert len(gpu.shaped) == 6
    assert all(use == Use.RECORDED for *_, use in gpu.shaped)
    warmed = len(gpu.runs)
    assert warmed, "nothing was recorded beforehand"
    waveforms, names = utterances(clip)
    found = [anonymizer.anonymize(w, seed=3, utterance_id=n) for w, n in zip(waveforms, names, strict=True)]
    again = [anonymizer.anonymize(w, seed=3, utterance_id=n) for w, n in zip(waveforms, names, strict=True)]
    assert_equal(found, artifacts, waveforms, names)
    assert_equal(again, artifacts, waveforms, names)
    first = {(graph, tuple(sizes.items())) for graph, sizes, number in gpu.runs[:warmed]}
    later = {(graph, tuple(sizes.items())) for graph, sizes, number in gpu.runs[warmed:] if number}
    assert later <= first, "something is recorded while a user waits"
    assert len({run[0] for run in gpu.shaped if run[3] == Use.RECORDED}) == 3
    padded = {sizes["waveform"] for graph, sizes, number in gpu.runs[warmed:] if graph.startswith("wavlm") and number}
    assert padded == {(1, 56 * 320 + 399), (1, 200 * 320 + 399)}
    with pytest.raises(DeviceError, match="latency bucket"):
        Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", latency_buckets_s=[0.1])
    with pytest.raises(DeviceError, match="the device is cpu"):
        Anonymizer.load(artifacts.model, artifacts.bank, latency_buckets_s=[1])


def test_neighbouring_batches_share_their_shapes(artifacts: Artifacts) -> None:
    info = artifacts.anonymizer.info
    one, other = (lay_out([top, top - 3, top - 20, top - 21], info) for top in (640, 634))
    assert (one.frames, one.samples) == (other.frames, other.samples)
    assert [(run.count, run.length) for run in one.runs] == [(run.count, run.length) for run in other.runs]


# ---- Failures ----


def test_too_little_memory_halves_the_batch_and_says_so_once(
    gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0")
    waveforms, names = [clip[:20000]] * 8, [f"u{index}" for index in range(8)]
    gpu.failures = [RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 77")]
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99)
        assert_equal(found, artifacts, waveforms, names)
        assert len(caplog.records) == 1
        assert "too little memory for 8 utterances" in caplog.text
        assert "\n" not in caplog.records[0].getMessage()
        del gpu.runs[:]
        found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99)
        assert_equal(found, artifacts, waveforms, names)
        assert len(caplog.records) == 1
    assert {sizes["waveform"][0] for graph, sizes, _ in gpu.runs if graph == "wavlm"} == {4}


@pytest.mark.parametrize(
    "said",
    [
        "BFCArena: Failed to allocate memory for requested buffer of size 77",
        "Available memory of 22020096 is smaller than requested bytes of 41943040",
        "Non-zero status code returned while running Conv node. Name:'" + "/a/very/long/name" * 30 + "' out of memory",
        "CUDA_ERROR_OUT_OF_MEMORY: out",
    ],
)
def test_the_memory_of_a_batch_that_failed_is_free_when_the_pool_gives_back_what_is_not_in_use(
    gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray, said: str
) -> None:
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0")
    waveforms, names = [clip[:20000]] * 8, [f"u{index}" for index in range(8)]
    before = len(gpu.cupy.blocks)
    gpu.failures = [RuntimeError(said)]
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99)
    assert_equal(found, artifacts, waveforms, names)
    assert gpu.cupy.blocks_when_freed == [before]


def test_cupys_memory_is_halved_too_and_one_utterance_too_long_is_an_error(
    gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray
) -> None:
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0")
    waveforms, names = [clip[:20000]] * 4, list("abcd")
    gpu.cupy.allocated_bytes, gpu.cupy.limit_bytes = 0, 1 << 10
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        anonymizer.anonymize(clip)
    gpu.cupy.limit_bytes = 1 << 62
    assert_equal(
        anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99), artifacts, waveforms, names
    )


def test_a_lost_device_is_told_from_an_error(
    gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0")
    gpu.failures = [RuntimeError("node Conv_7 failed\nfor some reason")]
    with pytest.raises(DeviceError, match="cuda:0: node Conv_7 failed for some reason") as caught:
        anonymizer.anonymize(clip)
    assert not isinstance(caught.value, LostDeviceError)
    anonymizer.anonymize(clip)
    gpu.failures = [RuntimeError("CUDA failure 700: an illegal memory access was encountered")]

    def fails() -> None:
        raise gpu.cupy.cuda.runtime.CUDARuntimeError("cudaErrorIllegalAddress")

    monkeypatch.setattr(anonymizer._device_pass._context.compute, "synchronize", fails)
    with pytest.raises(LostDeviceError, match=r"lost.*illegal memory access"):
        anonymizer.anonymize(clip)


# ---- What lies where ----


def assert_vocoded_once_with_context(layout: Layout, counts: list[int], info: ModelInfo) -> None:
    """Every frame is kept once, of a window in which it has the context that it has in its utterance."""
    reach = info.vocoder_reach
    assert info.frames(layout.samples) == layout.frames
    placed = np.concatenate([run.places for run in layout.runs])
    assert sorted(placed.tolist()) == list(range(sum(counts)))
    starts = np.concatenate([[0], np.cumsum(counts)])
    for run in layout.runs:
        assert run.origins.shape == (run.count * run.length,)
        origins = run.origins.reshape(run.count, run.length)
        for kept, place in zip(run.kept, run.places, strict=True):
            utterance = int(np.searchsorted(starts, place, "right")) - 1
            frame, base = place - starts[utterance], utterance * layout.frames
            window, column = origins[kept // run.length], kept % run.length
            assert window[column] == base + frame
            first, last = max(0, frame - reach), min(counts[utterance] - 1, frame + reach)
            context = window[column - (frame - first) : column + (last - frame) + 1]
            assert context.tolist() == list(range(base + first, base + last + 1))
            # Where the utterance ends within reach, so does the window: what a network pads with is not zeros.
            if frame + reach >= counts[utterance]:
                assert column + (last - frame) + 1 == run.length
            if frame < reach:
                assert column == frame


@pytest.mark.parametrize(
    "buckets", [None, Buckets(8, 10, 100), Buckets(8, 10, 100, fixed=True), Buckets(8, 10, 500, fixed=True)]
)
@pytest.mark.parametrize("counts", [[1], [29], [30], [99], [100], [101], [500], [500, 499, 30, 12, 1], [77] * 8])
def test_every_frame_is_vocoded_once_with_its_context(
    artifacts: Artifacts, counts: list[int], buckets: Buckets | None
) -> None:
    info = artifacts.anonymizer.info
    assert_vocoded_once_with_context(lay_out(counts, info, buckets), counts, info)


def test_rows_are_moved_faded_and_checked(gpu: FakeGpu) -> None:
    cupy, rows = gpu.cupy, DeviceRows(gpu.cupy)
    rng = np.random.default_rng(0)
    old, fresh = (rng.standard_normal((5000, 7)).astype(np.float32) for _ in range(2))
    on_device = [cupy.asarray(each) for each in (old, fresh)]
    np.testing.assert_allclose(rows.fade(*on_device).get(), NUMPY_ROWS.fade(old, fresh), atol=1e-6)
    np.testing.assert_array_equal(rows.join(on_device).get(), NUMPY_ROWS.join([old, fresh]))
    target = cupy.asarray(np.full((6, 7), 9, np.float32))
    origins, places = np.array([4, -1, 4999, 3], np.int32), np.array([0, 2, 5, -1], np.int32)
    rows.move(on_device[0], cupy.asarray(origins), target, cupy.asarray(places))
    expected = np.full((6, 7), 9, np.float32)
    expected[0], expected[2], expected[5] = old[4], 0, old[4999]
    np.testing.assert_array_equal(target.get(), expected)
    for bad in (np.nan, np.inf, -np.inf):
        for bank, raised in ((3, 1), (-1, 0)):
            values, banks = np.ones((3, 7), np.float32), np.array([0, bank, 1], np.int32)
            values[1, 6] = bad
            flag = cupy.asarray(np.zeros(1, np.int32))
            rows.flag(cupy.asarray(values), cupy.asarray(banks), flag, 3)
            assert flag.get() == raised
    values = np.ones((6, 7), np.float32)
    values[3, 2] = np.nan
    flags = cupy.asarray(np.zeros(3, np.int32))
    rows.flag(cupy.asarray(values), cupy.asarray(np.zeros(6, np.int32)), flags, 2)
    assert flags.get().tolist() == [0, 1, 0]  # of three utterances of two rows
