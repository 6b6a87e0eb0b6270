"""Everything that only a GPU can tell: first whether its results are right, then how fast it is.

python -m mkc_fast.benchmarks.gpu [--device cuda:0] [--out FILE] [--work DIR] [--only PART ...] [--budget-s 460]

The parts, in their order: libraries (they load and compute), making (a model of the published size and a bank of 1,165
entries, of random weights), lookup (ids equal to the CPU's, and times), ceilings (copies and matrix products),
correctness (every stage beside the CPU, on recorded speech), vocoder (one shape, NCHW beside NHWC), residual
(its residual blocks by their kernel, beside a graph of them), throughput, floors,
latency, scaling (worker processes), memory, latency_searched.

FILE (in a clone by default benchmarks/results/gpu.json) is written after every figure. A part that fails is recorded
with its error, and the next one runs. A part has a share of the budget; what there is no time for is skipped, and says
so. After a mend, ``--only PART`` measures that part again and leaves the others in FILE; with ``--work DIR`` model and
bank are kept for it. ``--model`` and ``--bank`` measure artifacts of your own. ``--small`` runs everything on a small
model, in a minute: its times mean little.

It needs the extra cuda13 or cuda12, and export for the random weights. A PyTorch with CUDA is measured too, if there
is one.

With --rehearse every part runs on a CPU, on small models and on the stand-ins of tests/fakes/cuda of a clone
(--repository): that shows that the script works, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import signal
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkc_fast.benchmarks.common import result_parser
from mkc_fast.benchmarks.gpu.artifacts import make_model, start_making
from mkc_fast.benchmarks.gpu.bench import (
    RATE,
    REHEARSAL,
    SMALL,
    Bench,
    Late,
    Sizes,
    denied,
    one_line_of,
    rounded,
    unhappy,
)
from mkc_fast.benchmarks.gpu.correctness import correctness
from mkc_fast.benchmarks.gpu.latency import latency, latency_searched
from mkc_fast.benchmarks.gpu.libraries import libraries
from mkc_fast.benchmarks.gpu.lookup import ceilings, lookup
from mkc_fast.benchmarks.gpu.machine import Machine, Rehearsal
from mkc_fast.benchmarks.gpu.residual import residual
from mkc_fast.benchmarks.gpu.scaling import memory, scaling
from mkc_fast.benchmarks.gpu.throughput import floors, throughput
from mkc_fast.benchmarks.gpu.vocoder import vocoder
from mkc_fast.benchmarks.records import context, read_record
from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BUDGET_S = 460.0
# After the budget: a call that does not come back ends the process, with what is written.
_GRACE_S = 60.0


@dataclass(frozen=True)
class Part:
    """A part of the script.

    Attributes:
        measure: Fills the part's record.
        least_s: With fewer seconds left it is skipped.
        most_s: It is cut off after so many.
    """

    measure: Callable[[Bench, dict[str, Any]], None]
    least_s: float
    most_s: float


# In the order in which they are worth having, as far as one needs another.
PARTS = {
    "libraries": Part(libraries, 0, 40),
    "making": Part(start_making, 0, 90),
    "lookup": Part(lookup, 10, 60),
    "ceilings": Part(ceilings, 5, 30),
    "correctness": Part(correctness, 30, 220),
    "vocoder": Part(vocoder, 15, 50),
    "residual": Part(residual, 10, 60),
    "throughput": Part(throughput, 30, 120),
    "floors": Part(floors, 0, 5),
    "latency": Part(latency, 20, 90),
    "scaling": Part(scaling, 30, 80),
    "memory": Part(memory, 20, 60),
    "latency_searched": Part(latency_searched, 40, 90),
}
# Always run: what the others are measured on.
_NEEDED = "making"


def run_parts(bench: Bench, names: Sequence[str], budget_s: float) -> list[str]:
    """Run parts that there is time for, and write what they find; the places where something failed.

    Args:
        bench: What is measured; its result keeps the parts that are not run.
        names: Of the parts.
        budget_s: Seconds for all of them.
    """
    begin = time.perf_counter()
    end = begin + budget_s
    of = {**bench.machine.facts(), **{name: bench.result[name] for name in ("commit", "date")}}
    failed = []
    for name, part in PARTS.items():
        if name not in names and name != _NEEDED:
            continue
        at = time.perf_counter()
        found: dict[str, Any] = {"of": of}
        bench.result[name] = found
        bench.deadline = min(end, at + part.most_s)
        try:
            with _cut_off_at(bench.deadline):
                bench.check_time(part.least_s)
                part.measure(bench, found)
        except Late as late:
            found["skipped"] = str(late)
        except Exception as error:
            where = traceback.format_exc().strip().splitlines()[-8:]
            found |= {"failed": one_line_of(error), "where": where}
        found["part_s"] = time.perf_counter() - at
        bench.result[name] = rounded(found)
        bench.save()
        wrong = [*unhappy(found, "failed", name), *denied(found, name)]
        failed += wrong
        left_out = unhappy(found, "skipped", name)
        state = "; ".join(
            f"{word}: {', '.join(places)}" for word, places in (("failed", wrong), ("skipped", left_out)) if places
        )
        print(f"{time.perf_counter() - begin:6.1f} s  {name}: {state or 'done'}", flush=True)
    # Also of the parts that were kept.
    bench.result["failed"] = [
        place
        for name in PARTS
        for place in (*unhappy(bench.result.get(name), "failed", name), *denied(bench.result.get(name), name))
    ]
    bench.save()
    return failed


@contextlib.contextmanager
def _cut_off_at(deadline: float) -> Iterator[None]:
    """Raise Late in the block once it takes too long; a call into a library ends first."""

    def late(*_: object) -> None:
        raise Late("it was cut off: its share of the budget is used up")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, deadline - time.perf_counter()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def begun(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """The result to go on with: machine, versions and command, and the parts of FILE that are not measured again."""
    kept = {}
    if set(names) != set(PARTS) and out.is_file():
        kept = {name: value for name, value in read_record(out).items() if name in PARTS}
    return {**context(), **kept}


def demo_speech() -> Any:
    """The package's recording, (S,) float32 at 16 kHz."""
    from importlib.resources import as_file, files

    from mkc_fast.engine.audio.read import read_waveform

    with as_file(files("mkc_fast.cli") / "demo_speech.flac") as clip:
        return read_waveform(clip, RATE)


