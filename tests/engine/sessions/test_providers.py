"""What ONNX Runtime is given for a provider and a precision, and that nothing else runs instead; without a GPU."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mkc_fast import ArtifactError, DeviceError
from mkc_fast.engine import devices
from mkc_fast.engine.artifacts import GraphCheck, ModelInfo, write_info
from mkc_fast.engine.devices import Driver, Gpu, cores
from mkc_fast.engine.options import Buckets, EngineOptions, Tuning, check_choice
from mkc_fast.engine.sessions import opening as sessions
from mkc_fast.engine.sessions import tensorrt as warm
from mkc_fast.engine.sessions.gpu_facts import GpuFacts, Library, Runtime
from mkc_fast.engine.sessions.opening import open_sessions
from mkc_fast.engine.sessions.providers import (
    ORT_NAMES,
    EngineCache,
    Plan,
    Profile,
    candidates,
    cuda_graph_file,
    cuda_options,
    free_dimensions,
    graph_file,
    profile,
    provider_list,
    refusal,
    resolve_precision,
    session_settings,
    stage_precision,
    tensorrt_options,
)
from mkc_fast.engine.windows import exact_windows
from mkc_fast.names import CONFORMER_FILE, GRAPH_FILES, VOCODER_FILE, WAVLM_FILE
from tests.conftest import signed

INFO = ModelInfo(16000, 320, 400, 1024, 6, "fp32", 12, 15, {})
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30)
T4 = Gpu(1, "Tesla T4", (7, 5), 15 << 30)
V100 = Gpu(2, "Tesla V100", (7, 0), 32 << 30)
TRT, CUDA, CPU = ORT_NAMES["tensorrt"], ORT_NAMES["cuda"], ORT_NAMES["cpu"]
SIZES = Buckets(max_batch=8, max_seconds=40, window_frames=500)


# --- options ---------------------------------------------------------------------------------------------------------


def test_the_cpu_gets_threads_that_sleep_and_nothing_else() -> None:
    assert provider_list(Plan("cpu", "fp32"), WAVLM_FILE, INFO) == [(CPU, {})]
    given = session_settings(Plan("cpu", "fp32", threads=3))
    assert given.attributes == {"log_severity_level": 3, "enable_mem_pattern": False, "intra_op_num_threads": 3}
    assert given.entries == {"session.intra_op.allow_spinning": "0"}
    assert "intra_op_num_threads" not in session_settings(Plan("cpu", "fp32")).attributes


def test_a_gpu_session_records_which_provider_got_each_node() -> None:
    given = session_settings(Plan("cuda", "fp32", 0))
    assert given.entries["session.record_ep_graph_assignment_info"] == "1"
    assert given.attributes["intra_op_num_threads"] == 1  # shape arithmetic alone is left for the CPU


@pytest.mark.parametrize(("precision", "flag"), [("fp32", "0"), ("tf32", "1"), ("fp16", "1")])
def test_tf32_is_off_in_fp32_alone(precision: str, flag: str) -> None:
    """In fp16 it must be on: off, it keeps convolutions of every type from tensor cores."""
    assert cuda_options(Plan("cuda", precision, 0), VOCODER_FILE)["use_tf32"] == flag


def test_cuda_searches_convolutions_only_where_shapes_are_fixed() -> None:
    def search(tuning: Tuning) -> str:
        return cuda_options(Plan("cuda", "fp32", 0, tuning=tuning), VOCODER_FILE)["cudnn_conv_algo_search"]

    assert search(Tuning()) == search(Tuning(SIZES)) == "HEURISTIC"
    assert search(Tuning(dataclasses.replace(SIZES, fixed=True))) == "EXHAUSTIVE"
    assert search(Tuning(dataclasses.replace(SIZES, fixed=True), conv_search="HEURISTIC")) == "HEURISTIC"


@pytest.mark.parametrize(("graph", "nhwc"), [(WAVLM_FILE, "0"), (CONFORMER_FILE, "0"), (VOCODER_FILE, "1")])
def test_cuda_gets_these_options(graph: str, nhwc: str) -> None:
    """Channels last are for the vocoder: in the other graphs they bring copies that every run waits for."""
    plan = Plan("cuda", "fp32", 3, tuning=Tuning(gpu_mem_limit_bytes=8 << 30, prefer_nhwc=True))
    assert provider_list(plan, graph, INFO) == [
        (
            CUDA,
            {
                "device_id": "3",
                "cudnn_conv_algo_search": "HEURISTIC",
                "cudnn_conv_use_max_workspace": "1",
                "cudnn_conv1d_pad_to_nc1d": "1",
                "use_tf32": "0",
                "arena_extend_strategy": "kSameAsRequested",
                "prefer_nhwc": nhwc,
                "fuse_conv_bias": "0",
                "do_copy_in_default_stream": "1",
                "gpu_mem_limit": str(8 << 30),
            },
        ),
        (CPU, {}),
    ]


def test_a_stream_goes_to_both_gpu_providers_as_text() -> None:
    plan = Plan("tensorrt", "tf32", 0, stream=140_213_337_554_944)
    for name, options in provider_list(plan, VOCODER_FILE, INFO)[:2]:
        assert options["user_compute_stream"] == "140213337554944", name
    assert "user_compute_stream" not in cuda_options(Plan("cuda", "fp32", 0), VOCODER_FILE)


def test_a_cuda_graph_is_recorded_by_the_provider_that_runs() -> None:
    tuning = Tuning(dataclasses.replace(SIZES, fixed=True), cuda_graph=True)
    assert cuda_options(Plan("cuda", "fp32", 0, tuning=tuning), VOCODER_FILE)["enable_cuda_graph"] == "1"
    (_, tensorrt), (_, cuda), _ = provider_list(Plan("tensorrt", "tf32", 0, tuning=tuning), VOCODER_FILE, INFO)
    assert tensorrt["trt_cuda_graph_enable"] == "True"
    assert "enable_cuda_graph" not in cuda


@pytest.mark.parametrize(
    ("precision", "fp16", "bf16"), [("tf32", "False", "False"), ("fp16", "True", "False"), ("bf16", "False", "True")]
)
def test_tensorrt_may_compute_in_the_type_asked_for(precision: str, fp16: str, bf16: str) -> None:
    options = tensorrt_options(Plan("tensorrt", precision, 0), profile(VOCODER_FILE, SIZES, INFO))
    assert (options["trt_fp16_enable"], options["trt_bf16_enable"]) == (fp16, bf16)


def test_tensorrt_keeps_engines_and_timings_only_where_it_is_told(tmp_path: Path) -> None:
    plan = Plan("tensorrt", "fp16", 0)
    (_, without), *_ = provider_list(plan, VOCODER_FILE, INFO)
    assert not any("cache" in name for name in without)
    (_, options), (second, _), (last, _) = provider_list(plan, VOCODER_FILE, INFO, tmp_path / "e", tmp_path / "t")
    assert (options["trt_engine_cache_enable"], options["trt_engine_cache_path"]) == ("True", str(tmp_path / "e"))
    assert (options["trt_timing_cache_enable"], options["trt_timing_cache_path"]) == ("True", str(tmp_path / "t"))
    assert (second, last) == (CUDA, CPU)  # for what TensorRT has no kernel for


@pytest.mark.skipif(TRT not in onnxruntime.get_available_providers(), reason="this ONNX Runtime is without TensorRT")
@pytest.mark.parametrize("graph", GRAPH_FILES)
def test_onnx_runtime_knows_every_option_of_tensorrt(graph: str, tmp_path: Path) -> None:
    """Its parser reads them before it looks for TensorRT's libraries, and refuses names and values that it lacks."""
    from onnxruntime.capi import _pybind_state

    def parse(options: dict[str, str]) -> None:
        plain = onnxruntime.SessionOptions()
        session = _pybind_state.InferenceSession(plain, str(tiny_graph(tmp_path / "g.onnx")), True, False)
        session.initialize_session([TRT], [options], set())

    fixed = dataclasses.replace(SIZES, fixed=True)
    plan = Plan("tensorrt", "fp16", 0, None, 4711, Tuning(fixed, 8 << 30, cuda_graph=True))
    (_, options), *_ = provider_list(plan, graph, INFO, tmp_path / "e", tmp_path / "t")
    onnxruntime.set_default_logger_severity(4)  # that the libraries are missing is known
    try:
        parse(options)
        with pytest.raises(RuntimeError, match="should be 'True' or 'False'"):
            parse({**options, "trt_fp16_enable": "1"})
    finally:
        onnxruntime.set_default_logger_severity(2)


