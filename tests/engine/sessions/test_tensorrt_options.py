"""What can be known of TensorRT's provider without its libraries: options, the shapes of engines, their keys."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mkc_fast import Anonymizer
from mkc_fast.engine.artifacts import ModelInfo
from mkc_fast.engine.options import Buckets, Tuning
from mkc_fast.engine.sessions.opening import _of_any_run
from mkc_fast.engine.sessions.probe import PROBE_GRAPH
from mkc_fast.engine.sessions.providers import ORT_NAMES, EngineCache, Plan, Profile, profile, provider_list
from mkc_fast.names import GRAPH_FILES, TENSORRT
from tests.conftest import Artifacts
from tests.fakes.cuda import fake_gpu

INFO = ModelInfo(16000, 320, 400, 1024, 6, "fp32", 12, 15, {})  # of the published sizes
TRT = ORT_NAMES[TENSORRT]
with_tensorrt = pytest.mark.skipif(
    TRT not in onnxruntime.get_available_providers(), reason="this ONNX Runtime is without TensorRT"
)
SHORT = Buckets(max_batch=2, max_seconds=8, window_frames=70)
ODD = Buckets(max_batch=2, max_seconds=9.7, window_frames=90)
BUCKETS = (Buckets(), SHORT, ODD, Buckets(max_batch=5, max_seconds=30, window_frames=2000))


@with_tensorrt
@pytest.mark.parametrize(
    ("precision", "fixed", "limit", "stream", "cached"),
    list(itertools.product(("tf32", "fp16", "bf16"), (False, True), (None, 8 << 30), (None, 4711), (False, True))),
)
def test_the_parser_takes_the_options_of_every_run(
    precision: str,
    fixed: bool,
    limit: int | None,
    stream: int | None,
    cached: bool,
    tmp_path: Path,
) -> None:
    """It reads them before it looks for TensorRT's libraries, and refuses names and values that it lacks."""
    from onnxruntime.capi import _pybind_state

    tuning = Tuning(Buckets(fixed=fixed), limit, cuda_graph=fixed)
    plan = Plan("tensorrt", precision, 0, None, stream, tuning)  # type: ignore[arg-type]
    folders = (tmp_path / "e", tmp_path / "t") if cached else (None, None)
    onnxruntime.set_default_logger_severity(4)  # that the libraries are missing is known
    try:
        for graph in GRAPH_FILES:
            (_, options), *_ = provider_list(plan, graph, INFO, *folders)
            session = _pybind_state.InferenceSession(onnxruntime.SessionOptions(), str(PROBE_GRAPH), True, False)
            session.initialize_session([TRT], [options], set())
    finally:
        onnxruntime.set_default_logger_severity(2)


def within(shape: tuple[int, ...], name: str, shapes: Profile) -> bool:
    return all(
        low <= size <= high for low, size, high in zip(shapes.least[name], shape, shapes.most[name], strict=True)
    )


@pytest.mark.parametrize("buckets", [SHORT, ODD])
def test_every_run_of_a_pass_is_within_the_profiles_of_its_buckets(
    buckets: Buckets, artifacts: Artifacts, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of them TensorRT would build an engine in mid-run."""
    gpu = fake_gpu.install(monkeypatch)
    anonymizer = Anonymizer.load(artifacts.model, artifacts.bank, "cuda:0", tuning=Tuning(buckets))
    waveforms = [clip[:400], clip[:719], clip[:720], clip[:33333], np.tile(clip, 2)]
    names = [f"u{index}" for index in range(len(waveforms))]
    for batch_s in (0.0, 1e6):
        anonymizer.anonymize_batch(waveforms, seed=3, utterance_ids=names, batch_s=batch_s)
    profiles = {file.removesuffix(".onnx"): profile(file, buckets, anonymizer.info) for file in GRAPH_FILES}
    assert {graph for graph, _, _ in gpu.runs} == set(profiles)
    for graph, shapes, _ in gpu.runs:
        assert set(shapes) == set(profiles[graph].most)
        for name, shape in shapes.items():
            assert within(shape, name, profiles[graph]), f"{graph}.{name} {shape}"


@pytest.mark.parametrize("buckets", BUCKETS)
@pytest.mark.parametrize("graph", GRAPH_FILES)
def test_a_profile_is_in_order(buckets: Buckets, graph: str) -> None:
    """TensorRT demands least ≤ typical ≤ most on every axis."""
    found = profile(graph, buckets, INFO)
    for name, shape in found.typical.items():
        assert within(shape, name, found)


def test_whatever_shapes_an_engine_is_in_its_key(tmp_path: Path) -> None:
    """All but the device, the stream and the folders, which differ from run to run."""
    plan = Plan("tensorrt", "fp16", 0, None, 4711, Tuning(Buckets(fixed=True), 8 << 30, cuda_graph=True))
    (_, options), *_ = provider_list(plan, GRAPH_FILES[0], INFO)
    cache = EngineCache(tmp_path, "NVIDIA H100 80GB HBM3", (9, 0), "10.13.3", "1.31.0")

    def key(changed: dict[str, str]) -> Path:
        return cache.engines(GRAPH_FILES[0], ["aa"], _of_any_run({**options, **changed}))

    free = {name for name in options if key({name: "another"}) == key({})}
    assert free == {"device_id", "user_compute_stream"}