def options() -> argparse.ArgumentParser:
    """The script's options."""
    parser = result_parser(__doc__, "gpu")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--work", type=Path, help="a folder for model, bank and outputs (default: a temporary one)")
    parser.add_argument("--model", type=Path, help="a model of your own, with --bank")
    parser.add_argument("--bank", type=Path, help="a bank of your own, with --model")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help="these parts alone")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help=f"seconds (default: {BUDGET_S:g})")
    parser.add_argument("--small", action="store_true", help="everything, on a small model")
    parser.add_argument("--rehearse", action="store_true", help="every part, small, on a CPU")
    parser.add_argument("--repository", type=Path, help="the clone whose stand-ins a rehearsal runs on")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", default="large", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    parser = options()
    args = parser.parse_args()
    if args.make is not None:
        make_model(args.make, args.size)
        return 0
    if (args.model is None) != (args.bank is None):
        parser.error("--model and --bank go together")
    faulthandler.dump_traceback_later(args.budget_s + _GRACE_S, exit=True)
    names = args.only or list(PARTS)
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        try:
            machine = Rehearsal(args.repository) if args.rehearse else Machine(args.device)
        except MkcError as error:
            parser.exit(2, f"{error}\n")
        bench = Bench(
            machine,
            REHEARSAL if args.rehearse else SMALL if args.small else Sizes(),
            work,
            args.out.resolve(),
            demo_speech(),
            args.model.resolve() if args.model else work / "model",
            args.bank.resolve() if args.bank else work / "bank",
            result={"rehearsal": machine.rehearsal, "small": args.small, **begun(args.out, names)},
        )
        try:
            failed = run_parts(bench, names, args.budget_s)
        finally:
            faulthandler.cancel_dump_traceback_later()
            if bench.making is not None and bench.making.poll() is None:
                bench.making.kill()
    print(f"{args.out}: failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0
