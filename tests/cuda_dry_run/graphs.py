"""Which graphs are run dry, and how the product opens them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mkc_fast.engine.artifacts import ModelInfo, read_model_info
from mkc_fast.engine.options import Buckets, Tuning
from mkc_fast.engine.sessions.providers import Plan, cuda_options, free_dimensions, session_settings
from mkc_fast.export import build_bank, export_model
from mkc_fast.export.random_checkpoints import write_checkpoints
from mkc_fast.names import CUDA, FP16, FP32, VOCODER_FILE
from tests.fakes.cuda.dry_run.sessions import Job

# What a test runs: so many utterances of so many frames.
ROWS, FRAMES = 2, 256
_FRAMES_PER_SECOND = 50


@dataclass(frozen=True)
class Case:
    """A file of a model, opened with free or with fixed sizes."""

    file: str
    fixed: bool = False

    @property
    def stage(self) -> str:
        """The graph's name in its first form: ``wavlm.onnx`` of ``wavlm.fp16.onnx``."""
        return f"{self.file.split('.')[0]}.onnx"

    def plan(self, *, cuda_graph: bool = False) -> Plan:
        """How the product opens it."""
        precision = FP16 if ".fp16." in self.file else FP32
        buckets = Buckets(ROWS, (FRAMES + 0.5) / _FRAMES_PER_SECOND, FRAMES, fixed=True) if self.fixed else None
        return Plan(CUDA, precision, index=0, tuning=Tuning(buckets, cuda_graph=cuda_graph), fused=self.fused)

    @property
    def fused(self) -> bool:
        """Whether it is of the fused operators that the provider has."""
        return ".cuda." in self.file

    def __str__(self) -> str:
        return f"{self.file}, {'fixed' if self.fixed else 'free'} sizes"


# A new file of a model is added here.
FILES = (
    "wavlm.onnx",
    "conformer.onnx",
    "vocoder.onnx",
    "wavlm.fp16.onnx",
    "conformer.fp16.onnx",
    "vocoder.fp16.onnx",
    "wavlm.cuda.onnx",
    "conformer.cuda.onnx",
    "vocoder.cuda.onnx",
    "wavlm.cuda.fp16.onnx",
    "conformer.cuda.fp16.onnx",
    "vocoder.cuda.fp16.onnx",
)
FREE = tuple(Case(file) for file in FILES)
FIXED = tuple(Case(file, fixed=True) for file in FILES)
CASES = FREE + FIXED


def write_artifacts(folder: Path) -> None:
    """Write a small ``model``, with all its forms, and a ``bank``, with random weights."""
    made = write_checkpoints(folder, num_kmeans=12)
    export_model(made.wavlm, made.ckpt, folder / "model", half=True, cuda=True)
    build_bank(made.kmeans_scp, folder / "bank")


def _sizes(case: Case, info: ModelInfo, rows: int, frames: int) -> dict[str, int]:
    """The free axes of a graph's inputs and outputs."""
    samples = frames * info.hop if case.stage == VOCODER_FILE else frames * info.hop + info.min_samples - 1
    return {"batch": rows, "frames": frames, "samples": samples}


def job(
    case: Case,
    model: Path,
    *,
    runs: int = 1,
    shapes: Sequence[tuple[int, int]] = ((ROWS, FRAMES),),
    cuda_graph: bool = False,
) -> Job:
    """A graph as the product opens it, run so often in each of these shapes: utterances and frames."""
    info, plan = read_model_info(model), case.plan(cuda_graph=cuda_graph)
    settings = session_settings(plan)
    return Job(
        str(model / case.file),
        [_sizes(case, info, *shape) for shape in shapes for _ in range(runs)],
        cuda_options(plan, case.stage),
        free_dimensions(plan, case.stage, info),
        settings.attributes,
        settings.entries,
        record=cuda_graph,
    )
