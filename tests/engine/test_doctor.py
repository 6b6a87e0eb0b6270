"""The diagnosis: what a machine can run a model with, why not with more, and the command that repairs it."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mkc_fast import DeviceError
from mkc_fast.cli import main
from mkc_fast.engine import doctor
from mkc_fast.engine.artifacts import CENTROIDS_FILE, HALF_NORMS_FILE, BankInfo, ModelInfo, graph_metadata, write_info
from mkc_fast.engine.devices import Driver, Gpu, read_driver
from mkc_fast.engine.doctor import Finding, Probes, Report, Verdict, examine
from mkc_fast.engine.machine import Host
from mkc_fast.engine.sessions.cpu import operators_used
from mkc_fast.engine.sessions.gpu_facts import (
    Library,
    Runtime,
    gather_gpu_facts,
    library_version,
    load_library,
    needed_libraries,
)
from mkc_fast.engine.sessions.probe import PROBE_GRAPH, PROBE_RESULT, try_provider
from mkc_fast.engine.sessions.providers import ORT_NAMES
from mkc_fast.engine.sessions.support import is_broken_release, obstacle
from mkc_fast.names import CONFORMER_FILE, GRAPH_FILES, VOCODER_FILE, WAVLM_FILE
from mkc_fast.onnx_runtime import ort
from tests.conftest import ROOT, signed

TRT, CUDA, CPU = ORT_NAMES["tensorrt"], ORT_NAMES["cuda"], ORT_NAMES["cpu"]
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30)
V100 = Gpu(0, "Tesla V100-SXM2-16GB", (7, 0), 16 << 30)
NO_DRIVER = Driver()
NEW_DRIVER = Driver(True, "580.65.06", (13, 0), (H100, dataclasses.replace(H100, index=1)))
OLD_DRIVER = Driver(True, "535.183.01", (12, 2), (H100,))
FULL_BUILD = Runtime("1.31.0", "13.0", (TRT, CUDA, CPU))
CPU_BUILD = Runtime("1.31.0", None, (CPU,))
INSTALLED = {
    "onnxruntime": (("onnxruntime-gpu", "1.31.0"),),
    "cupy": (("cupy-cuda13x", "14.2.0"),),
    "torch": (("torch", "2.13.0"),),
}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libraries have other names there")


def machine(
    driver: Driver = NEW_DRIVER,
    runtime: Runtime = FULL_BUILD,
    missing: str = "^$",
    installed: dict[str, tuple[tuple[str, str], ...]] | None = None,
    broken_module: str = "",
    compute: Callable[[str, int | None], str | None] = lambda _provider, _index: None,
) -> Probes:
    """A machine that is not here; libraries whose name matches ``missing`` are not on it."""

    def library(name: str) -> Library:
        return Library(name, problem="no such file") if re.search(missing, name) else Library(name, "9.9")

    def module(name: str) -> str:
        if name == broken_module:
            raise OSError("sndfile library not found")
        return "1.0"

    host = Host("Linux", "3.12.1", 16, 128 << 30, 100 << 30)
    packages = {**INSTALLED, **(installed or {})}
    return Probes(lambda: driver, lambda: runtime, library, lambda: packages, module, lambda: host, compute)


def used(report: Report) -> str | None:
    return next((verdict.provider for verdict in report.verdicts if verdict.used), None)


def verdict(report: Report, provider: str) -> Verdict:
    return next(verdict for verdict in report.verdicts if verdict.provider == provider)


def faults(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.status == "fault"]


def finding(report: Report, topic: str) -> Finding:
    return next(finding for finding in report.findings if finding.topic == topic)


# --- the driver ------------------------------------------------------------------------------------------------------


def driver_of(names: list[str], init: int = 0, management: bool = True) -> Callable[[str], Any]:
    """A loader of libraries like NVIDIA's, on a machine with these GPUs."""

    def put(reference: Any, value: int) -> int:
        reference._obj.value = value
        return 0

    def name_of(buffer: Any, size: int, device: ctypes.c_int) -> int:
        buffer.value = names[device.value].encode()[: size - 1]
        return 0

    def version_of(buffer: Any, _: int) -> int:
        buffer.value = b"580.65.06"
        return 0

    cuda = SimpleNamespace(
        cuInit=lambda _: init,
        cuDriverGetVersion=lambda reference: put(reference, 13010),
        cuDeviceGetCount=lambda reference: put(reference, len(names)),
        cuDeviceGet=put,
        cuDeviceGetName=name_of,
        cuDeviceTotalMem_v2=lambda reference, device: put(reference, (device.value + 1) << 30),
        cuDeviceGetAttribute=lambda reference, attribute, _: put(reference, {75: 9, 76: 0}[attribute]),
    )
    nvml = SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlSystemGetDriverVersion=version_of, nvmlShutdown=lambda: 0)
    there = {"libcuda.so.1": cuda, **({"libnvidia-ml.so.1": nvml} if management else {})}

    def load(name: str) -> Any:
        if name not in there:
            raise OSError(f"{name}: cannot open shared object file")
        return there[name]

    return load


