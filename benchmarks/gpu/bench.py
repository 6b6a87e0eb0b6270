"""What the parts of the script share: sizes, artifacts, time, and the result, which is written after every figure."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast import Anonymizer
from mkc_fast.benchmarks.records import write_record
from mkc_fast.engine.options import EngineOptions
from mkc_fast.kernels.cuda.residual_counts import V1_STAGES
from mkc_fast.names import FP16, FP32, MIXED, TF32
from mkc_fast.text import one_line

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from mkc_fast.benchmarks.gpu.machine import Machine
    from mkc_fast.names import Precision

SEED = 7
RATE = 16000
# What a run may choose on a GPU with the CUDA provider, in the order in which it is worth measuring.
GPU_PRECISIONS: tuple[Precision, ...] = (FP16, MIXED, TF32, FP32)


@dataclass(frozen=True)
class Sizes:
    """How much each part does.

    Attributes:
        model: Of the random weights.
        entries: Of the bank.
        clusters: Of each entry.
        precisions: In the order in which they are worth having.
        check_s: Lengths of speech that are compared with the CPU.
        window_s: Of a long recording, where it is compared.
        lookup_frames: Frames of one look-up.
        few_entries: Entries that these frames are drawn from, where an entry has many.
        gemm: Rows, columns and depth of the matrix products.
        copy_bytes: Of the copies.
        vocoder: Windows and frames of the vocoder's one shape.
        residual: Widths of residual blocks, and frames of each a feature of the vocoder's.
        corpus_s: Audio of a throughput run.
        batches_s: Padded seconds that run at once.
        latencies_s: Lengths of single utterances, and sizes that are recorded for them.
        latency_runs: Timed runs of each.
        files_s: Audio in files, for worker processes.
        repeats: Timed runs of anything else.
    """

    model: str = "large"
    entries: int = 1165
    clusters: int = 1024
    precisions: tuple[Precision, ...] = GPU_PRECISIONS
    check_s: tuple[float, ...] = (0.4, 1.0, 3.0, 5.4, 20.0)
    window_s: float = 8.0
    lookup_frames: int = 12_000
    few_entries: int = 8
    gemm: int = 8192
    copy_bytes: int = 2 << 30
    vocoder: tuple[int, int] = (24, 500)
    residual: tuple[tuple[int, int], ...] = V1_STAGES
    corpus_s: float = 1800.0
    batches_s: tuple[float, ...] = (240.0, 480.0, 120.0)
    latencies_s: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    latency_runs: int = 60
    files_s: float = 3600.0
    repeats: int = 10


_SMALL: dict[str, Any] = {
    "model": "small", "entries": 12, "clusters": 32, "check_s": (0.4, 1.0, 9.0), "lookup_frames": 60, "few_entries": 2,
    "gemm": 64, "copy_bytes": 1 << 16, "vocoder": (2, 70), "residual": ((48, 2), (32, 4)), "corpus_s": 13.0,
    "batches_s": (4.0,), "latencies_s": (1.0,), "latency_runs": 2, "files_s": 13.0, "repeats": 2,
}  # fmt: skip
SMALL = Sizes(**_SMALL)
REHEARSAL = Sizes(**{**_SMALL, "precisions": (FP32,)})


class Late(Exception):
    """There is no time for more."""


@dataclass
class Bench:
    """What the parts share.

    Attributes:
        machine: What is measured.
        sizes: How much of it.
        work: Folder of artifacts and temporary files.
        out: The result file.
        speech: (S,) float32 at 16 kHz, recorded.
        model: Directory of the model.
        bank: Directory of the bank.
        making: The process that exports the model, while it runs or has run.
        result: What is written.
        deadline: Of the part that runs, on ``time.perf_counter``.
    """

    machine: Machine
    sizes: Sizes
    work: Path
    out: Path
    speech: NDArray[np.float32]
    model: Path
    bank: Path
    making: subprocess.Popen[bytes] | None = None
    result: dict[str, Any] = field(default_factory=dict)
    deadline: float = math.inf

    def check_time(self, least_s: float) -> None:
        """Stop where so many seconds are not left.

        Raises:
            Late: They are not.
        """
        left = self.deadline - time.perf_counter()
        if left < least_s:
            raise Late(f"{max(0.0, left):.0f} s are left, and it needs {least_s:g}")

    def figure(
        self, found: dict[str, Any], name: str, work: Callable[[], dict[str, Any]], *, least_s: float = 10.0
    ) -> None:
        """Add what a measurement finds, or why it found nothing, and write the result; the others go on."""
        begin = time.perf_counter()
        try:
            self.check_time(least_s)
            found[name] = rounded(work())
        except Late as late:
            found[name] = {"skipped": str(late)}
        except Exception as error:  # the other figures are still worth having
            found[name] = {"failed": one_line_of(error), "after_s": round(time.perf_counter() - begin, 1)}
        self.save()

    def save(self) -> None:
        """Write what there is, atomically."""
        write_record(self.out, self.result)

    def load(self, device: str | None = None, **how: Any) -> Anonymizer:
        """Open the artifacts with fields of ``EngineOptions``, after giving back the memory of those that were open."""
        gc.collect()
        self.machine.release()
        options = EngineOptions(cache=self.work / "cache", **how)
        return Anonymizer.load(self.model, self.bank, device or self.machine.device, options=options)

    def piece(self, seconds: float, seed: int) -> NDArray[np.float32]:
        """Recorded speech of this length, from a random place on."""
        from mkc_fast.benchmarks.utterances import cut

        return cut(self.speech, seconds, RATE, seed)

    def corpus(self, total_s: float) -> list[NDArray[np.float32]]:
        """Recorded speech in LibriSpeech's lengths, the longest first."""
        from mkc_fast.benchmarks.utterances import count_for, draw_lengths

        lengths = sorted(draw_lengths(count_for(total_s, least=1)), reverse=True)
        return [self.piece(seconds, seed) for seed, seconds in enumerate(lengths)]


def needs_half(precision: str) -> bool:
    """Whether a precision has graphs of its own, which are exported after those in float32."""
    return precision not in {FP32, TF32}


def one_line_of(error: Exception) -> str:
    """Type and text of an error, cut."""
    return one_line(f"{type(error).__name__}: {error}", 600)


def rounded(value: Any) -> Any:
    """Four digits of every number; what JSON has no number for as text."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return int(value) if isinstance(value, np.integer) else value


# What must be true in a result, wherever it stands.
_CLAIMS = ("passes", "ids_equal_the_cpus", "rows_are_the_centroids", "ids_from_equal_features_equal")


def denied(value: Any, path: str) -> list[str]:
    """Where in a result a claim of correctness is false: the names down to it, with dots between them."""
    if not isinstance(value, dict):
        return []
    here = [f"{path}.{name}" for name in _CLAIMS if value.get(name) is False]
    return here + [place for name, each in value.items() for place in denied(each, f"{path}.{name}")]


def unhappy(value: Any, word: str, path: str = "") -> list[str]:
    """Where in a result something failed or was skipped: the names down to it, with dots between them."""
    if not isinstance(value, dict):
        return []
    here = [path] if word in value and isinstance(value[word], str) else []
    return here + [
        place for name, each in value.items() for place in unhappy(each, word, f"{path}.{name}" if path else str(name))
    ]