# --- shape profiles --------------------------------------------------------------------------------------------------


def test_profiles_follow_from_the_buckets() -> None:
    # 40 s are 2,000 frames; cut with the samples that make no further frame they have 2,000 * 320 + 399. A typical
    # utterance has 12.6 s, 630 frames.
    assert profile(WAVLM_FILE, SIZES, INFO) == Profile(
        {"waveform": (1, 400), "lengths": (1,)},
        {"waveform": (8, 630 * 320 + 399), "lengths": (8,)},
        {"waveform": (8, 2000 * 320 + 399), "lengths": (8,)},
    )
    assert profile(CONFORMER_FILE, SIZES, INFO) == Profile(
        {"features": (1, 1, 1024), "lengths": (1,)},
        {"features": (8, 630, 1024), "lengths": (8,)},
        {"features": (8, 2000, 1024), "lengths": (8,)},
    )
    # Windows of 500 frames that share 30: five in 2,000 frames, two in 630.
    assert profile(VOCODER_FILE, SIZES, INFO) == Profile(
        {"features": (1, 1, 1024)}, {"features": (16, 500, 1024)}, {"features": (40, 500, 1024)}
    )


def test_profiles_are_written_as_tensorrt_reads_them() -> None:
    options = tensorrt_options(Plan("tensorrt", "fp16", 0), profile(CONFORMER_FILE, SIZES, INFO))
    assert options["trt_profile_min_shapes"] == "features:1x1x1024,lengths:1"
    assert options["trt_profile_opt_shapes"] == "features:8x630x1024,lengths:8"
    assert options["trt_profile_max_shapes"] == "features:8x2000x1024,lengths:8"


