"""The vocoder in stages on a CUDA device: ONNX Runtime's graphs, with the kernel of the residual blocks between them.

Not yet run on a GPU. ``Tuning.residual_kernel`` makes it a part of the pass, and ``mkc_fast.benchmarks.gpu`` measures
it beside the whole graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.sessions.shaped import queued_options
from mkc_fast.errors import DeviceError
from mkc_fast.kernels.cuda.residual import DeviceResidual

if TYPE_CHECKING:
    from mkc_fast.engine.sessions.shaped import StagedSessions
    from mkc_fast.kernels.cuda.residual import PlacedPair
    from mkc_fast.onnx_runtime import ort


class ResidualVocoder:
    """Features → waveforms, through the graphs and blocks of a vocoder that ``export`` has cut.

    Args:
        cupy: The module.
        index: Of the device; it is the current one in all calls.
        staged: The graphs, on the stream that is current in ``run``, and the blocks between them.
        hop: Samples a feature.

    Raises:
        DeviceError: The device is too old for the kernel, or has no room for a stage's blocks.
    """

    def __init__(self, cupy: Any, index: int, staged: StagedSessions, hop: int) -> None:
        self._cupy, self._index, self._sessions, self._hop = cupy, index, staged, hop
        self._residual = DeviceResidual(cupy, cupy.cuda.Device(index))
        self._stages: list[tuple[int, int, list[list[PlacedPair]]]] = []
        for number, stage in enumerate(staged.blocks.stages):
            placed = []
            for block in stage.blocks:
                pairs = [self._residual.place(pair.weights, pair.biases, pair.dilation) for pair in block]
                if any(pair is None for pair in pairs):
                    raise DeviceError(
                        f"device cuda:{index}: no room for residual blocks of stage {number}, {stage.width} channels"
                    )
                placed.append([pair for pair in pairs if pair is not None])
            self._stages.append((stage.frames, stage.width, placed))
        self._options = queued_options()

    def run(self, features: Any) -> Any:
        """Queue (batch, T, D) float32 → (batch, T * hop) float32."""
        batch, frames, _ = features.shape
        x, name = features, "features"
        for number, (per_feature, width, blocks) in enumerate(self._stages):
            session = self._sessions.get(number, batch, frames)
            y = self._run(session, name, x, "y", (batch, frames * per_feature, width), np.float16)
            x, name = self._residual.run_blocks(blocks, y), "x"
        last = self._sessions.get(len(self._stages), batch, frames)
        return self._run(last, name, x, "waveform", (batch, frames * self._hop), np.float32)

    def _run(
        self, session: ort.InferenceSession, source: str, x: Any, target: str, shape: tuple[int, ...], dtype: type
    ) -> Any:
        made = self._cupy.empty(shape, dtype)
        binding = session.io_binding()
        binding.bind_input(source, "cuda", self._index, x.dtype.type, x.shape, x.data.ptr)
        binding.bind_output(target, "cuda", self._index, dtype, shape, made.data.ptr)
        session.run_with_iobinding(binding, self._options)
        return made
