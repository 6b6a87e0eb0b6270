"""What the vocoder's residual blocks multiply and move a second of audio: counted from plans, not measured."""

from __future__ import annotations

from dataclasses import dataclass

from mkc_fast.kernels.cuda.residual_plans import PairShape, ResidualPlan, make_plan

# HiFi-GAN V1 at 16 kHz with a hop of 320: features a second, and of each stage the width and frames a feature.
FEATURES_PER_S = 50
V1_STAGES = ((256, 10), (128, 80), (64, 160), (32, 320))
V1_KERNEL_SIZES = (3, 7, 11)
V1_DILATIONS = (1, 3, 5)

# Shared memory of an H100: of a block, of a multiprocessor.
H100_SHARED_BYTES = (227 << 10, 228 << 10)

# Of float16. One operation for each node: LeakyReLU, convolution, LeakyReLU, convolution read and write, the sum reads
# two. Where a bias is not in its convolution, that is one more operation which reads and writes.
_BYTES = 2
_PASSES_FUSED, _PASSES = 4 * 2 + 3, 6 * 2 + 3
_SUM_PASSES = 3


@dataclass(frozen=True)
class StageCounts:
    """The residual blocks of one stage, a second of audio.

    Attributes:
        width: Channels.
        needed: Floating-point operations (two a multiply-add) of the convolutions.
        computed: Those that the kernel does: with the frames that blocks compute and do not keep.
        least_bytes: Of device memory, if each pair reads and writes its frames once.
        kernel_bytes: With what the last pair of a block adds to.
        graph_bytes: Of a graph of one operation a node, where convolutions add their bias.
        unfused_bytes: The same, where they do not.
        cached_bytes: What the kernel reads from the second-level cache besides: halos, x for the residual, weights.
    """

    width: int
    needed: float
    computed: float
    least_bytes: float
    kernel_bytes: float
    graph_bytes: float
    unfused_bytes: float
    cached_bytes: float


def count_stage(
    width: int,
    frames: float,
    kernel_sizes: tuple[int, ...] = V1_KERNEL_SIZES,
    dilations: tuple[int, ...] = V1_DILATIONS,
    shared_bytes: tuple[int, int] = H100_SHARED_BYTES,
) -> StageCounts:
    """Count one stage's blocks, in windows long against a block's frames.

    Args:
        width: Channels.
        frames: A second of audio.
        kernel_sizes: One block each.
        dilations: One pair of a block each.
        shared_bytes: Of a block and of a multiprocessor.

    Raises:
        ValueError: A pair has no plan.
    """
    needed = computed = cached = 0.0
    for kernel_size in kernel_sizes:
        for dilation in dilations:
            plan = _planned(PairShape(width, kernel_size, dilation), shared_bytes)
            needed += frames * 4 * kernel_size * width**2
            computed += frames * 2 * plan.products / plan.kept
            again = (plan.tile_rows / plan.kept - 1) + 1  # the halo; x once more for the residual
            cached += frames * (again * width * _BYTES + plan.packed_halves * _BYTES / plan.kept)
    array = frames * width * _BYTES
    pairs, sums = len(kernel_sizes) * len(dilations), len(kernel_sizes) - 1
    return StageCounts(
        width=width,
        needed=needed,
        computed=computed,
        least_bytes=2 * pairs * array,
        kernel_bytes=(2 * pairs + sums) * array,
        graph_bytes=(_PASSES_FUSED * pairs + _SUM_PASSES * sums) * array,
        unfused_bytes=(_PASSES * pairs + _SUM_PASSES * sums) * array,
        cached_bytes=cached,
    )


def count_v1() -> list[StageCounts]:
    """The four stages of HiFi-GAN V1 on an H100."""
    return [count_stage(width, FEATURES_PER_S * per_feature) for width, per_feature in V1_STAGES]


def table() -> str:
    """The counts of HiFi-GAN V1 as a table for the docs."""
    counts = count_v1()
    names = [str(stage.width) for stage in counts]
    columns = [[getattr(stage, name) for stage in counts] for name in list(StageCounts.__dataclass_fields__)[1:]]
    titles = (
        "width", "GFLOP needed", "GFLOP computed", "least MB", "kernel MB", "graph, bias fused, MB",
        "graph, bias apart, MB", "kernel, from cache, MB",
    )  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for place, name in enumerate([*names, "all"]):
        values = [sum(column) if name == "all" else column[place] for column in columns]
        cells = [f"{value / 1e9:.1f}" for value in values[:2]] + [f"{value / 1e6:.0f}" for value in values[2:]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _planned(shape: PairShape, shared_bytes: tuple[int, int]) -> ResidualPlan:
    plan = make_plan(shape, *shared_bytes)
    if plan is None:
        raise ValueError(f"{shape} has no plan in {shared_bytes} bytes of shared memory")
    return plan