@pytest.mark.parametrize("graph", GRAPH_FILES)
def test_a_fixed_bucket_has_one_shape_but_for_the_ends_of_short_utterances(graph: str) -> None:
    shapes = profile(graph, dataclasses.replace(SIZES, fixed=True), INFO)
    assert shapes.typical == shapes.most
    assert shapes.least == ({"features": (1, 1, 1024)} if graph == VOCODER_FILE else shapes.most)


def test_free_axes_are_fixed_where_every_run_has_one_shape() -> None:
    plan = Plan("cuda", "fp32", 0, tuning=Tuning(dataclasses.replace(SIZES, fixed=True)))
    assert free_dimensions(plan, WAVLM_FILE, INFO) == {"batch": 8, "samples": 2000 * 320 + 399}
    assert free_dimensions(plan, CONFORMER_FILE, INFO) == {"batch": 8, "frames": 2000}
    assert free_dimensions(plan, VOCODER_FILE, INFO) == {}
    for tuning in (Tuning(), Tuning(SIZES)):
        assert free_dimensions(Plan("cuda", "fp32", 0, tuning=tuning), WAVLM_FILE, INFO) == {}


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(400, 2000 * 320 + 399), min_size=1, max_size=8),
    window=st.sampled_from([60, 500, 1500, 4000]),
)
def test_no_batch_within_the_buckets_leaves_the_profiles(lengths: list[int], window: int) -> None:
    buckets = dataclasses.replace(SIZES, window_frames=window)

    def fits(graph: str, **shapes: tuple[int, ...]) -> bool:
        bounds = profile(graph, buckets, INFO)
        return all(
            low <= size <= high
            for name, shape in shapes.items()
            for low, size, high in zip(bounds.least[name], shape, bounds.most[name], strict=True)
        )

    batch, frames = (len(lengths),), [INFO.frames(length) for length in lengths]
    assert fits(WAVLM_FILE, waveform=(len(lengths), max(lengths)), lengths=batch)
    assert fits(CONFORMER_FILE, features=(len(lengths), max(frames), 1024), lengths=batch)
    cut = [
        part.stop - part.start
        for count in frames
        for part in exact_windows(count, max(window, 4 * INFO.vocoder_reach), INFO.vocoder_reach)
    ]
    for size in set(cut):
        assert fits(VOCODER_FILE, features=(cut.count(size), size, 1024))


# --- engines ---------------------------------------------------------------------------------------------------------


def test_an_engine_is_found_again_only_by_what_it_was_built_for(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, "NVIDIA H100 80GB HBM3", (9, 0), "10.13.3", "1.31.0")
    options = {"trt_fp16_enable": "True"}

    def folder(cache: EngineCache = cache, graph: str = VOCODER_FILE, digest: str = "a", **other: str) -> Path:
        return cache.engines(graph, [digest], {**options, **other})

    assert folder().parent == tmp_path / "tensorrt/nvidia-h100-80gb-hbm3-sm90/tensorrt-10.13.3-onnxruntime-1.31.0"
    others = [
        folder(dataclasses.replace(cache, gpu="NVIDIA H200")),
        folder(dataclasses.replace(cache, capability=(10, 0))),
        folder(dataclasses.replace(cache, tensorrt="10.14.1")),
        folder(dataclasses.replace(cache, onnxruntime="1.32.0")),
        folder(graph=WAVLM_FILE),
        folder(digest="b"),  # other weights
        folder(trt_fp16_enable="False"),
        folder(trt_profile_max_shapes="features:9x500x1024"),
    ]
    assert len({folder(), *others}) == 1 + len(others)
    assert folder() == folder()