def test_the_driver_is_asked_for_its_gpus() -> None:
    said = read_driver(driver_of(["NVIDIA H100", "NVIDIA H200"]))
    assert (said.found, said.version, said.cuda, said.problem) == (True, "580.65.06", (13, 1), None)
    assert said.gpus == (Gpu(0, "NVIDIA H100", (9, 0), 1 << 30), Gpu(1, "NVIDIA H200", (9, 0), 2 << 30))


def test_a_driver_without_its_management_library_has_no_version() -> None:
    assert read_driver(driver_of(["NVIDIA H100"], management=False)).version is None


@pytest.mark.parametrize(
    ("names", "init", "words"),
    [
        ([], 0, "CUDA_VISIBLE_DEVICES"),
        (["x"], 100, "CUDA_VISIBLE_DEVICES"),
        (["x"], 803, "restart the machine"),
        (["x"], 999, "CUDA error 999"),
    ],
)
def test_a_driver_that_shows_no_gpu_says_why(names: list[str], init: int, words: str) -> None:
    said = read_driver(driver_of(names, init))
    assert said.found
    assert said.gpus == ()
    assert words in (said.problem or "")


def test_no_driver_is_found_where_there_is_none() -> None:
    def load(name: str) -> Any:
        raise OSError(name)

    assert read_driver(load) == NO_DRIVER


# --- machines that work ----------------------------------------------------------------------------------------------


def test_a_missing_gpu_is_no_fault() -> None:
    report = examine(probes=machine(NO_DRIVER, installed={"cupy": ()}, missing="lib"))
    assert (report.device, report.ok, used(report)) == ("cpu", True, "cpu")
    assert finding(report, "GPU").status == "note"
    assert "no NVIDIA driver" in verdict(report, "cuda").reason
    assert not any(item.topic == "cupy" for item in report.findings)  # nobody would use it


def test_a_gpu_machine_uses_cuda_and_says_when_it_would_use_tensorrt() -> None:
    report = examine(probes=machine())
    assert (report.device, report.ok, used(report)) == ("cuda:0", True, "cuda")
    assert "ready, but only taken when asked for: it computes float32 in TF32" in verdict(report, "tensorrt").reason
    assert verdict(report, "cpu").reason == "it would be taken with --device cpu"
    shown = [item.found for item in report.findings]
    assert "NVIDIA 580.65.06, runs CUDA up to 13.0" in shown
    assert "NVIDIA H100 80GB HBM3, 80.0 GiB, compute capability 9.0" in shown
    assert "onnxruntime-gpu 1.31.0, built for CUDA 13.0, with TensorRT, CUDA, CPU" in shown
    assert "16 core(s), 128.0 GiB of memory, 100.0 GiB free" in shown


