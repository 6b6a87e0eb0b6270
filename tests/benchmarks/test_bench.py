"""``mkc-fast bench``: statistics, the corpus's lengths, every command on small models, and the report."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mkc_fast import ArtifactError, MkcError
from mkc_fast.benchmarks import timing
from mkc_fast.benchmarks.ceilings import best_of, floors, measure_ceilings
from mkc_fast.benchmarks.child import run_children
from mkc_fast.benchmarks.ready import run_ready
from mkc_fast.benchmarks.records import context, read_record, short, write_record
from mkc_fast.benchmarks.target import Target
from mkc_fast.benchmarks.timing import Budget, in_turn, ratios, spread, summary
from mkc_fast.benchmarks.utterances import LONGEST_S, MEAN_S, SHORTEST_S, draw_lengths, quantiles
from mkc_fast.cli import main
from mkc_fast.export.random_checkpoints import Checkpoints
from mkc_fast.kernels.cpu.loader import native_library
from tests.conftest import Artifacts

pytest.importorskip("sklearn", reason="the baseline needs scikit-learn")


def test_percentiles_are_those_of_numpy_and_say_how_many_runs() -> None:
    values = np.random.default_rng(0).exponential(1, 500).tolist()
    found = summary(values)
    expected = np.percentile(values, [50, 95, 99])
    np.testing.assert_allclose([found["p50"], found["p95"], found["p99"]], expected, rtol=1e-3)
    assert found["runs"] == 500
    assert summary([2.0]) == {"p50": 2.0, "p95": 2.0, "p99": 2.0, "least": 2.0, "runs": 1}


def test_ratios_compare_neighbours_and_their_spread_is_quartiles() -> None:
    each = ratios([2.0, 9.0, 8.0, 10.0], [1.0, 3.0, 2.0, 2.0])
    assert each == [2.0, 3.0, 4.0, 5.0]
    assert spread(each) == {"median": 3.5, "quartile_1": 2.75, "quartile_3": 4.25, "least": 2.0, "largest": 5.0}


def test_short_arms_run_again_and_their_first_run_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    ran: list[str] = []

    def arm(name: str, first: float, later: float) -> None:
        nonlocal now
        # The first run of a turn follows another arm's.
        now += later if ran and ran[-1] == name else first
        ran.append(name)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    arms = {"short": lambda: arm("short", 5, 1), "long": lambda: arm("long", 20, 20)}
    assert in_turn(arms, budget_s=1e9, most=2, warm=False, turn_s=10) == {"short": [1, 1], "long": [20, 20]}
    assert ran == 2 * [*["short"] * 6, "long"]


def test_arms_run_in_turn_after_a_warm_up() -> None:
    ran: list[str] = []
    seconds = in_turn({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, budget_s=10, most=3)
    assert ran == ["a", "b"] * 4
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}


def test_a_budget_names_what_it_cuts() -> None:
    now = [0.0]
    budget = Budget(10, clock=lambda: now[0])
    assert budget.allows(8, "first")
    now[0] = 7.0
    assert not budget.allows(8, "second")
    assert budget.cut == ["second: not measured, it would take 8 s and 3 s were left"]


@pytest.mark.parametrize("count", [3, 10, 1000])
def test_drawn_lengths_have_librispeech_s_mean_and_bounds(count: int) -> None:
    lengths = draw_lengths(count)
    assert lengths == draw_lengths(count)
    assert lengths != draw_lengths(count, seed=8)
    assert len(lengths) == count
    assert SHORTEST_S <= min(lengths) <= max(lengths) <= LONGEST_S
    # Stratified and chosen by its mean: already three utterances are near it.
    assert np.mean(lengths) == pytest.approx(MEAN_S, abs=0.15)


def test_the_distribution_itself_has_that_mean_and_shape() -> None:
    lengths = quantiles((np.arange(100_000) + 0.5) / 100_000)
    assert lengths.mean() == pytest.approx(MEAN_S, abs=0.1)
    assert 0.3 < np.mean(lengths < 12) < 0.4
    assert np.mean(lengths > 17) < 0.1
    assert lengths.max() > 34


def test_ceilings_are_plausible_and_the_fastest_library_counts() -> None:
    found = measure_ceilings("cpu", 1, budget_s=0.5)
    assert found["gemm_gflops"]["fp32"] == max(found["gemm_by"].values())
    assert 1 < found["gemm_gflops"]["fp32"] < 1e5
    if native_library() is not None:
        assert 1 < found["gemm_gflops"]["int16"] < 1e6
        assert 1 < found["gemm_gflops"]["int8"] < 1e6
    assert 0.5 < found["copy_gbs"] < 1e4


def test_the_best_of_several_ceilings_counts() -> None:
    one = {"gemm_gflops": {"fp32": 100.0}, "gemm_by": {"numpy": 100.0, "torch": 90.0}, "copy_gbs": 9.0, "threads": 2}
    two = {"gemm_gflops": {"fp32": 120.0}, "gemm_by": {"numpy": 80.0, "torch": 120.0}, "copy_gbs": 8.0, "threads": 2}
    best = best_of([one, two])
    assert best["gemm_gflops"] == {"fp32": 120.0}
    assert best["gemm_by"] == {"numpy": 100.0, "torch": 120.0}
    assert best["copy_gbs"] == 9.0
    assert best["gemm_spread"] == [100.0, 120.0]


def test_floors_are_the_larger_of_arithmetic_and_memory(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(artifacts.model, artifacts.bank)
    ceilings = {"gemm_gflops": {"fp32": 100.0}, "copy_gbs": 10.0}
    assert floors(target, ceilings, "fp32", 10.0, 8) == {}  # the arithmetic of these sizes is not counted
    gflop = {"encode": 14.0, "assign": 0.1, "restore": 30.1, "vocode": 38.6}
    monkeypatch.setattr(Target, "gflop_a_second", lambda _: gflop)
    monkeypatch.setattr(Target, "weight_bytes", lambda _, stage: 10**9 if stage == "restore" else 10**6)
    short_one, long_one = (floors(target, ceilings, "fp32", seconds, 8) for seconds in (0.1, 10.0))
    assert short_one["restore"]["bound_by"] == "memory"
    assert short_one["restore"]["floor_s"] == pytest.approx(0.1)
    assert long_one["restore"]["bound_by"] == "arithmetic"
    assert long_one["restore"]["floor_s"] == pytest.approx(3.01)
    assert long_one["encode"]["floor_s"] == pytest.approx(1.4)


def test_a_record_says_where_it_is_from_and_hides_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["/home/someone/bin/mkc-fast", "bench", "--out", "/home/someone/x.json", "--model=/home/someone/m"]
    )
    record = context()
    assert record["command"] == "mkc-fast bench --out x.json --model=m"
    assert set(record) == {"machine", "system", "python", "versions", "commit", "command", "date"}
    assert record["machine"]["cores"] >= 1
    assert "numpy" in record["versions"]
    assert re.fullmatch(r"[0-9a-f]{7,}(\+changes)?|version .+", record["commit"])
    write_record(tmp_path / "new" / "x.json", {**record, "a": 1})
    assert read_record(tmp_path / "new" / "x.json")["a"] == 1
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="not a benchmark's result"):
        read_record(tmp_path / "bad.json")


def test_a_failing_child_is_one_line() -> None:
    with pytest.raises(MkcError, match="a process of the benchmark failed"):
        run_ready({"what": "bank", "bank": "/nowhere", "frames": 1})


def test_a_child_s_memory_is_read_while_it_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "holder.py").write_text(
        "import numpy as np; from mkc_fast.benchmarks.child import serve; "
        "serve(lambda arguments: ({'n': arguments['n']}, np.ones(arguments['n'] * 10**6, np.uint8)))"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    small, large = (run_children("holder", [{"n": megabytes}])[0] for megabytes in (1, 150))
    assert large["n"] == 150
    assert 0 < small["ready_s"] < 30
    if "pss_mb" in large:  # where the system tells
        assert 130 < large["pss_mb"] - small["pss_mb"] < 170


@pytest.fixture(scope="module")
def results(artifacts: Artifacts, checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the four benches write about the small models, in seconds."""
    out = tmp_path_factory.mktemp("results")
    given = ["--model", str(artifacts.model), "--bank", str(artifacts.bank)]
    baseline = ["--wavlm-ckpt", checkpoints.wavlm, "--ckpt", checkpoints.ckpt, "--kmeans-scp", checkpoints.kmeans_scp]
    commands = {
        "latency": [*given, "--lengths", "1,2", "--budget-s", "4"],
        "throughput": [*given, *map(str, baseline), "--baseline", "--rounds", "2", "--budget-s", "15"],
        "lookup": [*given, "--frames", "20,60", "--banks", "1,8,20", "--strides", "1,5", "--budget-s", "4"],
        "load": [*given, *map(str, baseline), "--banks", "20", "--repeats", "1", "--budget-s", "600"],
    }
    for bench, options in commands.items():
        assert main(["bench", bench, *options, "--out", str(out / f"{bench}.json")]) == 0
    return out