# --- what may be asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "provider", "precision", "stream", "words"),
    [
        (0, "rocm", "auto", None, "expected one of auto, tensorrt, cuda, cpu"),
        (0, "auto", "int4", None, "expected one of auto, fp32, tf32, mixed, fp16, bf16, int16, int8"),
        (None, "cuda", "auto", None, "needs a GPU"),
        (None, "tensorrt", "auto", None, "needs a GPU"),
        (0, "cpu", "auto", None, "runs on the device cpu"),
        (None, "auto", "tf32", None, "tf32 needs a GPU"),
        (0, "cuda", "int16", None, "precision int16 is for the device cpu"),
        (None, "auto", "auto", 7, "CUDA stream"),
        (0, "auto", "auto", 0, "null stream"),
    ],
)
def test_contradictions_are_refused(
    index: int | None, provider: str, precision: str, stream: int | None, words: str
) -> None:
    with pytest.raises(DeviceError, match=words):
        check_choice(index, provider, precision, stream)


def test_auto_tries_the_fastest_first_and_a_name_stands_alone() -> None:
    assert candidates(0, "auto") == ("tensorrt", "cuda")
    assert candidates(0, "cuda") == ("cuda",)
    assert candidates(None, "auto") == candidates(None, "cpu") == ("cpu",)


def test_the_vocoder_for_cuda_has_channels_last_and_its_biases_fused() -> None:
    for graph, expected in ((WAVLM_FILE, "0"), (CONFORMER_FILE, "0"), (VOCODER_FILE, "1")):
        options = cuda_options(Plan("cuda", "mixed", 0, fused=True), graph)
        assert (options["prefer_nhwc"], options["fuse_conv_bias"]) == (expected, expected)
        # WavLM is in float32, and TF32 is not asked for; a float16 graph needs it for its convolutions.
        assert options["use_tf32"] == ("0" if graph == WAVLM_FILE else "1")
    off = Plan("cuda", "mixed", 0, tuning=Tuning(prefer_nhwc=False), fused=True)
    assert cuda_options(off, VOCODER_FILE)["fuse_conv_bias"] == "0"


def checked(status: str = "passed") -> ModelInfo:
    files = ("wavlm.cuda.onnx", "conformer.cuda.fp16.onnx", "vocoder.cuda.fp16.onnx")
    return dataclasses.replace(INFO, checks={f: GraphCheck("rms", "speech", 1, 1, 1, 1, status) for f in files})


def test_auto_is_mixed_on_cuda_if_the_export_found_its_graphs_within_their_bound() -> None:
    assert resolve_precision("cuda", "auto", H100, checked()) == "mixed"
    assert resolve_precision("auto", "auto", H100, checked()) == "mixed"
    assert resolve_precision("cuda", "auto", H100, checked("inexact")) == "fp32"
    assert resolve_precision("cuda", "auto", H100, INFO) == "fp32"
    assert resolve_precision("cuda", "fp32", H100, checked()) == "fp32"
    assert resolve_precision("tensorrt", "auto", H100, checked()) == "tf32"
    assert resolve_precision("auto", "auto", None, checked()) == "fp32"
    assert resolve_precision("auto", "bf16", None) == "int16"
    assert resolve_precision("tensorrt", "bf16", H100) == "bf16"


def test_a_precision_is_of_each_graph() -> None:
    assert [stage_precision(graph, "mixed") for graph in GRAPH_FILES] == ["fp32", "fp16", "fp16"]
    assert [stage_precision(graph, "int8") for graph in GRAPH_FILES] == ["int8", "int8", "fp32"]
    assert graph_file(CONFORMER_FILE, "mixed") == "conformer.fp16.onnx"
    assert cuda_graph_file(WAVLM_FILE, "mixed") == "wavlm.cuda.onnx"
    assert cuda_graph_file(VOCODER_FILE, "mixed") == "vocoder.cuda.fp16.onnx"


def test_auto_without_graphs_for_it_is_the_precision_of_the_cpu() -> None:
    assert resolve_precision("auto", "auto", H100) == resolve_precision("cuda", "auto", H100) == "fp32"
    assert resolve_precision("tensorrt", "auto", H100) == "tf32"  # it cannot do without
    assert resolve_precision("tensorrt", "auto", T4) == "fp32"  # which has no TF32
    assert resolve_precision("auto", "auto", None) == "fp32"
    assert resolve_precision("cuda", "fp16", H100) == "fp16"


@pytest.mark.parametrize(
    ("provider", "precision", "gpu", "words"),
    [
        ("cuda", "fp32", V100, None),
        ("cuda", "tf32", H100, None),
        ("cuda", "tf32", T4, "needs compute capability 8.0"),
        ("cuda", "fp16", T4, None),
        ("cuda", "bf16", H100, "only in graphs made so"),
        ("tensorrt", "bf16", H100, None),
        ("tensorrt", "bf16", T4, "needs compute capability 8.0"),
        ("tensorrt", "fp32", H100, "computes float32 in TF32"),
        ("tensorrt", "fp32", T4, None),
        ("tensorrt", "tf32", H100, None),
        ("cuda", "mixed", H100, None),
        ("tensorrt", "mixed", H100, "one precision for all graphs"),
    ],
)
def test_a_precision_is_refused_where_it_does_not_work(
    provider: str, precision: str, gpu: Gpu, words: str | None
) -> None:
    reason = refusal(provider, precision, gpu)
    assert reason is None if words is None else words in (reason or "")