def test_the_device_can_be_chosen() -> None:
    asked: list[tuple[str, int | None]] = []

    def compute(provider: str, index: int | None) -> None:
        asked.append((provider, index))

    assert used(examine("cuda:1", probes=machine(compute=compute))) == "cuda"
    assert used(examine("cpu", probes=machine(compute=compute))) == "cpu"
    assert asked == [("cuda", 1), ("cpu", None)]
    with pytest.raises(DeviceError, match="expected cpu or cuda"):
        examine("gpu9", probes=machine())


# --- machines that do not --------------------------------------------------------------------------------------------


def test_a_gpu_asked_for_and_missing_is_a_failure() -> None:
    report = examine("cuda:0", probes=machine(NO_DRIVER))
    assert (report.ok, used(report)) == (False, None)
    report = examine("cuda:7", probes=machine())
    assert (report.ok, used(report)) == (False, None)
    assert "cuda:7 is not here; the driver shows 2 GPU(s)" in verdict(report, "cuda").reason


def test_an_onnx_runtime_without_cuda_names_the_package_to_install() -> None:
    report = examine(probes=machine(runtime=CPU_BUILD, installed={"onnxruntime": (("onnxruntime", "1.31.0"),)}))
    assert (report.device, report.ok) == ("cuda:0", False)
    assert "built without CUDA" in verdict(report, "cuda").reason
    assert verdict(report, "cuda").repair == "pip uninstall -y onnxruntime && pip install 'mkc-fast[cuda13]'"
    assert examine("cpu", probes=machine(runtime=CPU_BUILD)).ok


@linux
def test_a_missing_cudnn_is_named() -> None:
    report = examine(probes=machine(missing="cudnn"))
    assert not report.ok
    assert verdict(report, "cuda").reason == "libcudnn.so.9 cannot be loaded"
    assert verdict(report, "cuda").repair == "pip install 'mkc-fast[cuda13]'"
    assert finding(report, "CUDA libraries").status == "note"


@linux
def test_a_missing_tensorrt_keeps_nothing_from_cuda() -> None:
    report = examine(probes=machine(missing="nv(infer|onnx)"))
    assert (report.ok, used(report)) == (True, "cuda")
    assert "libnvinfer.so.10" in verdict(report, "tensorrt").reason
    assert verdict(report, "tensorrt").repair == "pip install 'tensorrt-cu13>=10,<11'"
    assert verdict(report, "cuda").repair is None


@pytest.mark.parametrize(
    ("driver", "words"),
    [(OLD_DRIVER, "the driver runs CUDA up to 12.2"), (dataclasses.replace(NEW_DRIVER, gpus=(V100,)), "begins at 7.5")],
)
def test_what_is_too_old_for_cuda_13_gets_the_extra_for_12(driver: Driver, words: str) -> None:
    report = examine(probes=machine(driver))
    assert not report.ok
    assert words in verdict(report, "cuda").reason
    assert (verdict(report, "cuda").repair or "").startswith("pip install 'mkc-fast[cuda12]'")


@pytest.mark.parametrize("version", ["1.24.1", "1.25.0", "1.25.1", "1.26.0", "1.19.2"])
def test_a_broken_release_is_named_on_any_device(version: str) -> None:
    runtime = dataclasses.replace(FULL_BUILD, version=version)
    for device in ("cpu", "cuda:0"):
        report = examine(device, probes=machine(runtime=runtime))
        assert not report.ok
        assert f"onnxruntime {version} is a release known to be broken" in [item.found for item in faults(report)]


def test_broken_releases_are_those_that_pyproject_excludes() -> None:
    packaging = pytest.importorskip("packaging.specifiers")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = packaging.SpecifierSet(re.findall(r'^cpu = \["onnxruntime(.*)"', text, re.MULTILINE)[0])
    for version in ("1.19.2", "1.20.0", "1.23.2", "1.24.1", "1.24.4", "1.25.0", "1.25.1", "1.26.0", "1.27.0", "1.31.0"):
        assert is_broken_release(version) != wanted.contains(version), version


def test_an_onnx_runtime_that_does_not_import_is_a_fault() -> None:
    report = examine("cpu", probes=machine(runtime=Runtime(problem="ImportError: libpython.so")))
    assert (report.ok, used(report)) == (False, None)
    assert "does not import (ImportError: libpython.so)" in finding(report, "onnxruntime").found


