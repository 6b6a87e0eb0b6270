"""The vocoder in stages on a CUDA device: ONNX Runtime's graphs, with the kernel of the residual blocks between them.

Not yet run on a GPU, and not yet a part of the pass: ``mkc_fast.benchmarks.gpu`` measures it beside the whole graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.passes.device_graphs import queued_options
from mkc_fast.errors import DeviceError
from mkc_fast.kernels.cuda.residual import DeviceResidual

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mkc_fast.kernels.cuda.residual import PlacedPair
    from mkc_fast.kernels.cuda.residual_stages import StagedBlocks
    from mkc_fast.onnx_runtime import ort


class ResidualVocoder:
    """Features → waveforms, through the graphs and blocks of a vocoder that ``export`` has cut.

    Args:
        cupy: The module.
        index: Of the device; it is the current one in all calls.
        sessions: Of the graphs in their order, on the stream that is current in ``run``.
        stages: The blocks between them.
        hop: Samples a feature.

    Raises:
        DeviceError: The device is too old for the kernel, or has no room for a stage's blocks.
    """

    def __init__(
        self, cupy: Any, index: int, sessions: Sequence[ort.InferenceSession], stages: StagedBlocks, hop: int
    ) -> None:
        assert len(sessions) == len(stages.stages) + 1
        self._cupy, self._index, self._sessions, self._hop = cupy, index, sessions, hop
        self._residual = DeviceResidual(cupy, cupy.cuda.Device(index))
        self._stages: list[tuple[int, int, list[list[PlacedPair]]]] = []
        for number, stage in enumerate(stages.stages):
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
        for session, (per_feature, width, blocks) in zip(self._sessions, self._stages, strict=False):
            y = self._run(session, name, x, "y", (batch, frames * per_feature, width), np.float16)
            x, name = self._residual.run_blocks(blocks, y), "x"
        return self._run(self._sessions[-1], name, x, "waveform", (batch, frames * self._hop), np.float32)

    def _run(
        self, session: ort.InferenceSession, source: str, x: Any, target: str, shape: tuple[int, ...], dtype: type
    ) -> Any:
        made = self._cupy.empty(shape, dtype)
        binding = session.io_binding()
        binding.bind_input(source, "cuda", self._index, x.dtype.type, x.shape, x.data.ptr)
        binding.bind_output(target, "cuda", self._index, dtype, shape, made.data.ptr)
        session.run_with_iobinding(binding, self._options)
        return made