# --- sessions on the CPU, with the real ONNX Runtime -----------------------------------------------------------------


def tiny_graph(path: Path, value: float = 1.0) -> Path:
    """y = conv(x), with one tap."""
    weight = numpy_helper.from_array(np.full((1, 1, 1), value, np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, "t"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "tiny", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory whose three graphs are one tap each."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in GRAPH_FILES:
        tiny_graph(folder / name)
    write_info(folder, INFO)
    return folder


def test_the_cpu_says_what_was_chosen(model: Path) -> None:
    opened = open_sessions(model, "cpu")
    assert (opened.provider, opened.precision, opened.buckets, opened.placement) == ("cpu", "fp32", None, {})
    assert re.fullmatch(r"CPU, fp32, no native operators \(.*\): the device is cpu", opened.chosen)
    # ONNX Runtime's own operators split sums by threads and choose kernels by the processor.
    assert opened.ran.items() >= {"operators": "onnxruntime", "threads": cores()}.items()
    assert opened.ran["processor"]
    assert open_sessions(model, "cpu", EngineOptions(threads=1)).ran == {**opened.ran, "threads": 1}
    assert opened.wavlm.get_providers() == [CPU]


def test_fp16_needs_graphs_exported_so_and_then_runs_on_the_cpu_too(model: Path) -> None:
    with pytest.raises(DeviceError, match=r"lacks wavlm\.fp16\.onnx, .*mkc-fast export --half"):
        open_sessions(model, "cpu", EngineOptions(precision="fp16"))
    for name in GRAPH_FILES:
        tiny_graph(model / name.replace(".onnx", ".fp16.onnx"), value=2)
    ones = {"x": np.ones((1, 1, 4), np.float32)}
    opened = open_sessions(model, "cpu", EngineOptions(precision="fp16"))
    assert opened.precision == "fp16"
    assert opened.vocoder.run(None, ones)[0].max() == 2
    assert open_sessions(model, "cpu").vocoder.run(None, ones)[0].max() == 1


def test_a_damaged_graph_is_the_artifacts_fault(model: Path) -> None:
    (model / CONFORMER_FILE).write_bytes(b"nonsense")
    signed(model)
    with pytest.raises(ArtifactError, match=r"conformer\.onnx: not a usable graph"):
        open_sessions(model, "cpu")


def test_a_heavy_operator_on_the_cpu_is_seen(tmp_path: Path) -> None:
    """The real ONNX Runtime says where it put each node; here it has nothing but the CPU."""
    options = onnxruntime.SessionOptions()
    for name, value in session_settings(Plan("cuda", "fp32", 0)).entries.items():
        options.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(str(tiny_graph(tmp_path / "g.onnx")), options, providers=[CPU])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime cannot tell")
    with pytest.raises(DeviceError, match=r"would run 1 Conv of g\.onnx on CPU"):
        sessions._checked_placement(tmp_path / "g.onnx", Plan("cuda", "fp32", 0), session)


# --- sessions on a GPU, with an ONNX Runtime that only says what it was given -----------------------------------------


class FakeOrt:
    """Stands in for the module: opens anything, on the providers it works with."""

    __version__ = "1.31.0"

    def set_default_logger_severity(self, severity: int) -> None:
        self.default_severity = severity

    def __init__(self) -> None:
        self.opened: list[SimpleNamespace] = []
        self.working = {TRT, CUDA, CPU}
        self.on_cpu = ["Shape", "Gather"]
        self.tells_placement = True
        self.fails: dict[str, Exception] = {}  # by provider

    class SessionOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_session_config_entry(self, name: str, value: str) -> None:
            self.entries[name] = value

        def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
            self.sizes = {**getattr(self, "sizes", {}), name: size}

    def InferenceSession(  # noqa: N802
        self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]], enable_fallback: int
    ) -> SimpleNamespace:
        first, given = providers[0]
        if folder := given.get("trt_engine_cache_path"):
            time.sleep(0.02)  # long enough for another to come in between
            (Path(folder) / "kernel.engine").touch()
        if first in self.fails:
            raise self.fails[first]
        got = [name for name, _ in providers if name in self.working]

        def part(name: str, operators: list[str]) -> SimpleNamespace:
            return SimpleNamespace(ep_name=name, get_nodes=lambda: [SimpleNamespace(op_type=op) for op in operators])

        session = SimpleNamespace(path=Path(path), options=options, providers=providers, fallback=enable_fallback)
        session.get_providers = lambda: got
        if self.tells_placement:
            session.get_provider_graph_assignment_info = lambda: [part(got[0], ["Conv", "Add"]), part(CPU, self.on_cpu)]
        self.opened.append(session)
        return session


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
    """A machine with an H100 and a T4, everything installed."""
    fake = FakeOrt()
    said = Driver(True, "580.65.06", (13, 0), (H100, T4))
    facts = GpuFacts(said, Runtime("1.31.0", "13.0", (TRT, CUDA, CPU)), (Library("libnvinfer.so.10", "10.13.3"),))
    monkeypatch.setattr(sessions, "ort", fake)
    monkeypatch.setattr(sessions, "driver", lambda: said)
    monkeypatch.setattr(devices, "driver", lambda: said)
    monkeypatch.setattr(sessions, "gather_gpu_facts", lambda _: facts)
    return fake


