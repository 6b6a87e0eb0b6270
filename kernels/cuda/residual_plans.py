"""How a pair of the vocoder's residual blocks is divided over a GPU, and how its weights are packed: on sizes only.

The kernel is in ``residual.cu``, which also says what a step and a group are. Not yet run on a GPU: which of the plans
that fit is fastest is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# These equal the constants of residual.cu.
STAGES = 3
WARP_FRAMES = 64
WIDE_GROUPS, WIDE_STEPS = 4, 2
NARROW_GROUPS, NARROW_STEPS = 2, 4

LEAST_CAPABILITY = (8, 0)
MAX_WIDTH = 512

_WARP = 32
_MAX_WARPS = 8
_GROUP = 16  # channels out of a group, channels in of a step
_STEP_BYTES = 512  # of a group: 16 × 16 float16
# What the driver keeps of a multiprocessor's shared memory for each block that it runs.
_RESERVED_BYTES = 1024
# Of a multiprocessor of an H100, in a clock, for choosing only: float16 multiply-adds that mma.sync reaches, and bytes
# from the second-level cache.
_PRODUCTS_PER_CLOCK = 1300
_BYTES_PER_CLOCK = 24


@dataclass(frozen=True)
class PairShape:
    """A pair of convolutions: x + conv2(lrelu(conv1(lrelu(x)))).

    Attributes:
        width: Channels.
        kernel_size: Taps of both convolutions.
        dilation: Of the first; the second has none.
    """

    width: int
    kernel_size: int
    dilation: int

    @property
    def reach(self) -> int:
        """Frames to either side that conv2 reads."""
        return self.kernel_size // 2

    @property
    def wide(self) -> bool:
        """Whether a warp makes 64 channels, or else 32: none for nothing, where at most 8 warps can do that."""
        return self.width % (WIDE_GROUPS * _GROUP) == 0 or self.width > NARROW_GROUPS * _GROUP * _MAX_WARPS

    @property
    def steps(self) -> int:
        """Steps of one convolution."""
        return self.kernel_size * _ceil(self.width, _GROUP)


@dataclass(frozen=True)
class ResidualPlan:
    """How the frames of a window are divided into blocks of a pair's kernel.

    Attributes:
        shape: The pair.
        warps_across: Warps that share the channels out.
        warps_down: Warps that share the frames.
        resident: Blocks of a multiprocessor at a time, as far as shared memory and registers say.
    """

    shape: PairShape
    warps_across: int
    warps_down: int
    resident: int

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return "residual_pair_wide" if self.shape.wide else "residual_pair_narrow"

    @property
    def groups(self) -> int:
        """Groups that are computed; those past the width are zeros."""
        return (WIDE_GROUPS if self.shape.wide else NARROW_GROUPS) * self.warps_across

    @property
    def steps_per_stage(self) -> int:
        """Steps whose weights lie together in the ring."""
        return WIDE_STEPS if self.shape.wide else NARROW_STEPS

    @property
    def stages(self) -> int:
        """Stages of one convolution; steps past the last are zeros."""
        return _ceil(self.shape.steps, self.steps_per_stage)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return _WARP * self.warps_across * self.warps_down

    @property
    def rows(self) -> int:
        """Frames that a block computes, of both convolutions."""
        return WARP_FRAMES * self.warps_down

    @property
    def kept(self) -> int:
        """Frames that a block writes: those of which it has all that conv2 reads."""
        return self.rows - 2 * self.shape.reach

    @property
    def tile_rows(self) -> int:
        """Frames that a block reads."""
        return self.rows + 2 * self.shape.reach * self.shape.dilation

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the tile, each row 16 bytes longer than its channels, then the ring of weights."""
        ring = STAGES * self.steps_per_stage * self.groups * _STEP_BYTES
        return self.tile_rows * (2 * self.shape.width + 16) + ring

    @property
    def packed_halves(self) -> int:
        """Numbers in the packed weights of both convolutions."""
        return 2 * self.stages * self.steps_per_stage * self.groups * (_STEP_BYTES // 2)

    @property
    def products(self) -> int:
        """Multiply-adds of the tensor cores, of a block."""
        return 2 * self.shape.steps * self.groups * _GROUP * _GROUP * self.rows

    def tiles(self, frames: int) -> int:
        """Blocks of a window of so many frames."""
        return _ceil(frames, self.kept)

    def clocks_per_frame(self) -> float:
        """An estimate of a multiprocessor's time for a frame, for choosing between plans: not measured."""
        row_bytes = 2 * self.shape.width
        moved = (self.tile_rows + 2 * self.kept) * row_bytes / _BYTES_PER_CLOCK
        weights = 2 * self.packed_halves / _BYTES_PER_CLOCK
        products = self.products / _PRODUCTS_PER_CLOCK
        # With another block beside it, one moves frames while the other multiplies.
        clocks = max(products, weights) + moved if self.resident == 1 else max(products, weights + moved)
        return clocks / self.kept


def make_plan(
    shape: PairShape, shared_bytes_per_block: int, shared_bytes_per_multiprocessor: int
) -> ResidualPlan | None:
    """Choose the plan with the lowest estimate, or None if no plan fits.

    Args:
        shape: Widths are multiples of 16 up to 512, kernel sizes odd, dilations from 1; others have no plan.
        shared_bytes_per_block: Shared memory that one block can have, when asked for.
        shared_bytes_per_multiprocessor: Shared memory that the blocks of one multiprocessor share.
    """
    fitting = plans(shape, shared_bytes_per_block, shared_bytes_per_multiprocessor)
    return min(fitting, key=lambda plan: plan.clocks_per_frame(), default=None)


def plans(
    shape: PairShape, shared_bytes_per_block: int, shared_bytes_per_multiprocessor: int
) -> tuple[ResidualPlan, ...]:
    """All plans that fit; arguments as in ``make_plan``."""
    width = shape.width
    if width < _GROUP or width % _GROUP or width > MAX_WIDTH or shape.kernel_size < 1 or shape.kernel_size % 2 == 0:
        return ()
    if shape.dilation < 1:
        return ()
    across = _ceil(width, _GROUP * (WIDE_GROUPS if shape.wide else NARROW_GROUPS))
    # Of registers there are enough for 8 warps of the wide kernel, for 16 of the narrow one.
    most = _MAX_WARPS if shape.wide else 2 * _MAX_WARPS
    fitting = []
    for down in range(1, _MAX_WARPS // across + 1):
        single = ResidualPlan(shape, across, down, 1)
        room = shared_bytes_per_multiprocessor // (single.shared_bytes + _RESERVED_BYTES)
        if single.kept >= 1 and room >= 1 and single.shared_bytes <= shared_bytes_per_block:
            fitting.append(ResidualPlan(shape, across, down, min(room, most // (across * down))))
    return tuple(fitting)


def pack_weights(plan: ResidualPlan, first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float16]:
    """The weights of a pair, in the order in which lanes read them.

    Args:
        plan: The plan; all plans of a shape take the same order.
        first: (width, width, kernel size): channels out, channels in, taps. Of conv1.
        second: The same, of conv2.

    Returns:
        (``plan.packed_halves``,) float16: by convolution, stage, step, group, lane, then the lane's 8 numbers: of the
        first 8 columns of the group's product those of 4 rows, then of the last 8 columns.
    """
    width, kernel_size = plan.shape.width, plan.shape.kernel_size
    columns = plan.groups * _GROUP
    steps = plan.stages * plan.steps_per_stage
    lane, number = np.arange(_WARP)[:, None], np.arange(8)[None, :]
    eight, row_half, row_odd = number // 4, number // 2 % 2, number % 2
    rows = 2 * (lane % 4) + 8 * row_half + row_odd  # channel in, of the step's
    column = lane // 4  # of 8
    places = 4 * (column // 2) + 2 * eight + column % 2  # channel out, of the group's
    packed = np.zeros((2, steps, plan.groups, _WARP, 8), np.float16)
    for which, weights in enumerate((first, second)):
        if weights.shape != (width, width, kernel_size):
            raise ValueError(f"weights of shape {weights.shape}, not {(width, width, kernel_size)}")
        padded = np.zeros((columns, width, kernel_size), np.float16)
        padded[:width] = weights
        # (taps, blocks of channels in, channels in; groups, channels out)
        ordered = padded.transpose(2, 1, 0).reshape(plan.shape.steps, _GROUP, plan.groups, _GROUP)
        packed[which, : plan.shape.steps] = ordered[:, rows, :, places].transpose(2, 3, 0, 1)
    return packed.reshape(-1)


def _ceil(amount: int, part: int) -> int:
    return -(-amount // part)
