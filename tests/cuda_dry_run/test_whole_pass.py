"""The whole pass over the stubs, with the real CuPy: its calls, its waits, and too little memory."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mkc_fast.engine.audio.write import write_waveform
from tests.conftest import MakeOnce
from tests.cuda_dry_run.passes import RATE
from tests.fakes.cuda.dry_run.build import Stubs
from tests.fakes.cuda.dry_run.calls import Calls
from tests.fakes.cuda.dry_run.programs import ProgramError, run_python

pytestmark = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")

PASSES = "import sys; from tests.cuda_dry_run.passes import main; main(*sys.argv[1:])"
COMMAND = "import sys; from mkc_fast.cli import main; sys.exit(main())"
# WavLM, the conformer and the vocoder.
GRAPHS = 3
MIXED = [0.4, 1.0, 3.0, 10.0]
# Of attention in half precision: ONNX Runtime (1.31) keeps them by a hash of memory that is in part uninitialized, and
# so sometimes makes one again. A session of the vocoder alone has 78.
_ATTENTION_PLANS = 12

Steps = dict[str, Calls]


@pytest.fixture(scope="session")
def cupy_cache(stubs: Stubs, make_once: MakeOnce) -> Path:
    """Where CuPy keeps what it compiled, for all tests."""
    return make_once("cupy-cache", lambda _: None)


@pytest.fixture
def steps_of(stubs: Stubs, small: Path, cupy_cache: Path, tmp_path: Path) -> Callable[..., Steps]:
    """What each step of a function of ``passes`` called; none of it is wrong."""

    def done(what: str, memory_mb: int | None = None, **how: Any) -> Steps:
        out = tmp_path / "steps.json"
        arguments = [what, str(small / "model"), str(small / "bank"), str(out), json.dumps(how)]
        program = run_python(stubs, PASSES, tmp_path, arguments, memory_mb=memory_mb, cupy_cache=cupy_cache)
        _check(program.calls)
        return {name: Calls.from_json(calls) for name, calls in json.loads(out.read_text())}

    return done


def _check(calls: Calls) -> None:
    assert calls.redirected > 0, "CuPy ran over a CUDA runtime of its own"
    assert calls.wrong == []
    assert calls.refused == []


def _check_steady(calls: Calls) -> None:
    """One wait, one copy to the device, one back, nothing allocated, nothing in the null stream."""
    assert calls.waits == 1
    assert (calls.copies["H2D async"], calls.copies["D2H async"], calls.host_copies) == (1, 1, 2)
    assert (calls.mallocs, calls.frees, calls.pins) == (0, 0, 0)
    assert calls.null_stream == 0
    assert calls.launches > 0


@pytest.mark.parametrize("precision", ["fp32", "tf32", "mixed", "fp16"])
def test_utterances_alone_wait_once(precision: str, steps_of: Callable[..., Steps]) -> None:
    # The first of each length opens sessions, and waits for their weights. The arena may grow in the rounds after it.
    lengths = [0.1, 1, 3, 0.1001, 1.01, 2.96, 0.1002, 1.02, 3.01, 0.1003, 1.03, 3.02, 0.1004, 1.04, 3.03]
    steps = steps_of("alone", lengths=lengths, precision=precision)
    for name in ("0.1004 s", "1.04 s", "3.03 s"):
        _check_steady(steps[name])
        assert steps[name].plans <= _ATTENTION_PLANS


@pytest.mark.parametrize("precision", ["mixed", "fp16"])
def test_a_shuffled_corpus_neither_plans_nor_waits_nor_allocates_after_its_warm_up(
    precision: str, steps_of: Callable[..., Steps]
) -> None:
    steps = steps_of("corpus", hours=2, batch_s=240, precision=precision)
    batches = [calls for name, calls in steps.items() if name.startswith("batch")]
    assert len(batches) > 30
    for calls in batches:
        _check_steady(calls)
    assert sum(calls.plans for calls in batches) <= _ATTENTION_PLANS


@pytest.mark.parametrize("precision", ["mixed", "fp16"])
def test_recorded_batches_are_one_launch_a_graph(precision: str, steps_of: Callable[..., Steps]) -> None:
    steps = steps_of("corpus", hours=0.5, batch_s=60, precision=precision, tuning={"record_batches": True})
    assert steps["warm-up"].captures % GRAPHS == 0
    assert steps["warm-up"].captures > 2 * GRAPHS
    batches = [calls for name, calls in steps.items() if name.startswith("batch")]
    assert len(batches) > 20
    for calls in batches:
        _check_steady(calls)
        assert calls.replays == GRAPHS
        assert (calls.captures, calls.plans, calls.gemms, calls.executions) == (0, 0, 0, 0)


@pytest.mark.parametrize("record_batches", [False, True])
def test_the_residual_kernel_is_a_part_of_a_steady_run(record_batches: bool, steps_of: Callable[..., Steps]) -> None:
    tuning = {"residual_kernel": True, "record_batches": record_batches}
    steps = steps_of("corpus", hours=0.5, batch_s=60, precision="fp16", tuning=tuning)
    batches = [calls for name, calls in steps.items() if name.startswith("batch")]
    for calls in batches:
        _check_steady(calls)
        assert any(name.startswith("residual_pair") for name in calls.kernels)
        assert calls.replays == (GRAPHS - 1 if record_batches else 0)
    assert sum(calls.plans for calls in batches) <= _ATTENTION_PLANS


@pytest.mark.parametrize("lengths", [MIXED, [2.0, 2.0, 2.0]], ids=["mixed", "equal"])
def test_a_steady_batch_waits_once_and_allocates_nothing(lengths: list[float], steps_of: Callable[..., Steps]) -> None:
    steps = steps_of("batches", lengths=lengths, times=4)
    for number in (3, 4):  # the first opens sessions, which allocate in their second run, too
        _check_steady(steps[f"batch {number}"])
        assert steps[f"batch {number}"].plans <= _ATTENTION_PLANS


def test_batches_in_flight_are_not_waited_for_before_their_results(steps_of: Callable[..., Steps]) -> None:
    steps = steps_of("in_flight", lengths=[1.0, 2.0, 0.5], count=3)
    assert steps["submitted"].waits == 0
    assert steps["submitted"].launches > 0
    assert steps["collected"].waits == 3
    assert steps["collected"].launches == 0


def test_long_recordings_run_in_windows(steps_of: Callable[..., Steps]) -> None:
    steps = steps_of("alone", lengths=[9, 30], max_window_s=8)
    assert steps["30 s"].waits == 1
    assert steps["30 s"].launches > steps["9 s"].launches
    assert steps["30 s"].null_stream == 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_latency_sizes_are_recorded_once_and_then_replayed(precision: str, steps_of: Callable[..., Steps]) -> None:
    # Each graph of each size once; of the vocoder also its window of the end.
    lengths = [0.9, 2, 0.91, 2.01, 0.92]
    steps = steps_of("alone", lengths=lengths, latency_buckets_s=[1, 3], precision=precision)
    assert steps["load"].captures >= 2 * GRAPHS
    for length in lengths:
        calls = steps[f"{length:g} s"]
        assert calls.captures == 0
        assert calls.replays >= GRAPHS
        assert (calls.gemms, calls.executions, calls.plans) == (0, 0, 0)
    _check_steady(steps["0.92 s"])


def test_a_size_without_a_recording_is_not_recorded(steps_of: Callable[..., Steps]) -> None:
    steps = steps_of("alone", lengths=[5], latency_buckets_s=[1])
    assert (steps["5 s"].captures, steps["5 s"].replays) == (0, 0)
    assert steps["5 s"].executions > 0


def test_a_batch_that_does_not_fit_runs_in_parts(steps_of: Callable[..., Steps]) -> None:
    utterances = 64
    steps = steps_of("too_little_memory", lengths=[5] * utterances, free_mb=30)
    assert steps["does not fit"].short > 0
    # A failed batch gives its memory back: the parts are of several utterances, not of one.
    assert 1 < steps["does not fit"].copies["D2H async"] < utterances


def test_a_batch_that_the_arena_is_too_small_for_runs_in_parts(steps_of: Callable[..., Steps]) -> None:
    steps = steps_of("small_arena", lengths=[5] * 64, arena_mb=16)
    assert steps["does not fit"].waits > 1
    assert steps["does not fit"].short == 0


@pytest.mark.parametrize(("dim", "clusters"), [(64, 32), (768, 1024), (1024, 1024)])
def test_the_lookup_launches_what_cuda_takes_at_any_size(
    dim: int, clusters: int, steps_of: Callable[..., Steps]
) -> None:
    frames = [1, 50, 1499, 20000]
    steps = steps_of("lookup", dim=dim, clusters=clusters, frames=frames, memory_fraction=0.5)
    assert "resident: True" in steps
    for count in frames:
        again = steps[f"{count} frames, again"]
        assert (again.waits, again.mallocs, again.null_stream) == (0, 0, 0)
        assert again.kernels


def test_a_bank_that_does_not_fit_is_copied_in_through_page_locked_memory(steps_of: Callable[..., Steps]) -> None:
    entry_bytes, memory_mb = 1024 * 256 * 4, 1000
    fraction = 8 * entry_bytes / (memory_mb << 20)
    how = {"dim": 256, "clusters": 1024, "frames": [240], "memory_fraction": fraction}
    steps = steps_of("lookup", memory_mb=memory_mb, **how)
    assert "resident: False" in steps
    again = steps["240 frames, again"]
    assert again.copied_bytes["H2D"] >= 16 * entry_bytes
    assert again.copies["H2D pageable"] == again.copies["H2D sync"] == again.null_stream == 0


@pytest.mark.parametrize("options", [(), ("--num-proc", "2")], ids=["one worker", "two workers"])
def test_infer_writes_every_file(
    options: tuple[str, ...], stubs: Stubs, small: Path, cupy_cache: Path, tmp_path: Path
) -> None:
    rng, listed, out = np.random.default_rng(0), tmp_path / "wav.scp", tmp_path / "out"
    for index, seconds in enumerate((0.5, 1, 2, 3, 45)):
        waveform = rng.uniform(-0.1, 0.1, int(RATE * seconds)).astype(np.float32)
        write_waveform(tmp_path / f"u{index}.wav", waveform, RATE)
    listed.write_text("".join(f"u{index} {tmp_path}/u{index}.wav\n" for index in range(5)))
    arguments = ["infer", "--audio-scp", str(listed), "--output-dir", str(out), "--gpus", "cuda:0", *options]
    arguments += ["--model", str(small / "model"), "--bank", str(small / "bank")]
    try:
        program = run_python(stubs, COMMAND, tmp_path, arguments, cupy_cache=cupy_cache)
    except ProgramError as error:
        # Nothing is computed: cluster ids may be what their memory held before, and are refused if that is none.
        assert len(list(out.rglob("*.wav"))) + str(error).count("the look-up gave cluster ids") == 5  # noqa: PT017
        return
    assert len(list(out.rglob("*.wav"))) == 5
    _check(program.calls)
    assert program.calls.launches > 0
    # The weights of each graph, which a worker maps from their file.
    assert program.calls.copies["H2D pageable"] <= GRAPHS * (2 if options else 1)
    assert program.calls.copies["D2H pageable"] == 0