@pytest.mark.parametrize(("device", "extra"), [("cpu", "cpu"), ("cuda:0", "cuda13")])
def test_without_an_onnx_runtime_the_extra_that_brings_it_is_named(device: str, extra: str) -> None:
    driver = NEW_DRIVER if device == "cuda:0" else Driver()
    report = examine(device, probes=machine(driver, Runtime(problem="it is not installed", installed=False)))
    fault = finding(report, "onnxruntime")
    assert not report.ok
    assert fault.found == "ONNX Runtime is not installed"
    assert fault.repair == f"pip install 'mkc-fast[{extra}]'"


def test_two_onnx_runtimes_together_are_a_fault() -> None:
    both = {"onnxruntime": (("onnxruntime", "1.31.0"), ("onnxruntime-gpu", "1.31.0"))}
    report = examine(probes=machine(installed=both))
    assert not report.ok
    (fault,) = faults(report)
    assert "onnxruntime 1.31.0 and onnxruntime-gpu 1.31.0 are installed together" in fault.found
    assert fault.repair == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'mkc-fast[cuda13]'"


def test_a_missing_sound_library_is_a_fault() -> None:
    report = examine("cpu", probes=machine(broken_module="soundfile"))
    assert not report.ok
    assert "sndfile library not found" in faults(report)[0].found


def test_a_provider_that_loads_and_does_not_compute_is_a_fault() -> None:
    report = examine(probes=machine(compute=lambda _provider, _index: "CUDNN_FE failure 11"))
    assert not report.ok
    assert "CUDA fails: CUDNN_FE failure 11" in faults(report)[0].found


@pytest.mark.parametrize(
    ("packages", "status", "words", "repair"),
    [
        ((), "fault", "runs on a GPU need it", "pip install 'mkc-fast[cuda13]'"),
        (
            (("cupy-cuda12x", "14.2.0"),),
            "note",
            "onnxruntime is built for CUDA 13",
            "pip uninstall -y cupy-cuda12x && pip install 'mkc-fast[cuda13]'",
        ),
        (
            (("cupy-cuda12x", "14.2.0"), ("cupy-cuda13x", "14.2.0")),
            "fault",
            "overwrote each other",
            "pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install 'mkc-fast[cuda13]'",
        ),
    ],
)
def test_a_cupy_that_does_not_fit_is_noted(
    packages: tuple[tuple[str, str], ...], status: str, words: str, repair: str
) -> None:
    report = examine(probes=machine(installed={"cupy": packages}))
    noted = finding(report, "cupy")
    assert report.ok == (status != "fault")
    assert noted.status == status
    assert words in noted.found
    assert noted.repair == repair


def test_a_cupy_beyond_the_driver_is_noted() -> None:
    old_build = Runtime("1.24.4", "12.8", (TRT, CUDA, CPU))
    report = examine(probes=machine(OLD_DRIVER, old_build))
    assert not report.ok
    assert "but the driver runs CUDA up to 12.2" in finding(report, "cupy").found
    assert finding(report, "cupy").repair == "pip uninstall -y cupy-cuda13x && pip install 'mkc-fast[cuda12]'"


# --- the probes themselves -------------------------------------------------------------------------------------------


@linux
def test_libraries_are_those_of_the_build() -> None:
    thirteen = set(needed_libraries("cuda", FULL_BUILD))
    assert {"libcudart.so.13", "libcublasLt.so.13", "libcudnn.so.9"} < thirteen
    assert not any("cufft" in name for name in thirteen)  # loaded when first used, since 1.28
    twelve = set(needed_libraries("cuda", Runtime("1.24.4", "12.8", (CUDA, CPU))))
    assert {"libcudart.so.12", "libcufft.so.11"} < twelve
    assert "libnvinfer.so.10" in needed_libraries("tensorrt", FULL_BUILD)
    assert needed_libraries("cpu", FULL_BUILD) == needed_libraries("cuda", CPU_BUILD) == ()


