"""The vocoder's residual blocks on a GPU, through CuPy: a pair of convolutions is one kernel. Not yet run on a GPU.

Everything is queued on the current stream, without waiting for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import DeviceError
from mkc_fast.kernels.cuda.device import CupyLauncher
from mkc_fast.kernels.cuda.residual_plans import LEAST_CAPABILITY, PairShape, ResidualPlan, make_plan, pack_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ALIGNMENT = 16
# Places of a window are numbered with 32 bits, in bytes.
_MAX_WINDOW_BYTES = 2**31


@dataclass(frozen=True)
class PlacedPair:
    """A pair of convolutions on a device.

    Attributes:
        plan: How it runs.
        weights: (``plan.packed_halves``,) float16.
        biases: (2, width) float32.
    """

    plan: ResidualPlan
    weights: Any
    biases: Any


class DeviceResidual:
    """Runs pairs and blocks of pairs on one CUDA device.

    Args:
        cupy: The module.
        device: The device of CuPy; it is the current one in all calls.

    Attributes:
        shared_bytes: Shared memory of a block, and of a multiprocessor.

    Raises:
        DeviceError: The device has a compute capability below 8.0.
    """

    def __init__(self, cupy: Any, device: Any) -> None:
        self._cupy = cupy
        attributes = device.attributes
        digits = device.compute_capability  # "90", "120"; among its attributes CuPy does not have it
        capability = int(digits[:-1]), int(digits[-1])
        if capability < LEAST_CAPABILITY:
            found, least = (".".join(map(str, version)) for version in (capability, LEAST_CAPABILITY))
            raise DeviceError(
                f"device cuda:{device.id}: compute capability {found}; the residual kernel needs {least} or later"
            )
        self.shared_bytes = (
            int(attributes["MaxSharedMemoryPerBlockOptin"]),
            int(attributes["MaxSharedMemoryPerMultiprocessor"]),
        )
        self._launcher = CupyLauncher(cupy, "mkc_fast.kernels.cuda", "residual.cu", "residual_pair_wide")

    def place(
        self,
        weights: NDArray[np.floating[Any]],
        biases: NDArray[np.floating[Any]],
        dilation: int,
        *,
        plan: ResidualPlan | None = None,
    ) -> PlacedPair | None:
        """Pack and copy a pair; None if no plan fits this device.

        Args:
            weights: (2, width, width, kernel size), of both convolutions: channels out, channels in, taps.
            biases: (2, width).
            dilation: Of the first.
            plan: One of ``plans`` for this device. Default: that of ``make_plan``.
        """
        plan = plan or make_plan(PairShape(weights[0].shape[0], weights[0].shape[2], dilation), *self.shared_bytes)
        if plan is None:
            return None
        packed = pack_weights(plan, weights[0], weights[1])
        return PlacedPair(plan, self._cupy.asarray(packed), self._cupy.asarray(biases.astype(np.float32)))

    def run(self, pair: PlacedPair, x: Any, out: Any, *, add: bool = False, scale: float = 1.0) -> None:
        """Write ``scale * (x + conv2(lrelu(conv1(lrelu(x)))))`` to ``out``, or add it to what is there.

        Args:
            pair: From ``place``.
            x: (batch, frames, width) float16, contiguous; zeros stand before and after each window.
            out: The same shape; another array, since blocks read frames that their neighbours write.
            add: Whether to add.
            scale: A factor.

        Raises:
            DeviceError: The arrays do not fit.
        """
        width = pair.plan.shape.width
        for name, array in (("x", x), ("out", out)):
            if array.dtype != np.float16 or array.ndim != 3 or not array.flags.c_contiguous:
                raise DeviceError(
                    f"{name} has {array.ndim} dimensions of {array.dtype}; expected 3 of float16, contiguous"
                )
            if array.shape[2] != width or array.shape != x.shape or array.data.ptr % _ALIGNMENT:
                raise DeviceError(
                    f"{name} has shape {array.shape} at {array.data.ptr:#x}; expected {(*x.shape[:2], width)} at a "
                    f"multiple of {_ALIGNMENT}"
                )
        batch, frames, _ = x.shape
        if not x.size:
            return
        if x.data.ptr < out.data.ptr + out.nbytes and out.data.ptr < x.data.ptr + x.nbytes:
            raise DeviceError("x and out overlap; blocks read frames that their neighbours write")
        if frames * width * 2 >= _MAX_WINDOW_BYTES:
            raise DeviceError(
                f"a window of {frames} frames of {width} channels is more than the residual kernel numbers"
            )
        plan = pair.plan
        tiles = plan.tiles(frames)
        sizes = (frames, width, plan.shape.kernel_size, plan.shape.dilation, plan.warps_across, tiles)
        previous = out if add else None
        self._launcher.launch(
            plan.kernel,
            batch * tiles,
            plan.threads,
            (x, pair.weights, pair.biases, previous, out, np.float32(scale), *(np.int32(size) for size in sizes)),
            plan.shared_bytes,
        )

    def run_blocks(self, blocks: Sequence[Sequence[PlacedPair]], x: Any, scale: float = 1.0) -> Any:
        """The sum of blocks of pairs, times ``scale``: (batch, frames, width) float16 → a new array of that shape.

        Each block starts at ``x``, which stays as it is. Its pairs go back and forth between two buffers; its last pair
        adds to the sum. With the sum that is three arrays of the size of ``x`` beside it.
        """
        total = self._cupy.empty(x.shape, np.float16)
        most = max(len(block) for block in blocks)
        buffers = [self._cupy.empty(x.shape, np.float16) for _ in range(min(2, most - 1))]
        for number, block in enumerate(blocks):
            source = x
            for index, pair in enumerate(block[:-1]):
                self.run(pair, source, buffers[index % 2])
                source = buffers[index % 2]
            self.run(block[-1], source, total, add=number > 0, scale=scale)
        return total
