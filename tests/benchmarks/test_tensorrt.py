"""``mkc-fast bench tensorrt``: refused in one line where there is no TensorRT, and every part of it over stand-ins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mkc_fast import DeviceError
from mkc_fast.benchmarks import tensorrt
from mkc_fast.benchmarks.records import write_record
from mkc_fast.benchmarks.target import Target
from mkc_fast.benchmarks.tensorrt import bench_tensorrt
from mkc_fast.cli import main
from mkc_fast.cli.bench_tables import TABLES
from mkc_fast.engine.devices import Driver, Gpu
from mkc_fast.engine.options import EngineOptions
from mkc_fast.engine.sessions import opening
from mkc_fast.engine.sessions import tensorrt as engines
from mkc_fast.engine.sessions.gpu_facts import GpuFacts, Library, Runtime
from mkc_fast.engine.sessions.providers import ORT_NAMES
from tests.conftest import Artifacts
from tests.fakes.cuda import fake_gpu
from tests.fakes.cuda.fake_gpu import FakeGpu

H100 = Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30)
SAID = Driver(True, "580.65.06", (13, 0), (H100,))
BUILD = Runtime("1.31.0", "13.0", tuple(ORT_NAMES.values()))
SMALL: dict[str, Any] = {"checked_s": (0.4, 1.0), "lengths_s": (1.0,), "corpus_s": 13.0, "runs": 2}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A machine with TensorRT's libraries; what is opened on it runs on the stand-in."""
    fake = fake_gpu.install(monkeypatch)
    facts = GpuFacts(SAID, BUILD, (Library("libnvinfer.so.10", "10.13.3"),))
    monkeypatch.setattr(tensorrt, "driver", lambda: SAID)
    monkeypatch.setattr(tensorrt, "gather_gpu_facts", lambda _: facts)
    monkeypatch.setattr(opening, "gather_gpu_facts", lambda _: facts)

    def build(model: Path, device: str, options: EngineOptions, *, progress: Any) -> Any:
        assert options.cache is not None
        folder = options.cache / "tensorrt" / "machine"
        progress("wavlm.onnx: " + ("opening" if folder.is_dir() else "building its engine"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "wavlm.engine").write_bytes(b"engine")
        context = fake.cupy.cuda.Stream(non_blocking=True)
        return fake.open_sessions(model, device, options, stream=context.ptr)

    monkeypatch.setattr(engines, "open_sessions", build)
    return fake


def run(artifacts: Artifacts, speech: np.ndarray, **how: Any) -> dict[str, Any]:
    target = Target(artifacts.model, artifacts.bank, "cuda:0", EngineOptions())
    return bench_tensorrt(target, speech, **{**SMALL, **how})


def test_every_part_is_in_the_record_and_in_the_file(
    gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    out = tmp_path / "tensorrt.json"
    record = run(artifacts, clip, progress=lines.append, save=lambda found: write_record(out, found))
    assert json.loads(out.read_text()) == record
    assert record["tensorrt"] == "10.13.3"
    assert record["cut"] == []
    parts = record["parts"]
    assert [name for name, part in parts.items() if "failed" in part] == []
    assert list(parts["engines, built"]["seconds"]) == ["wavlm.onnx: building its engine"]
    assert list(parts["engines, found again"]["seconds"]) == ["wavlm.onnx: opening"]
    assert parts["engines, built"]["files_mb"] == {"wavlm.engine": 6e-6}
    beside = parts["tensorrt, beside the CPU"]
    assert beside["ids_from_equal_features_equal"] is beside["passes"] is True
    assert beside["precision"] == "tf32"  # what auto is on this GPU
    for provider in ("tensorrt", "cuda"):
        assert parts[f"{provider}, throughput"]["rtfx"] > 0
        assert parts[f"{provider}, 1 s alone"]["p50_ms"] > 0
        assert parts[f"{provider}, 1 s alone"]["precision"] == "tf32"
    TABLES["tensorrt"](record)
    assert "passes; 0 of" in capsys.readouterr().out


def test_engines_that_cannot_be_built_end_it_with_the_error_in_the_record(
    gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise DeviceError("wavlm.onnx does not open: no kernel for this")

    monkeypatch.setattr(engines, "open_sessions", refused)
    record = run(artifacts, clip)
    assert list(record["parts"]) == ["engines, built"]
    assert "no kernel for this" in record["parts"]["engines, built"]["failed"]
    assert record["cut"] == ["everything else: there are no engines"]


def test_a_part_that_fails_leaves_the_others(
    gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "compared", lambda *_: 1 / 0)
    saved: list[int] = []
    record = run(artifacts, clip, save=lambda found: saved.append(len(found["parts"])))
    assert "ZeroDivisionError" in record["parts"]["tensorrt, beside the CPU"]["failed"]
    assert record["parts"]["cuda, throughput"]["rtfx"] > 0
    assert saved[: len(record["parts"])] == list(range(1, len(record["parts"]) + 1))


def test_what_the_budget_has_no_room_for_is_named(gpu: FakeGpu, artifacts: Artifacts, clip: np.ndarray) -> None:
    record = run(artifacts, clip, budget_s=0)
    assert record["parts"] == {}
    assert record["cut"][0].startswith("engines, built: not measured")


def test_without_tensorrt_one_line_says_what_to_install(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_gpu.install(monkeypatch)
    missing = Library("libnvinfer.so.10", problem="cannot open shared object file")
    monkeypatch.setattr(opening, "gather_gpu_facts", lambda _: GpuFacts(SAID, BUILD, (missing,)))
    given = ["--model", str(artifacts.model), "--bank", str(artifacts.bank), "--out", str(tmp_path / "tensorrt.json")]
    assert main(["bench", "tensorrt", *given]) == 2
    said = capsys.readouterr().err.strip()
    assert "libnvinfer.so.10 cannot be loaded; pip install 'tensorrt-cu13>=10,<11'" in " ".join(said.split())
    assert not (tmp_path / "tensorrt.json").exists()


def test_without_a_gpu_it_is_refused_before_weights_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tensorrt", "--device", "cpu"]) == 2
    assert "needs a GPU" in capsys.readouterr().err
