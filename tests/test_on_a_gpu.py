"""What only a real GPU can show of the pass, its recordings and its failures (run with: pytest -m gpu)."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from mkc_fast import Anonymizer, DeviceError, StageError
from mkc_fast.benchmarks.near_ties import near_ties
from mkc_fast.engine.devices import cuda_device_names
from mkc_fast.engine.options import Buckets, EngineOptions, Tuning
from mkc_fast.engine.sessions.tensorrt import build_engines
from mkc_fast.onnx_runtime import ort
from tests.conftest import Artifacts, signed
from tests.engine.passes.test_device import utterances

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu() -> None:
    """A CUDA device with CuPy and an ONNX Runtime that can use it."""
    if not cuda_device_names():
        pytest.skip("there is no CUDA device")
    pytest.importorskip("cupy", reason="there is no CuPy")


def load(artifacts: Artifacts, **how: object) -> Anonymizer:
    return Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", provider="cuda", precision="fp32", **how)


def assert_like_the_cpu(
    found: list, anonymizer: Anonymizer, cpu: Anonymizer, waveforms: list[np.ndarray], names: list[str]
) -> None:
    """Ids differ from the CPU's only in near ties, and the waveform is what the CPU makes of the same ids.

    The features of a GPU are those of the CPU but for rounding, which decides where two centroids are about as near.
    Twice the features' error is allowed for, since in a batch, or padded, sums run in another order.
    """
    for name, waveform, result in zip(names, waveforms, found, strict=True):
        alone = cpu.anonymize(waveform, seed=3, utterance_id=name)
        np.testing.assert_array_equal(result.bank_ids, alone.bank_ids)
        features, theirs = cpu.encode(waveform), anonymizer.encode(waveform)
        np.testing.assert_allclose(theirs, features, atol=2e-4, rtol=0)  # of values up to 5
        ties = near_ties(
            cpu.bank.centroids, alone.bank_ids, features, alone.cluster_ids, theirs, result.cluster_ids, slack=2.0
        )
        print(f"{name}: {ties.report()}")  # pytest -m gpu -rP
        assert ties.faults == 0, ties.report()
        expected = cpu.vocode(cpu.restore(cpu.lookup(alone.bank_ids, result.cluster_ids)))
        assert result.waveform.shape == expected.shape
        np.testing.assert_allclose(result.waveform, expected, atol=1e-4, rtol=0)


def test_ids_from_equal_features_equal_the_cpus(artifacts: Artifacts, clip: np.ndarray) -> None:
    """On speech, and in the middle of two centroids, where rounding would decide."""
    anonymizer, cpu = load(artifacts), artifacts.anonymizer
    features = cpu.encode(np.tile(clip, 4))
    banks = np.arange(len(features)) % len(cpu.bank)
    np.testing.assert_array_equal(anonymizer.assign(features, banks), cpu.assign(features, banks))
    rng = np.random.default_rng(0)
    clusters = np.array(cpu.bank.info.num_clusters)[banks]
    first, second = (rng.integers(0, clusters) for _ in range(2))
    middle = np.float32(0.5) * (cpu.bank.centroids[banks, first] + cpu.bank.centroids[banks, second])
    np.testing.assert_array_equal(anonymizer.assign(middle, banks), cpu.assign(middle, banks))


@pytest.mark.parametrize("batch_s", [0.0, 12.0, 1000.0])
def test_batches_equal_the_cpu_one_by_one(artifacts: Artifacts, clip: np.ndarray, batch_s: float) -> None:
    waveforms, names = utterances(clip)
    anonymizer = load(artifacts)
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=batch_s)
    assert_like_the_cpu(found, anonymizer, artifacts.anonymizer, waveforms, names)


def test_many_batches_in_flight_come_out_right(artifacts: Artifacts, clip: np.ndarray) -> None:
    anonymizer, pending = load(artifacts), []
    waveforms, names = utterances(clip)
    for _ in range(5):
        for part in (slice(3), slice(3, 6), slice(6, 9)):
            batch = anonymizer.submit_batch(waveforms[part], seed=3, utterance_ids=names[part], batch_s=99)
            pending.append((batch, part))
    for batch, part in pending:
        assert_like_the_cpu(batch.result(), anonymizer, artifacts.anonymizer, waveforms[part], names[part])


def test_long_recordings_equal_the_cpu(artifacts: Artifacts, clip: np.ndarray) -> None:
    cpu, anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, max_window_s=8), load(artifacts, max_window_s=8)
    waveforms, names = [np.tile(clip, 8), clip, np.tile(clip, 2)], list("abc")
    found = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99)
    assert_like_the_cpu(found, anonymizer, cpu, waveforms, names)


def test_recorded_runs_equal_the_cpu(artifacts: Artifacts, clip: np.ndarray) -> None:
    anonymizer = load(artifacts, latency_buckets_s=(1, 3, 10))
    waveforms, names = utterances(clip)
    for _ in range(3):
        found = [anonymizer.anonymize(w, seed=3, utterance_id=n) for w, n in zip(waveforms, names, strict=True)]
        assert_like_the_cpu(found, anonymizer, artifacts.anonymizer, waveforms, names)
    batch = anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=99)
    assert_like_the_cpu(batch, anonymizer, artifacts.anonymizer, waveforms, names)


def test_the_graphs_run_on_the_gpu_without_copies_between_the_processors(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Memcpy node would wait for the stream, and forbid a recording; only the optimized graph shows them."""
    real = ort.InferenceSession

    def written(path: str, options: ort.SessionOptions, **how: object) -> ort.InferenceSession:
        options.optimized_model_filepath = str(tmp_path / Path(path).name)
        return real(path, options, **how)

    monkeypatch.setattr(ort, "InferenceSession", written)
    load(artifacts)
    graphs = sorted(tmp_path.glob("*.onnx"))
    assert len(graphs) == 3
    for path in graphs:
        operators = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
        assert not [operator for operator in operators if operator.startswith("Memcpy")], path.name


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
    assert_like_the_cpu(found[:3], anonymizer, artifacts.anonymizer, waveforms[:3], names[:3])
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
        features = artifacts.anonymizer.encode(waveform), anonymizer.encode(waveform)
        ids = alone.cluster_ids, result.cluster_ids
        bank = artifacts.anonymizer.bank.centroids
        ties = near_ties(bank, alone.bank_ids, features[0], ids[0], features[1], ids[1], slack=2.0)
        assert ties.faults == 0, ties.report()
        assert ties.feature_error < 0.02  # TF32: 10 bits of a product
