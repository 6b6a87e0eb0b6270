"""Scripts of mkc_fast.benchmarks run with --quick, on small models, and write their results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mkc_fast.kernels.cpu.loader import native_library
from tests.conftest import ROOT, Artifacts


def result_of(name: str, out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"mkc_fast.benchmarks.{name}", *options, "--quick", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, cwd=out.parent)
    assert run.returncode == 0, run.stdout + run.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    assert f"mkc_fast.benchmarks.{name}" in result["command"]
    return result


@pytest.mark.skipif(native_library() is None, reason="the native operators are not built here")
def test_widths_measures_every_case_of_a_width(tmp_path: Path) -> None:
    result = result_of("widths", tmp_path / "widths.json", "--channels=", "--dims=")
    assert {case["width"] for case in result["blocks"]} == {8}
    assert all(case["times_as_fast"] > 0 for case in result["blocks"])
    assert result["vocoders"] == result["encoders"] == []  # whole models are exported for these


def test_workers_measures_workers_and_the_host(artifacts: Artifacts, tmp_path: Path) -> None:
    given = [str(ROOT / "cli" / "demo_speech.flac"), "--model", str(artifacts.model), "--bank", str(artifacts.bank)]
    result = result_of("workers", tmp_path / "workers.json", *given, "--workers", "1")
    assert result["quick"] is True
    (one,) = result["results"]["workers"]["counts"]
    assert one["workers"] == 1
    assert one["rtfx"] > 0
    assert len(result["results"]["host"]["cases"]) == 3
    assert all(case["rtfx_per_worker_cpu_s"] > 0 for case in result["results"]["host"]["cases"])


def test_simulated_workers_are_kept_busy_by_the_real_runner(artifacts: Artifacts, tmp_path: Path) -> None:
    given = [str(ROOT / "cli" / "demo_speech.flac"), "--model", str(artifacts.model), "--bank", str(artifacts.bank)]
    result = result_of("cluster.simulation", tmp_path / "simulation.json", *given)
    few, many = result["cases"]
    assert (few["workers"], many["workers"]) == (8, 512)
    assert few["recordings"] == many["recordings"] == 2000
    assert few["workers_busy"] > 0
    assert many["runner_us"] > 0
    assert result["asked"]["recordings_a_second"] == many["wanted_a_second"]


@pytest.mark.parametrize("name", ["driver", "overhead"])
def test_scripts_for_clusters_compare_with_the_local_runner(name: str, artifacts: Artifacts, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    given = [str(ROOT / "cli" / "demo_speech.flac"), "--model", str(artifacts.model), "--bank", str(artifacts.bank)]
    result = result_of(f"cluster.{name}", tmp_path / f"{name}.json", *given)
    if name == "driver":
        assert {case["where"] for case in result["cases"]} == {"local", "ray"}
        assert all(case["driver_us"] > 0 and case["peak_mb"] > 0 for case in result["cases"])
    else:
        assert len(result["runs"]["local"]) == len(result["runs"]["ray"]) == 1
        assert result["time"]["ratio"] > 0