@linux
def test_only_what_a_provider_needs_is_loaded_and_tensorrt_last() -> None:
    loaded: list[str] = []

    def library(name: str) -> Library:
        loaded.append(name)
        return Library(name)

    probes = dataclasses.replace(machine(), library=library)
    gather_gpu_facts(("cuda",), probes)
    assert not any("nvinfer" in name for name in loaded)
    assert loaded.index("libcublasLt.so.13") < loaded.index("libcublas.so.13")  # which is linked against it
    loaded.clear()
    gather_gpu_facts(("tensorrt",), probes)
    assert "nvinfer" in loaded[-3]
    assert len(set(loaded)) == len(loaded)


def test_a_library_that_is_not_there_has_a_problem() -> None:
    assert "libno-such-thing.so.1" in (load_library("libno-such-thing.so.1").problem or "")


@pytest.mark.parametrize(
    ("name", "function", "version"),
    [
        ("libcudnn.so.9", SimpleNamespace(cudnnGetVersion=type("F", (), {"__call__": lambda _: 91002})()), "9.10.2"),
        ("libnvinfer.so.10", SimpleNamespace(getInferLibVersion=lambda: 101303), "10.13.3"),
        ("libcurand.so.10", SimpleNamespace(), None),
        ("libcudnn.so.9", SimpleNamespace(), None),
    ],
)
def test_a_library_tells_its_version(name: str, function: Any, version: str | None) -> None:
    assert library_version(name, function) == version


def probe_graph() -> onnx.ModelProto:
    """A convolution and a matrix product on ones, in a format that every ONNX Runtime from 1.20 on reads."""
    ones = [
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in (("w", (1, 1, 3)), ("m", (6, 2)))
    ]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("MatMul", ["c", "m"], ["y"])]
    values = (tensor("x", [1, 1, 8]), tensor("y", [1, 1, 2]))
    graph = helper.make_graph(nodes, "probe", [values[0]], [values[1]], ones)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_the_packaged_probe_is_what_onnx_makes() -> None:
    graph = onnx.load(PROBE_GRAPH)
    onnx.checker.check_model(graph)
    assert graph == probe_graph()


def test_the_trial_computes_on_the_cpu() -> None:
    (result,) = ort.InferenceSession(str(PROBE_GRAPH)).run(["y"], {"x": np.ones((1, 1, 8), np.float32)})
    assert (result == PROBE_RESULT).all()
    assert try_provider("cpu", None) is None


def test_a_trial_on_a_device_that_is_not_here_fails_and_does_not_fall_back() -> None:
    ort.set_default_logger_severity(4)  # that it fails is the point
    try:
        assert try_provider("cuda", 97)
    finally:
        ort.set_default_logger_severity(2)


def test_this_machine_can_be_examined() -> None:
    report = examine("cpu")
    assert report.ok
    assert {item.topic for item in report.findings} >= {"machine", "CPU", "onnxruntime", "soundfile", "soxr", "trial"}
    facts = gather_gpu_facts(())
    assert facts.runtime.version
    assert obstacle(facts, "cpu", None) is None


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_ends_with_0_where_inference_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "inference works on cpu" in shown
    for word in ("onnxruntime", "soundfile", "tensorrt", "cuda", "cores"):
        assert word in shown.replace("core(s)", "cores")


def test_the_command_ends_with_1_where_it_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cuda:97"]) == 1
    assert "inference does not work on cuda:97" in capsys.readouterr().out


def test_the_command_refuses_what_is_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "gpu"]) == 2
    assert "expected cpu or cuda:<number>" in capsys.readouterr().err


def test_the_commands_that_mend_are_shown_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = examine(probes=machine(runtime=CPU_BUILD))
    monkeypatch.setattr(doctor, "examine", lambda *_: report)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "pip uninstall" in line]
    assert line == "  tensorrt, cuda: pip uninstall -y onnxruntime && pip install 'mkc-fast[cuda13]'"


