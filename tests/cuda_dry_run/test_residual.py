"""The vocoder in stages over the stubs: what ONNX Runtime makes of them, and the kernel between them with CuPy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from mkc_fast.engine.options import Tuning
from mkc_fast.engine.sessions.providers import Plan, cuda_options
from mkc_fast.export.graphs.residual_stages import CutVocoder, cut_vocoder
from mkc_fast.kernels.cuda.residual_stages import stage_file
from mkc_fast.names import CUDA, FP16, VOCODER_FILE
from tests.engine.passes.test_residual_vocoder import DILATIONS, DIM, HOP, SIZES, vocoder
from tests.fakes.cuda.dry_run.build import Stubs
from tests.fakes.cuda.dry_run.programs import run_python
from tests.fakes.cuda.dry_run.sessions import Job, measure

OPTIONS = cuda_options(Plan(CUDA, FP16, 0, tuning=Tuning(prefer_nhwc=True)), VOCODER_FILE)
FRAMES = 31

PROGRAM = f"""
import sys
from pathlib import Path
import cupy, numpy as np
from mkc_fast.onnx_runtime import ort
from mkc_fast.engine.passes.residual_vocoder import ResidualVocoder
from mkc_fast.engine.sessions.shaped import StagedSessions
from mkc_fast.kernels.cuda.residual_stages import StagedBlocks, stage_file
folder, stages = Path(sys.argv[1]), StagedBlocks.read(Path(sys.argv[1]))
with cupy.cuda.Stream(non_blocking=True) as stream:
    provider = ("CUDAExecutionProvider", {OPTIONS!r} | {{"user_compute_stream": str(stream.ptr)}})
    def opened(number, sizes):
        return ort.InferenceSession(str(folder / stage_file(number)), providers=[provider])
    vocoder = ResidualVocoder(cupy, 0, StagedSessions(stages, opened), {HOP})
    features = cupy.empty((2, {FRAMES}, {DIM}), np.float32)
    for _ in range(2):
        assert vocoder.run(features).shape == (2, {FRAMES * HOP})
    stream.synchronize()
"""


@pytest.fixture
def cut(tmp_path: Path) -> CutVocoder:
    made = cut_vocoder(vocoder())
    made.write(tmp_path)
    return made


def test_no_stage_transposes_or_copies_although_frames_come_first(
    stubs: Stubs, cut: CutVocoder, tmp_path: Path
) -> None:
    before = [1, *(stage.frames for stage in cut.stages.stages)]
    for number, frames in enumerate(before):
        following = before[number + 1] if number + 1 < len(before) else 0
        sizes = {"batch": 2, "frames": FRAMES, "samples": FRAMES * HOP}
        sizes |= {"cut_frames": FRAMES * frames, "next_frames": FRAMES * following}
        report = measure(stubs, Job(str(tmp_path / stage_file(number)), [sizes] * 3, OPTIONS))
        assert report.error == ""
        # The first has features whose channels are last, as the product takes them.
        assert report.operators["Transpose"] == 0
        assert report.memcpy_nodes == 0
        steady = report.runs[-1]
        assert (steady.waits, steady.mallocs, steady.plans, steady.host_copies) == (0, 0, 0, 0)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_the_kernel_launches_between_the_stages_and_nothing_is_wrong(
    stubs: Stubs, cut: CutVocoder, tmp_path: Path
) -> None:
    calls = run_python(stubs, PROGRAM, tmp_path, [str(tmp_path)], cupy_cache=tmp_path / "cupy").calls
    assert calls.wrong == []
    assert calls.kernels["residual_pair_narrow"] == 2 * len(cut.stages.stages) * len(SIZES) * len(DILATIONS)
