"""What only a real GPU can show of the pass, its recordings and its failures (run with: pytest -m gpu)."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from mkc_fast import Anonymizer, DeviceError, StageError
from mkc_fast.engine.devices import cuda_device_names
from mkc_fast.engine.options import Buckets, EngineOptions, Tuning
from mkc_fast.engine.sessions.tensorrt import build_engines
from tests.conftest import Artifacts, signed
from tests.engine.passes.test_device import assert_equal, utterances

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu() -> None:
    """A CUDA device with CuPy and an ONNX Runtime that can use it."""
    if not cuda_device_names():
        pytest.skip("there is no CUDA device")
    pytest.importorskip("cupy", reason="there is no CuPy")


def load(artifacts: Artifacts, **how: object) -> Anonymizer:
    return Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", provider="cuda", precision="fp32", **how)


@pytest.mark.parametrize("batch_s", [0.0, 12.0, 1000.0])
def test_batches_equal_the_cpu_one_by_one(artifacts: Artifacts, clip: np.ndarray, batch_s: float) -> None:
    waveforms, names = utterances(clip)
    found = load(artifacts).anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=batch_s)
    assert_equal(found, artifacts, waveforms, names)


def test_many_batches_in_flight_come_out_right(artifacts: Artifacts, clip: np.ndarray) -> None:
    anonymizer, pending = load(artifacts), []
    waveforms, names = utterances(clip)
    for _ in range(5):
        for part in (slice(3), slice(3, 6), slice(6, 9)):
            batch = anonymizer.submit_batch(waveforms[part], seed=3, utterance_ids=names[part], batch_s=99)
            pending.append((batch, part))
    for batch, part in pending:
        assert_equal(batch.result(), artifacts, waveforms[part], names[part])


def test_long_recordings_equal_the_cpu(artifacts: Artifacts, clip: np.ndarray) -> None:
    cpu = dataclasses.replace(artifacts, anonymizer=Anonymizer.load(artifacts.model, artifacts.bank, max_window_s=8))
    waveforms, names = [np.tile(clip, 8), clip, np.tile(clip, 2)], list("abc")
    found = load(artifacts, max_window_s=8).anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99)
    assert_equal(found, cpu, waveforms, names)


def test_recorded_runs_equal_the_cpu(artifacts: Artifacts, clip: np.ndarray) -> None:
    anonymizer = load(artifacts, latency_buckets_s=(1, 3, 10))
    waveforms, names = utterances(clip)
    for _ in range(3):
        found = [anonymizer.anonymize(w, seed=3, utterance_id=n) for w, n in zip(waveforms, names, strict=True)]
        assert_equal(found, artifacts, waveforms, names)
    batch = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99)
    assert_equal(batch, artifacts, waveforms, names)


def test_the_graphs_run_on_the_gpu_without_copies_between_the_processors(artifacts: Artifacts) -> None:
    """A Memcpy node would wait for the stream, and forbid a recording."""
    for name, session in vars(load(artifacts)._sessions).items():
        if hasattr(session, "get_provider_graph_assignment_info"):
            operators = [
                node.op_type for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()
            ]
            assert not [operator for operator in operators if operator.startswith("Memcpy")], name


def test_centroids_that_are_not_finite_are_found(artifacts: Artifacts, clip: np.ndarray, tmp_path: Path) -> None:
    shutil.copytree(artifacts.bank, tmp_path / "bank")
    centroids = np.load(tmp_path / "bank" / "centroids.npy", mmap_mode="r+")
    centroids[3, :, 5] = np.nan
    centroids.flush()
    signed(tmp_path / "bank")
    anonymizer = Anonymizer.load(artifacts.model, tmp_path / "bank", "cuda:0")
    with pytest.raises(StageError, match=r"utterance bad: .*not finite"):
        anonymizer.anonymize_batch([clip] * 2, utterance_ids=["bad", "worse"], entries=[3], batch_s=99)
    anonymizer.anonymize(clip, entries=[1, 2])


def test_too_little_memory_halves_the_batch(
    artifacts: Artifacts, clip: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    anonymizer = load(artifacts, tuning=Tuning(gpu_mem_limit_bytes=96 << 20))
    waveforms, names = [clip] * 64, [f"u{index}" for index in range(64)]
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=1e6)
    assert_equal(found[:3], artifacts, waveforms[:3], names[:3])
    assert "too little memory" in caplog.text


@pytest.mark.parametrize("fixed", [False, True])
def test_tensorrt_within_its_buckets_is_close_to_the_cpu(
    artifacts: Artifacts, clip: np.ndarray, tmp_path, fixed: bool
) -> None:
    tuning = Tuning(Buckets(max_batch=4, max_seconds=10, window_frames=200, fixed=fixed))
    try:
        build_engines(artifacts.model, "cuda:0", EngineOptions(tuning=tuning, cache=tmp_path))
    except DeviceError as error:
        pytest.skip(str(error))
    anonymizer = Anonymizer.load(
        artifacts.model, artifacts.bank, "cuda:0", provider="tensorrt", tuning=tuning, cache=tmp_path
    )
    waveforms, names = utterances(clip)
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99)
    for name, waveform, result in zip(names, waveforms, found, strict=True):
        alone = artifacts.anonymizer.anonymize(waveform, seed=3, utterance_id=name)
        assert result.waveform.shape == alone.waveform.shape
        assert (result.cluster_ids == alone.cluster_ids).mean() > 0.9  # TF32: 10 bits of a product
