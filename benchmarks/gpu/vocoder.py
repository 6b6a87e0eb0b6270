"""Fourth part: the vocoder in one shape, with channels first and with channels last."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.benchmarks.gpu.artifacts import wait_for_model
from mkc_fast.benchmarks.gpu.bench import RATE, SEED, needs_half
from mkc_fast.benchmarks.gpu.correctness import errors, limit_of
from mkc_fast.engine.artifacts import read_model_info
from mkc_fast.engine.options import EngineOptions, Tuning
from mkc_fast.engine.sessions.shaped import queued_options
from mkc_fast.names import CPU

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mkc_fast.benchmarks.gpu.bench import Bench
    from mkc_fast.benchmarks.gpu.machine import Machine
    from mkc_fast.names import Precision


@dataclass
class Bound:
    """A session with input and output in memory of the device, for runs of one shape.

    Args:
        session: An ``InferenceSession`` on the machine's stream, with one input and one output.
        values: The input.
        shape: Of the output.
    """

    machine: Machine
    session: Any
    values: NDArray[np.floating[Any]]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        machine = self.machine
        (source,), (target,) = self.session.get_inputs(), self.session.get_outputs()
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.input = machine.put(self.values.astype(kinds[source.type]))
        self.output = machine.empty(self.shape, kinds[target.type])
        self.binding = self.session.io_binding()
        self.binding.bind_input(
            source.name, "cuda", machine.index, kinds[source.type], self.values.shape, self.input.data.ptr
        )
        self.binding.bind_output(
            target.name, "cuda", machine.index, kinds[target.type], self.shape, self.output.data.ptr
        )
        self.options = queued_options()

    def run(self) -> None:
        """Queue a run."""
        self.session.run_with_iobinding(self.binding, self.options)


def vocoder(bench: Bench, found: dict[str, Any]) -> None:
    """Seconds of the vocoder for the same windows in every run, NCHW beside NHWC, after comparing with the CPU."""
    precision = bench.sizes.precisions[0]
    wait_for_model(bench, half=needs_half(precision))
    windows, frames = bench.sizes.vocoder
    info = read_model_info(bench.model)
    features = np.random.default_rng(SEED).standard_normal((windows, frames, info.dim)).astype(np.float32)
    expected = bench.load(CPU).vocode(features[0])
    for name, nhwc in (("NCHW", False), ("NHWC", True)):
        work = partial(_timed, bench, precision, features, expected, nhwc=nhwc)
        bench.figure(found, f"{precision}, {name}", work, least_s=8)


def _timed(
    bench: Bench, precision: Precision, features: NDArray[np.float32], expected: NDArray[np.float32], *, nhwc: bool
) -> dict[str, Any]:
    machine = bench.machine
    machine.release()
    tuning = Tuning(prefer_nhwc=nhwc)
    sessions = machine.open_sessions(bench.model, EngineOptions(machine.provider, precision, tuning=tuning))
    windows, frames, dim = features.shape
    bound = Bound(machine, sessions.vocoder, features, (windows, len(expected)))
    bound.run()
    found = machine.get(bound.output)[0].astype(np.float32)
    seconds = machine.timed(bound.run, bench.sizes.repeats)
    audio_s = windows * len(expected) / RATE
    against = errors([(found, expected)])
    return {
        "passes": against["relative_rms_error"] <= limit_of(precision), "against_the_cpu": against,
        "seconds": seconds, "s_per_audio_s": seconds / audio_s, "rtfx_of_the_vocoder_alone": audio_s / seconds,
        "precision": precision, "layout": "NHWC" if nhwc else "NCHW", "chosen": sessions.chosen,
        "shapes": {"features": [windows, frames, dim]}, "values": "random, normal",
    }  # fmt: skip