def record_of(results: Path, bench: str) -> dict[str, Any]:
    return read_record(results / f"{bench}.json")


def test_latency_has_every_length_stage_and_percentile(results: Path) -> None:
    record = record_of(results, "latency")
    assert [case["length_s"] for case in record["cases"]] == [1, 2]
    for case in record["cases"]:
        assert set(case["warm_s"]) == {"encode", "assign", "restore", "vocode", "all"}
        total = case["warm_s"]["all"]
        assert 0 < total["least"] <= total["p50"] <= total["p95"] <= total["p99"]
        assert total["runs"] >= 3
        # The stages are the pass: what lies between them is checks and copies.
        assert sum(case["first_s"][stage] for stage in ("encode", "assign", "restore", "vocode")) <= (
            1.01 * case["first_s"]["all"]
        )
    start_up = record["start_up"]["median_s"]
    parts = ("import_s", "load_s", "first_output_s")
    assert 0 < sum(start_up[part] for part in parts) < 1.01 * start_up["ready_s"]


def test_throughput_compares_equals(results: Path) -> None:
    record = record_of(results, "throughput")
    comparison = record["comparison"]
    assert comparison["same_cluster_ids"] == 1
    assert comparison["within_tolerance"]
    assert comparison["largest_difference"] < 1e-4
    assert comparison["threads"] == record["target"]["threads"] == record["machine"]["cores"]
    for mode in comparison["modes"]:
        assert mode["ratio"] == pytest.approx(mode["ours_rtfx"] / mode["practice_rtfx"], rel=0.02)
        assert len(mode["ratio_by_round"]) == comparison["rounds"]
        least, largest = mode["ratio_by_utterance"]["least"], mode["ratio_by_utterance"]["largest"]
        assert least <= mode["ratio_by_utterance"]["median"] <= largest
    assert np.mean(comparison["lengths_s"]) == pytest.approx(MEAN_S, abs=0.5)


