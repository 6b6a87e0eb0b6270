"""Every part of mkc_fast.benchmarks.gpu runs, on small models and the stand-ins, and writes what it finds."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mkc_fast.benchmarks.gpu import run as script
from mkc_fast.benchmarks.gpu.bench import REHEARSAL, Bench, Late, unhappy
from mkc_fast.benchmarks.gpu.correctness import errors
from mkc_fast.benchmarks.gpu.run import PARTS, Part, begun, run_parts
from mkc_fast.benchmarks.records import context
from tests.conftest import ROOT, Artifacts
from tests.fakes.cuda import shim


def rehearse(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The script, from a folder that is not the clone, so that the installed package runs."""
    command = [sys.executable, "-m", "mkc_fast.benchmarks.gpu", "--rehearse", "--repository", str(ROOT)]
    command += ["--work", str(folder / "work"), "--out", str(folder / "gpu.json"), *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=2000, check=False, cwd=folder)
    return run, json.loads((folder / "gpu.json").read_text())


def test_the_gpu_benchmark_can_be_rehearsed(cuda_artifacts: Artifacts, tmp_path: Path) -> None:
    shim.library()  # skips where there is no compiler
    shutil.copytree(
        cuda_artifacts.model, tmp_path / "work" / "model"
    )  # exporting is tested elsewhere, and takes longest
    (tmp_path / "work" / "half").touch()
    run, result = rehearse(tmp_path, "--budget-s", "1800")  # however busy the machine is
    assert run.returncode == 0, run.stdout + run.stderr
    assert result["rehearsal"] is True
    assert result["failed"] == unhappy(result, "failed") == []
    assert unhappy(result, "skipped") == []
    assert result["command"].startswith("python -m mkc_fast.benchmarks.gpu --rehearse")
    for part in PARTS:
        assert set(result[part]["of"]) >= {"gpu", "driver", "onnxruntime", "cupy", "commit"}, part
    for regime in ("few frames an entry", "many frames an entry", "frames between two centroids"):
        assert result["lookup"][regime]["ids_equal_the_cpus"] is True
        assert result["lookup"][regime]["rows_are_the_centroids"] is True
    found = result["correctness"]
    assert found["passes"] is found["fp32"]["passes"] is found["fp32"]["ids_from_equal_features_equal"] is True
    assert set(found["fp32"]["stages"]) == {"encode", "restore", "vocode"}
    assert set(found["fp32"]["pass"]) == {"alone", "in a batch"}
    assert set(result["latency"]) >= {"fp32, launches", "fp32, CUDA graphs"}
    assert result["scaling"]["2 processes"]["written"] > 0
    assert result["throughput"]["fp32"]["batches of 4 s"]["rtfx"] > 0
    assert (
        result["residual"]["width 48, correct"]["passes"] is result["residual"]["width 32, correct"]["passes"] is True
    )
    assert result["residual"]["width 32, kernel"]["seconds"] > 0
    assert result["residual"]["width 32, graph, NHWC"]["shapes"] == {"x": [2, 32, 280]}
    assert len(result["residual"]["width 32, plans"]) > 3
    whole = result["residual"]["whole vocoder, in stages"]
    assert whole["passes"] is result["residual"]["whole vocoder, one graph"]["passes"] is True
    assert whole["widths_by_the_kernel"] == [16]
    for name in ("fp32, NCHW", "fp32, NHWC"):
        figure = result["vocoder"][name]
        assert figure["passes"] is True
        assert figure["against_the_cpu"]["relative_rms_error"] < 1e-4
        assert figure["precision"] == "fp32"
        assert figure["shapes"] == {"features": [2, 70, 64]}


def test_one_part_is_measured_again_and_the_others_are_kept(artifacts: Artifacts, tmp_path: Path) -> None:
    shim.library()
    shutil.copytree(artifacts.model, tmp_path / "work" / "model")
    (tmp_path / "work" / "half").touch()
    kept = {"lookup": {"resident": True}, "latency": {"failed": "too"}, "vocoder": {"failed": "it was"}}
    (tmp_path / "gpu.json").write_text(json.dumps(kept))
    run, result = rehearse(tmp_path, "--only", "vocoder")
    assert run.returncode == 0, run.stdout + run.stderr
    assert result["lookup"] == {"resident": True}
    assert result["failed"] == ["latency"]  # which is not measured again
    assert "fp32, NCHW" in result["vocoder"]
    assert "failed" not in result["vocoder"]
    assert "throughput" not in result