def test_auto_on_a_gpu_is_cuda_in_fp32_and_says_why(gpu: FakeOrt, model: Path) -> None:
    opened = open_sessions(model, "cuda:0", stream=77)
    assert (opened.provider, opened.precision, opened.buckets) == ("cuda", "fp32", None)
    assert opened.chosen.startswith("CUDA, fp32, on cuda:0 (NVIDIA H100 80GB HBM3); TensorRT not used: it computes")
    assert opened.ran.items() >= {"provider": "cuda", "precision": "fp32", "gpu": "NVIDIA H100 80GB HBM3"}.items()
    assert opened.placement == {name: {CUDA: 2, CPU: 2} for name in GRAPH_FILES}
    for session, name in zip(gpu.opened, GRAPH_FILES, strict=True):
        assert session.path == model / name
        assert session.providers == provider_list(Plan("cuda", "fp32", 0, stream=77), name, INFO)
        assert session.options.entries["session.record_ep_graph_assignment_info"] == "1"
        assert session.options.enable_mem_pattern is False
        assert session.fallback == 0  # or ONNX Runtime would go on with the CPU, after a print


def test_auto_takes_tensorrt_where_sizes_and_precision_allow_it(gpu: FakeOrt, model: Path, tmp_path: Path) -> None:
    opened = open_sessions(
        model, "cuda:0", EngineOptions(precision="tf32", cache=tmp_path / "cache", tuning=Tuning(SIZES))
    )
    assert (opened.provider, opened.precision, opened.buckets) == ("tensorrt", "tf32", SIZES)
    without = open_sessions(model, "cuda:0", EngineOptions(precision="tf32", cache=tmp_path / "cache"))
    assert (without.provider, without.buckets) == ("tensorrt", Buckets())  # its engines take no others


def test_auto_goes_on_to_cuda_when_tensorrt_fails_and_says_so(gpu: FakeOrt, model: Path, tmp_path: Path) -> None:
    gpu.fails = {TRT: RuntimeError("no kernel\nfor this")}
    opened = open_sessions(
        model, "cuda:0", EngineOptions(precision="tf32", cache=tmp_path / "cache", tuning=Tuning(SIZES))
    )
    assert opened.provider == "cuda"
    assert "TensorRT not used: wavlm.onnx does not open: no kernel for this" in opened.chosen


@pytest.mark.parametrize("name", ["tensorrt", "cuda"])
def test_a_provider_asked_for_by_name_is_never_replaced(name: str, gpu: FakeOrt, model: Path, tmp_path: Path) -> None:
    gpu.working = {CPU}  # ONNX Runtime itself would go on, with a line on the error stream
    with pytest.raises(DeviceError, match=rf"device cuda:0: provider {name}: .* would run wavlm\.onnx on the CPU"):
        open_sessions(model, "cuda:0", EngineOptions(provider=name, cache=tmp_path))
    gpu.working, gpu.fails = {TRT, CUDA, CPU}, {ORT_NAMES[name]: RuntimeError("CUDA failure 2: out of memory")}
    with pytest.raises(DeviceError, match="out of memory"):
        open_sessions(model, "cuda:0", EngineOptions(provider=name, cache=tmp_path))


def test_nothing_on_a_gpu_ends_on_the_cpu(gpu: FakeOrt, model: Path) -> None:
    gpu.working = {CPU}
    with pytest.raises(DeviceError, match=r"TensorRT not used: .*; CUDA not used: .* would run"):
        open_sessions(model, "cuda:0")


def test_heavy_operators_elsewhere_are_refused_and_shapes_are_not(gpu: FakeOrt, model: Path) -> None:
    assert open_sessions(model, "cuda:0", EngineOptions(provider="cuda")).placement[WAVLM_FILE][CPU] == 2
    gpu.on_cpu = ["Shape", "Gelu", "MatMul", "MatMul"]
    with pytest.raises(DeviceError, match=r"would run 1 Gelu, 2 MatMul of wavlm\.onnx on CPU"):
        open_sessions(model, "cuda:0", EngineOptions(provider="cuda"))