def test_every_way_to_run_is_measured_or_named_as_cut(results: Path) -> None:
    record = record_of(results, "throughput")
    measured = len(record["device_only"]["cases"]) + len(record["files_to_files"]["cases"])
    workers = 2 if record["machine"]["cores"] > 1 else 1
    cut = [line for line in record["cut"] if line.startswith(("device only", "files to files"))]
    assert measured + len(cut) == 2 * 2 + 2 * workers
    assert measured >= 2
    assert all(case["rtfx"] > 0 for part in ("device_only", "files_to_files") for case in record[part]["cases"])


def test_lookup_back_ends_agree(results: Path) -> None:
    record = record_of(results, "lookup")
    assert len(record["cases"]) + len(record["cut"]) >= 2 * 3 * 2
    for case in record["cases"]:
        assert case["distinct_entries"] <= case["entries"]
        sizes = f"N {case['entries']}, T {case['frames']}, stride {case['stride']}: "
        for name in ("mkc-fast native", "mkc-fast numpy", "scikit-learn predict", "PyTorch cdist, grouped"):
            # On a busy machine one may have no room in so short a budget; then the record says so.
            assert name in case["frames_a_second"] or any(line.startswith(sizes + name) for line in record["cut"])
        assert all(rate > 0 for rate in case["frames_a_second"].values())
        assert all(share == 1 for share in case["same_ids"].values())
    for name, why in record["missing"].items():
        assert "pip install" in why, name


def test_load_measures_both_in_their_own_processes(results: Path) -> None:
    record = record_of(results, "load")
    for case in record["cases"]:
        for name in ("ours", "practice"):
            assert 0 < case[name]["open_s"] < case[name]["ready_s"]
    assert set(record["start_up"]) == {"ours", "practice"}


def test_without_checkpoints_the_baseline_is_refused_in_one_line(
    artifacts: Artifacts, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(artifacts.model), "--bank", str(artifacts.bank)]
    assert main(["bench", "throughput", *given, "--baseline"]) == 2
    assert "--kmeans-scp" in capsys.readouterr().err
    assert main(["bench", "latency", "--model", str(artifacts.model)]) == 2
    assert "--model and --bank go together" in capsys.readouterr().err
    assert main(["bench", "latency", *given, "--lengths", "1,x"]) == 2
    assert "--lengths is '1,x'" in capsys.readouterr().err