def test_the_report_is_json_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["device"], report["ok"]) == ("cpu", True)
    assert [verdict["provider"] for verdict in report["verdicts"]] == ["tensorrt", "cuda", "cpu"]
    assert {finding["status"] for finding in report["findings"]} <= {"ok", "note", "fault"}


DIM, HOP, LEAST = 4, 320, 400


def write_model(folder: Path) -> Path:
    """The smallest graphs that have the inputs and outputs of a model."""
    folder.mkdir()
    lengths = tensor("lengths", ["batch"], TensorProto.INT64)
    features, restored = (tensor(name, ["batch", "frames", DIM]) for name in ("features", "restored"))
    weights = [
        numpy_helper.from_array(np.ones((DIM, 1, LEAST), np.float32) / LEAST, "w"),
        numpy_helper.from_array(np.ones((DIM, HOP), np.float32), "m"),
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.array([0, -1]), "flat"),
    ]
    encode = [
        helper.make_node("Unsqueeze", ["waveform", "one"], ["u"]),
        helper.make_node("Conv", ["u", "w"], ["c"], strides=[HOP]),
        helper.make_node("Transpose", ["c"], ["features"], perm=[0, 2, 1]),
    ]
    vocode = [
        helper.make_node("MatMul", ["features", "m"], ["v"]),
        helper.make_node("Reshape", ["v", "flat"], ["waveform"]),
    ]
    info = ModelInfo(16000, HOP, LEAST, DIM, 1, "fp32", 1, 0, {})
    for name, nodes, inputs, output in (
        (WAVLM_FILE, encode, [tensor("waveform", ["batch", "samples"]), lengths], features),
        (CONFORMER_FILE, [helper.make_node("Identity", ["features"], ["restored"])], [features, lengths], restored),
        (VOCODER_FILE, vocode, [features], tensor("waveform", ["batch", "samples"])),
    ):
        used = [weight for weight in weights if any(weight.name in node.input for node in nodes)]
        graph = helper.make_graph(nodes, name, inputs, [output], used)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        helper.set_model_props(model, graph_metadata(info))
        onnx.save(model, folder / name)
    write_info(folder, info)
    return folder


def tensor(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def write_bank(folder: Path) -> Path:
    """Two models of three clusters."""
    folder.mkdir()
    centroids = np.random.default_rng(0).standard_normal((2, 3, DIM), np.float32)
    np.save(folder / CENTROIDS_FILE, centroids)
    np.save(folder / HALF_NORMS_FILE, (centroids.astype(np.float64) ** 2).sum(axis=2) / 2)
    write_info(folder, BankInfo(["a", "b"], [3, 3], ["", ""], [[], []], [[], []], DIM))
    return folder


def test_artifacts_are_read_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, bank = write_model(tmp_path / "model"), write_bank(tmp_path / "bank")
    assert main(["doctor", "--device", "cpu", "--model", str(model), "--bank", str(bank)]) == 0
    assert "0.5 s of noise anonymized" in capsys.readouterr().out
    report = examine("cpu", model, probes=machine())
    assert finding(report, "graphs").found == f"CPU, fp32, {operators_used(model, 'fp32')}: the device is cpu"
    for name in GRAPH_FILES:
        (model / name.replace(".onnx", ".fp16.onnx")).write_bytes((model / name).read_bytes())
    signed(model)
    assert "D = 4, layer 1, fp32 and fp16" in finding(examine("cpu", model, bank, machine()), "model").found


@pytest.mark.parametrize(("model", "bank"), [("missing", None), (None, "missing"), ("empty", None)])
def test_artifacts_that_are_not_there_are_faults(model: str | None, bank: str | None, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    report = examine("cpu", model and tmp_path / model, bank and tmp_path / bank, machine())  # type: ignore[arg-type]
    assert not report.ok
    (fault,) = faults(report)
    assert str(tmp_path) in fault.found


def test_a_damaged_graph_is_a_fault(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / VOCODER_FILE).write_bytes(b"nonsense")
    signed(model)
    report = examine("cpu", model, probes=machine())
    assert not report.ok
    assert "vocoder.onnx: not a usable graph" in faults(report)[0].found