def test_an_onnx_runtime_that_cannot_tell_is_named(gpu: FakeOrt, model: Path) -> None:
    gpu.tells_placement = False
    opened = open_sessions(model, "cuda:0")
    assert "cannot tell which nodes run where" in opened.chosen
    assert opened.placement == {}


def test_a_damaged_graph_is_not_blamed_on_the_gpu(gpu: FakeOrt, model: Path) -> None:
    gpu.fails = {CUDA: type("InvalidProtobuf", (Exception,), {})("parsing failed")}
    with pytest.raises(ArtifactError, match=r"wavlm\.onnx: not a usable graph"):
        open_sessions(model, "cuda:0")


def test_a_missing_library_is_named_with_the_command_that_mends_it(
    gpu: FakeOrt, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Driver(True, "580.65.06", (13, 0), (H100,))
    missing = Library("libcudnn.so.9", problem="cannot open shared object file")
    facts = GpuFacts(said, Runtime("1.31.0", "13.0", (TRT, CUDA, CPU)), (missing,))
    monkeypatch.setattr(sessions, "gather_gpu_facts", lambda _: facts)
    with pytest.raises(DeviceError, match=r"libcudnn\.so\.9 cannot be loaded; pip install 'mkc-fast\[cuda13\]'"):
        open_sessions(model, "cuda:0", EngineOptions(provider="cuda"))
    assert not gpu.opened


def test_fp16_on_a_gpu_opens_the_half_graphs(gpu: FakeOrt, model: Path) -> None:
    with pytest.raises(DeviceError, match="mkc-fast export --half"):
        open_sessions(model, "cuda:1", EngineOptions(precision="fp16"))
    for name in GRAPH_FILES:
        tiny_graph(model / name.replace(".onnx", ".fp16.onnx"))
    opened = open_sessions(model, "cuda:1", EngineOptions(provider="cuda", precision="fp16"))
    assert (opened.provider, opened.precision) == ("cuda", "fp16")
    assert [session.path.name for session in gpu.opened] == [n.replace(".onnx", ".fp16.onnx") for n in GRAPH_FILES]
    assert gpu.opened[0].providers[0][1]["device_id"] == "1"


def test_a_precision_that_the_gpu_lacks_is_refused(gpu: FakeOrt, model: Path) -> None:
    with pytest.raises(DeviceError, match=r"tf32 needs compute capability 8\.0; Tesla T4 has 7\.5"):
        open_sessions(model, "cuda:1", EngineOptions(provider="cuda", precision="tf32"))


def test_a_cuda_graph_needs_fixed_sizes(gpu: FakeOrt, model: Path) -> None:
    with pytest.raises(DeviceError, match="fixed buckets"):
        open_sessions(model, "cuda:0", EngineOptions(tuning=Tuning(SIZES, cuda_graph=True)))
    fixed = dataclasses.replace(SIZES, fixed=True)
    opened = open_sessions(model, "cuda:0", EngineOptions(tuning=Tuning(fixed, cuda_graph=True)))
    assert (opened.buckets, opened.cuda_graph) == (fixed, True)
    assert gpu.opened[0].options.sizes == {"batch": 8, "samples": 2000 * 320 + 399}


# --- engines are built once, and whole -------------------------------------------------------------------------------


def open_tensorrt(model: Path, cache: Path) -> sessions.Sessions:
    return open_sessions(model, "cuda:0", EngineOptions(provider="tensorrt", cache=cache, tuning=Tuning(SIZES)))


def engine_folders(cache: Path) -> list[Path]:
    return sorted({path.parent for path in cache.rglob("kernel.engine")})


def test_engines_are_built_once_under_a_temporary_name(gpu: FakeOrt, model: Path, tmp_path: Path) -> None:
    open_tensorrt(model, tmp_path / "cache")
    built = engine_folders(tmp_path / "cache")
    assert [folder.name.partition("-")[0] for folder in built] == ["conformer", "vocoder", "wavlm"]
    assert not set(map(str, built)) & {s.providers[0][1]["trt_engine_cache_path"] for s in gpu.opened}
    assert all("trt_timing_cache_path" in s.providers[0][1] for s in gpu.opened)
    gpu.opened.clear()
    open_tensorrt(model, tmp_path / "cache")
    assert {s.providers[0][1]["trt_engine_cache_path"] for s in gpu.opened} == set(map(str, built))
    assert not any("trt_timing_cache_path" in s.providers[0][1] for s in gpu.opened)  # nothing is left to write


def test_a_build_that_fails_or_is_killed_leaves_no_engine(gpu: FakeOrt, model: Path, tmp_path: Path) -> None:
    gpu.fails = {TRT: RuntimeError("out of memory")}
    with pytest.raises(DeviceError):
        open_tensorrt(model, tmp_path / "cache")
    assert engine_folders(tmp_path / "cache") == []
    gpu.fails = {}
    open_tensorrt(model, tmp_path / "cache")
    whole = engine_folders(tmp_path / "cache")
    killed = whole[0].with_name(f".{whole[0].name}.x.tmp")  # what a killed builder of this graph would leave
    whole[0].rename(killed)
    open_tensorrt(model, tmp_path / "cache")
    assert engine_folders(tmp_path / "cache") == whole


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("put", [os.mkfifo, Path.touch, Path.mkdir], ids=["a pipe", "a file", "a folder"])
def test_engines_that_are_no_files_are_built_again(
    gpu: FakeOrt, model: Path, tmp_path: Path, put: Callable[[Path], None]
) -> None:
    """TensorRT would wait for a pipe's other end."""
    open_tensorrt(model, tmp_path / "cache")
    first = engine_folders(tmp_path / "cache")
    (folder,) = [folder for folder in first if folder.name.startswith("wavlm")]
    for place in (folder, folder / "kernel.engine", folder.parent / "timings"):
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()
        put(place)
        if place.name == "timings":  # read when something is built
            shutil.rmtree(folder)
        open_tensorrt(model, tmp_path / "cache")
        assert engine_folders(tmp_path / "cache") == first
        assert all(file.is_file() for each in first for file in each.iterdir())
    assert (folder.parent / "timings").is_dir()


def test_other_weights_get_other_engines(gpu: FakeOrt, model: Path, tmp_path: Path) -> None:
    open_tensorrt(model, tmp_path / "cache")
    tiny_graph(model / VOCODER_FILE, value=3)
    open_tensorrt(model, tmp_path / "cache")
    names = [folder.name.partition("-")[0] for folder in engine_folders(tmp_path / "cache")]
    assert names == ["conformer", "vocoder", "vocoder", "wavlm"]


def test_workers_that_start_together_build_one_engine(gpu: FakeOrt, model: Path, tmp_path: Path) -> None:
    workers = [threading.Thread(target=open_tensorrt, args=(model, tmp_path / "cache")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    built = [s for s in gpu.opened if "trt_timing_cache_path" in s.providers[0][1]]
    assert len(gpu.opened) == 4 * len(GRAPH_FILES)
    assert len(built) == len(GRAPH_FILES)


def test_engines_are_shared_by_devices_and_streams_of_one_kind(
    gpu: FakeOrt, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = dataclasses.replace(H100, index=1)
    said = Driver(True, "580.65.06", (13, 0), (H100, twin))
    facts = GpuFacts(said, Runtime("1.31.0", "13.0", (TRT, CUDA, CPU)))
    for module in (sessions, devices):
        monkeypatch.setattr(module, "driver", lambda: said)
    monkeypatch.setattr(sessions, "gather_gpu_facts", lambda _: facts)
    for device, stream in itertools.product(("cuda:0", "cuda:1"), (None, 99)):
        open_sessions(
            model,
            device,
            EngineOptions(provider="tensorrt", cache=tmp_path / "cache", tuning=Tuning(SIZES)),
            stream=stream,
        )
    assert len(engine_folders(tmp_path / "cache")) == len(GRAPH_FILES)


# --- engines built beforehand ----------------------------------------------------------------------------------------


def test_engines_are_built_beforehand_and_then_found(gpu: FakeOrt, model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    chosen = warm.build_engines(model, "cuda:0", EngineOptions(cache=tmp_path / "cache"), progress=lines.append)
    assert chosen.startswith("TensorRT, tf32, on cuda:0")
    assert lines == [f"{name}: building its engine" for name in GRAPH_FILES]
    assert len(engine_folders(tmp_path / "cache")) == len(GRAPH_FILES)
    del lines[:]
    warm.build_engines(model, "cuda:0", EngineOptions(cache=tmp_path / "cache"), progress=lines.append)
    assert lines == [f"{name}: opening" for name in GRAPH_FILES]


def test_where_no_engine_can_be_built_one_line_says_why(
    gpu: FakeOrt, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Driver(True, "580.65.06", (13, 0), (H100,))
    missing = Library("libnvinfer.so.10", problem="cannot open shared object file")
    facts = GpuFacts(said, Runtime("1.31.0", "13.0", (TRT, CUDA, CPU)), (missing,))
    monkeypatch.setattr(sessions, "gather_gpu_facts", lambda _: facts)
    with pytest.raises(DeviceError, match=r"no engines for cuda:0: libnvinfer\.so\.10 .*pip install 'tensorrt-cu13"):
        warm.build_engines(model, "cuda:0")
    with pytest.raises(DeviceError, match="needs a GPU"):
        warm.build_engines(model, "cpu")
    assert not gpu.opened