def test_random_weights_are_made_once(
    tmp_path: Path, artifacts: Artifacts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mkc_fast.export.model as exporter
    from mkc_fast.benchmarks.random_artifacts import random_artifacts

    made: list[Path] = []

    def export(*arguments: Any, **_: Any) -> None:  # the graphs themselves are made and checked in test_export
        made.append(arguments[2])
        arguments[2].mkdir()
        for file in artifacts.model.iterdir():
            (arguments[2] / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(exporter, "export_model", export)
    first, second = (random_artifacts("small", tmp_path, 3) for _ in range(2))
    assert first == second
    assert len(made) == 1
    assert len(first.kmeans) == 3
    assert Target(first.model, first.bank).described()["entries"] == 3
    options = ["--size", "small", "--entries", "3", "--cache-dir", str(tmp_path), "--frames", "5", "--banks", "2"]
    assert main(["bench", "lookup", *options, "--budget-s", "2", "--json"]) == 0
    assert len(made) == 1
    assert json.loads(capsys.readouterr().out)["target"]["weights"] == "random, size small"
    with pytest.raises(MkcError, match="size is 'huge'"):
        random_artifacts("huge", tmp_path)


def test_the_report_holds_every_number_and_picture_itself(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the report needs matplotlib")
    from PIL import Image

    assert main(["bench", "report", str(results), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 6  # all but the roofline, whose arithmetic is that of the published sizes
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.width > 1000
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"{name}.png" for name in ("comparison", "throughput", "latency", "startup", "loading", "lookup")
    }
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing is fetched
    for mode in record_of(results, "throughput")["comparison"]["modes"]:
        assert f"{short(mode['ratio']):g} times" in page
    machine = record_of(results, "latency")["machine"]
    assert f"{machine['cores']} cores" in page
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 500_000


def test_a_full_size_report_has_a_roofline_and_says_why_not_faster(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the report needs matplotlib")
    latency, throughput = (copy.deepcopy(record_of(results, bench)) for bench in ("latency", "throughput"))
    for case in latency["cases"]:
        case["floors"] = {
            stage: {"gflop": 14.0, "mb": 100.0, "floor_s": 0.01, "bound_by": "arithmetic"}
            for stage in ("encode", "assign", "restore", "vocode")
        }
    for case in throughput["device_only"]["cases"]:
        case["utilization"] = 0.5
    write_record(tmp_path / "latency.json", latency)
    write_record(tmp_path / "throughput.json", throughput)
    assert main(["bench", "report", str(tmp_path)]) == 0
    assert (tmp_path / "roofline.png").is_file()
    page = (tmp_path / "report.html").read_text()
    assert "Why not faster?" in page
    assert "50 %" in page
    assert "Look-up</h2>" not in page  # what is not there is left out


def test_the_report_shows_what_a_result_says_as_text(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the report needs matplotlib")
    hostile = "<script>alert('1')</script>\""
    for bench in ("latency", "throughput", "lookup", "load"):
        record = with_strings(record_of(results, bench), hostile)
        write_record(tmp_path / f"{bench}.json", record)
    assert main(["bench", "report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert hostile[:-1] not in page
    assert page.count("<script") == 0
    assert page.count("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&#34;") > 20


def with_strings(record: Any, text: str) -> Any:
    """A result whose strings, except its bench and its modes, end with a text."""
    if isinstance(record, dict):
        return {k: v if k in ("bench", "mode", "date") else with_strings(v, text) for k, v in record.items()}
    if isinstance(record, list):
        return [with_strings(value, text) for value in record]
    return record + text if isinstance(record, str) else record


def test_unusable_results_are_one_line(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the report needs matplotlib")
    assert main(["bench", "report", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "scaling.json").write_text('{"results": 1}')
    assert main(["bench", "report", str(tmp_path)]) == 2
    assert "holds no result" in capsys.readouterr().err
    (tmp_path / "a.json").write_text((results / "latency.json").read_text())
    (tmp_path / "b.json").write_text((results / "latency.json").read_text())
    assert main(["bench", "report", str(tmp_path)]) == 2
    assert "both of bench latency" in capsys.readouterr().err
    (tmp_path / "b.json").write_text('{"bench": "lookup", "cases": [{"entries": 1}]}')
    assert main(["bench", "report", str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_bench_help_and_the_engine_s_benches_load_no_torch() -> None:
    script = (
        "import sys; from mkc_fast.cli import main; main(['--help']); main(['bench', '--help']); "
        "heavy = {'torch', 'onnxruntime', 'cupy', 'sklearn', 'matplotlib'} & set(sys.modules); "
        "import mkc_fast.benchmarks.latency, mkc_fast.benchmarks.throughput, mkc_fast.benchmarks.lookup; "
        "import mkc_fast.benchmarks.load; "
        "print('LOADED', heavy, {'torch', 'mkc_fast.export', 'sklearn'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "LOADED set() set()" in run.stdout
