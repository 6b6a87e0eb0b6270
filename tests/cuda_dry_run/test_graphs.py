"""What ONNX Runtime's CUDA provider makes of each graph: placement, copies, plans, launches."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mkc_fast.engine.sessions.providers import HEAVY_OPERATORS
from tests.cuda_dry_run.graphs import CASES, FIXED, FREE, Case, job
from tests.cuda_dry_run.launches import COMMAND, read_table, row
from tests.fakes.cuda.dry_run.build import Stubs
from tests.fakes.cuda.dry_run.sessions import CUDA, Report, measure

ReportOf = Callable[[Case], Report]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_every_heavy_node_is_on_cuda(case: Case, report_of: ReportOf) -> None:
    report = report_of(case)
    assert report.nodes[CUDA]
    elsewhere = {name for provider, nodes in report.nodes.items() if provider != CUDA for name in nodes}
    assert elsewhere & HEAVY_OPERATORS == set()


@pytest.mark.parametrize("case", FIXED, ids=str)
def test_with_fixed_sizes_every_node_is_on_cuda(case: Case, report_of: ReportOf) -> None:
    assert set(report_of(case).nodes) == {CUDA}


@every_case
def test_nothing_is_copied_to_the_host_and_back_within_a_graph(case: Case, report_of: ReportOf) -> None:
    assert report_of(case).memcpy_nodes == 0


@every_case
def test_a_steady_run_neither_waits_nor_allocates_nor_plans_nor_copies(case: Case, report_of: ReportOf) -> None:
    report = report_of(case)
    assert report.error == ""
    steady = report.runs[-1]
    assert steady.launches > 0
    assert (steady.waits, steady.mallocs, steady.frees, steady.pins, steady.plans) == (0, 0, 0, 0, 0)
    assert steady.host_copies == 0
    assert steady.null_stream == 0


@every_case
def test_no_call_is_wrong(case: Case, report_of: ReportOf) -> None:
    report = report_of(case)
    assert [line for calls in (report.opened, *report.runs) for line in calls.wrong] == []


@every_case
def test_launches_are_those_of_the_table(case: Case, report_of: ReportOf) -> None:
    found = row(report_of(case).runs[-1])
    assert found == read_table().get(str(case)), f"if this is meant: {COMMAND}"


def test_the_table_has_no_other_rows() -> None:
    assert set(read_table()) == {str(case) for case in CASES}, f"run {COMMAND}"


@pytest.mark.parametrize("case", [case for case in CASES if case.fused], ids=str)
def test_graphs_for_cuda_are_fused(case: Case, report_of: ReportOf) -> None:
    calls = report_of(case).runs[-1]
    assert not any("softmax" in name.lower() for name in calls.kernels), "attention is not one kernel"
    assert calls.library_calls == {}, "a bias is added by a call of its own"


@pytest.mark.parametrize("case", [case for case in FREE if case.stage == "vocoder.onnx"], ids=str)
def test_every_change_of_shape_plans_all_convolutions_anew(case: Case, stubs: Stubs, small: Path) -> None:
    # Why a batch should have few shapes.
    shapes = ((1, 64), (1, 64), (1, 80), (1, 64))
    first, same, other, back = measure(stubs, job(case, small / "model", shapes=shapes)).runs
    assert first.plans == first.executions > 0
    assert same.plans == 0
    assert other.plans == back.plans == first.plans


@pytest.mark.parametrize("case", FIXED, ids=str)
def test_a_recorded_run_is_replayed_as_one_launch(case: Case, stubs: Stubs, small: Path) -> None:
    report = measure(stubs, job(case, small / "model", runs=3, cuda_graph=True))
    assert report.error == ""
    recorded, *replayed = report.runs
    assert recorded.captures == 1
    assert recorded.recorded_calls > 0
    assert recorded.refused == []
    for run in replayed:
        assert (run.replays, run.launches, run.waits, run.mallocs, run.copies.total()) == (1, 0, 0, 0, 0)


# The folder of an exported model of full size. It takes as much of the host's memory as its weights on a GPU.
FULL_SIZE = "MKC_FAST_FULL_SIZE_MODEL"


@pytest.mark.skipif(FULL_SIZE not in os.environ, reason=f"{FULL_SIZE} names no model")
@every_case
def test_at_full_size_a_steady_run_stays_on_the_device(case: Case, stubs: Stubs) -> None:
    model = Path(os.environ[FULL_SIZE])
    if not (model / case.file).is_file():
        pytest.skip(f"the model has no {case.file}")
    report = measure(stubs, job(case, model, runs=3))
    steady = report.runs[-1]
    assert (report.error, report.memcpy_nodes, report.opened.wrong, steady.wrong) == ("", 0, [], [])
    assert (steady.waits, steady.mallocs, steady.plans, steady.host_copies, steady.null_stream) == (0, 0, 0, 0, 0)
    assert steady.launches > 0


def test_the_docs_have_the_launches_of_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
    for graph, shown in (("wavlm", "WavLM"), ("conformer", "conformer"), ("vocoder", "vocoder")):
        forms = [f"{graph}{form}.onnx, fixed sizes" for form in ("", ".cuda", ".fp16", ".cuda.fp16")]
        cells = " | ".join(str(read_table()[form]["launches"]) for form in forms)
        assert f"| {shown} | {cells} |" in page
