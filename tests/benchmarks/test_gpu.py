"""Every part of mkc_fast.benchmarks.gpu runs, on small models and the stand-ins, and writes what it finds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, Artifacts
from tests.fakes.cuda import shim

SCRIPT = (sys.executable, "-m", "mkc_fast.benchmarks.gpu")
PARTS = ("making", "ceilings", "lookup", "correctness", "throughput", "floors", "latency", "files", "start_up",
         "latency_searched")  # fmt: skip


def test_the_gpu_benchmark_can_be_rehearsed(artifacts: Artifacts, tmp_path: Path) -> None:
    shim.library()  # skips where there is no compiler
    shutil.copytree(artifacts.model, tmp_path / "work" / "model")  # exporting is tested elsewhere, and takes longest
    command = [*SCRIPT, "--rehearse", "--work", tmp_path / "work", "--out", tmp_path / "gpu.json"]
    run = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=240, check=False, cwd=ROOT
    )
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["rehearsal"] is True
    for part in PARTS:
        assert "failed" not in json.dumps(result[part]).replace('"failed": []', ""), part
    assert result["correctness"]["passes"] is True
    assert result["correctness"]["lookup_of_the_same_features_equal"] is True
    assert len(result["correctness"]["rows"]) == 6
    for regime in ("few frames an entry", "many frames an entry"):
        assert result["lookup"][regime]["ids_equal_the_cpus"] is True
    assert set(result["latency"]) == {"fp32, launches", "fp32, CUDA graphs"}
    assert result["files"]["2 processes"]["written"] > 0
    assert result["throughput"]["fp32"]["batches of 4 s"]["rtfx"] > 0


def test_a_part_that_fails_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    shim.library()
    (tmp_path / "work" / "model").mkdir(parents=True)  # where the others look for a model
    (tmp_path / "work" / "model" / "model.json").write_text("{}")
    (tmp_path / "work" / "half").touch()
    command = [*SCRIPT, "--rehearse", "--work", tmp_path / "work", "--out", tmp_path / "gpu.json"]
    run = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=240, check=False, cwd=ROOT
    )
    assert run.returncode == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert "copy_gb_per_s" in result["ceilings"]
    assert "ArtifactError" in result["correctness"]["failed"]
    assert "ids_equal_the_cpus" in result["lookup"]["few frames an entry"]