def test_a_part_that_fails_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    shim.library()
    (tmp_path / "work" / "model").mkdir(parents=True)  # where the others look for a model
    (tmp_path / "work" / "model" / "model.json").write_text("{}")
    (tmp_path / "work" / "half").touch()
    run, result = rehearse(tmp_path)
    assert run.returncode == 1
    assert "gb_per_s" in result["ceilings"]["copy"]
    assert "ArtifactError" in result["correctness"]["failed"]
    assert "ids_equal_the_cpus" in result["lookup"]["few frames an entry"]
    assert "correctness" in result["failed"]
    assert "Traceback" not in run.stderr


def test_without_a_gpu_the_script_says_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkc_fast.benchmarks.gpu", "--out", str(tmp_path / "gpu.json"), "--device", "cpu"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "--device cuda:<number>" in run.stderr


# ---- Time ----


class NoMachine:
    rehearsal = True

    def facts(self) -> dict[str, object]:
        return {"gpu": "none"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    speech = np.zeros(16000, np.float32)
    given = (tmp_path, tmp_path / "out.json", speech, tmp_path / "model", tmp_path / "bank")
    return Bench(NoMachine(), REHEARSAL, *given, result=context())  # type: ignore[arg-type]


def given_parts(monkeypatch: pytest.MonkeyPatch, **parts: Part) -> None:
    monkeypatch.setattr(script, "PARTS", parts)


def test_what_there_is_no_time_for_is_skipped_and_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    given_parts(monkeypatch, one=Part(lambda *_: None, 1000, 2000), two=Part(lambda *_: None, 0, 10))
    assert run_parts(bench, ["one", "two"], budget_s=100) == []
    written = json.loads(bench.out.read_text())
    assert "it needs 1000" in written["one"]["skipped"]
    assert "skipped" not in written["two"]


def test_a_part_that_takes_too_long_is_cut_off_and_keeps_its_figures(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(bench: Bench, found: dict[str, Any]) -> None:
        bench.figure(found, "first", lambda: {"seconds": 1.0}, least_s=0)
        while True:
            time.sleep(0.01)

    given_parts(monkeypatch, endless=Part(endless, 0, 0.3), after=Part(lambda _, found: found.update(x=1), 0, 10))
    assert run_parts(bench, ["endless", "after"], budget_s=100) == []
    written = json.loads(bench.out.read_text())
    assert written["endless"]["first"] == {"seconds": 1.0}
    assert "cut off" in written["endless"]["skipped"]
    assert written["after"]["x"] == 1
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_figure_is_written_before_the_next_one_is_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def part(bench: Bench, found: dict[str, Any]) -> None:
        bench.figure(found, "first", lambda: {"value": np.float32(1.23456)}, least_s=0)
        seen.append(json.loads(bench.out.read_text())["part"]["first"])

    given_parts(monkeypatch, part=Part(part, 0, 10))
    run_parts(bench, ["part"], budget_s=100)
    assert seen == [{"value": 1.235}]


def test_a_figure_that_fails_or_is_late_leaves_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def late() -> dict[str, Any]:
        raise Late("no time")

    def part(bench: Bench, found: dict[str, Any]) -> None:
        bench.figure(found, "fails", lambda: {"value": 1 / 0}, least_s=0)
        bench.figure(found, "late", late, least_s=0)
        bench.figure(found, "works", lambda: {"value": 1}, least_s=0)

    given_parts(monkeypatch, part=Part(part, 0, 10), wrong=Part(lambda _, found: found.update(passes=False), 0, 10))
    assert run_parts(bench, ["part", "wrong"], budget_s=100) == ["part.fails", "wrong.passes"]
    written = json.loads(bench.out.read_text())
    assert "ZeroDivisionError" in written["part"]["fails"]["failed"]
    assert written["part"]["late"] == {"skipped": "no time"}
    assert written["part"]["works"] == {"value": 1}
    assert written["failed"] == ["part.fails", "wrong.passes"]


def test_a_whole_run_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"lookup": {"resident": True}}))
    assert "lookup" not in begun(tmp_path / "gpu.json", list(PARTS))
    assert "lookup" in begun(tmp_path / "gpu.json", ["memory"])


def test_the_docs_name_every_part() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    section = text[text.index("## The GPU profile") :]
    assert [name for name in PARTS if f"`{name}`" not in section] == ["making"]  # which measures nothing


def test_errors_are_relative_to_what_was_expected() -> None:
    expected = np.full(100, 2, np.float32)
    found = errors([(expected + np.float32(0.02), expected)])
    assert found["relative_rms_error"] == pytest.approx(0.01, rel=1e-3)
    assert found["snr_db"] == 40.0
