"""What a look-up launches on a GPU, in which order and with which scratch: decided on sizes only, without a GPU.

``tests/fakes/cuda`` runs these launches on a CPU; ``cupy_lookup`` runs the same ones on a device. Nothing here waits
for the device: what depends on the data (how many frames an entry has, which frames need float64) stays there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mkc_fast.errors import BankError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike

# These equal the constants of nearest.cu.
SORT_THREADS = 1024
THREADS = 256
WARPS = 8
ROWS = 4
STAGES = 3
TILE = 128
STEP = 8
TILED_WIDTH = 32

# The other dimension of a tile of the product is frames; with fewer than half of them, streaming them is faster.
_TILED_MIN = TILE // 2
_WARP = 32
_FLOAT4 = 16
# What the driver keeps of a multiprocessor's shared memory for each block that it runs.
_RESERVED_BYTES = 1024


@dataclass(frozen=True)
class Device:
    """What the plan needs to know of a GPU.

    Attributes:
        multiprocessors: How many it has.
        shared_bytes_per_block: Shared memory that one block can have, when asked for.
        shared_bytes_per_multiprocessor: Shared memory that the blocks of one multiprocessor share.
    """

    multiprocessors: int
    shared_bytes_per_block: int
    shared_bytes_per_multiprocessor: int


class Launcher(Protocol):
    """Runs kernels of nearest.cu, one after the other."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """An uninitialized array where the kernels run."""

    def launch(self, kernel: str, blocks: int, threads: int, arguments: Sequence[Any], shared_bytes: int = 0) -> None:
        """Start a kernel; arguments are arrays, NumPy scalars of the parameter's size, or None for a null pointer."""


@dataclass(frozen=True)
class DeviceBank:
    """A bank where the kernels run.

    Attributes:
        centroids: (slots, K, D) float32.
        half_norms: (N, K) float32.
        num_clusters: (N,) int32.
        max_norms: (N,) float64, the norm of each entry's longest centroid, or more.
    """

    centroids: Any
    half_norms: Any
    num_clusters: Any
    max_norms: Any

    @property
    def sizes(self) -> tuple[int, int, int]:
        """N, K, D."""
        entries, clusters = self.half_norms.shape
        return entries, clusters, self.centroids.shape[2]


@dataclass(frozen=True)
class Plan:
    """How the frames of a call are divided.

    Attributes:
        tile_frames: Frames that a block streams centroids past at a time.
        warp_rows: Centroids of a warp there.
        tiled_min: The least frames for which a tile of the matrix product is used; 0: none is.
        streamed_blocks: Blocks of ``nearest_streamed``.
        tiled_blocks: Blocks of ``nearest_tiled``.
        recheck_blocks: Blocks of ``recheck``.
    """

    tile_frames: int
    warp_rows: int
    tiled_min: int
    streamed_blocks: int
    tiled_blocks: int
    recheck_blocks: int

    def streamed_bytes(self, dim: int) -> int:
        """Shared memory of a block of ``nearest_streamed``: the warps' rings, then the frames in slices."""
        return _FLOAT4 * _WARP * (WARPS * STAGES * ROWS + _ceil(dim, 4 * _WARP) * self.tile_frames)

    def streamed_roundings(self, dim: int) -> int:
        """The most roundings that a term of a product meets there: a lane's own sum, then the sum over lanes."""
        return 4 * _ceil(dim, 4 * _WARP) + 5


def make_plan(frames: int, entries: int, clusters: int, dim: int, device: Device) -> Plan:
    """Divide the work of ``frames`` frames over a device, for N entries of at most K centroids of D dimensions.

    Raises:
        BankError: D is not a multiple of 4, no frame of so many dimensions fits in shared memory, or 32 bits do not
            number the work.
    """
    if dim % 4:
        raise BankError(f"the bank has {dim} dimensions; the CUDA look-up takes multiples of 4")
    if frames * _ceil(clusters, WARPS * ROWS) >= 2**31 or clusters * dim // 4 >= 2**31 or clusters >= 2**23:
        raise BankError(f"{frames} frames, {clusters} clusters of {dim} dimensions: more than the CUDA look-up numbers")
    tile_frames = _tile_frames(dim, device)
    # With six items for each of two blocks a multiprocessor, the last ones to finish cost little.
    plenty = 12 * device.multiprocessors
    tiles = _ceil(frames, tile_frames)  # at least
    warp_rows = next((rows for rows in (16, 8) if tiles * _ceil(clusters, WARPS * rows) >= plenty), ROWS)
    tiled = frames // TILE * _ceil(clusters, TILE) >= device.multiprocessors
    return Plan(
        tile_frames=tile_frames,
        warp_rows=warp_rows,
        tiled_min=_TILED_MIN if tiled else 0,
        streamed_blocks=min(
            2 * device.multiprocessors, _streamed_items(frames, entries, clusters, tile_frames, warp_rows)
        ),
        tiled_blocks=2 * device.multiprocessors,
        recheck_blocks=min(2 * device.multiprocessors, frames * _ceil(clusters, WARPS * ROWS)),
    )


def assign(
    launcher: Launcher,
    bank: DeviceBank,
    features: Any,
    bank_ids: Any,
    cluster_ids: Any,
    plan: Plan,
    *,
    slots: Any = None,
    out: Any = None,
    out_rows: Any = None,
) -> None:
    """Write the nearest centroid of each frame, and on request its values.

    Args:
        launcher: Where to run.
        bank: The bank.
        features: (T, D) float32, T at least 1.
        bank_ids: (T,) int32 or int64; frames with an id outside [0, N) get cluster -1 and no row.
        cluster_ids: (T,) int32, written.
        plan: Of ``make_plan`` for these sizes.
        slots: (N,) int32, where in ``bank.centroids`` each entry lies; frames of entries with a negative slot are
            passed over. None: entry e lies at e.
        out: (rows, D) float32, written.
        out_rows: (T,) int32 or int64, the row of ``out`` for each frame, negative for none. None: frame t has row t.
    """
    entries, clusters, dim = bank.sizes
    frames, dim4 = len(features), dim // 4
    width = _ceil(clusters, plan.warp_rows)  # splits of a frame; those of the product are no narrower
    chunks = _ceil(frames, SORT_THREADS)
    items = _streamed_items(frames, entries, clusters, plan.tile_frames, plan.warp_rows)
    tiled_items = frames // plan.tiled_min * _ceil(clusters, TILE) if plan.tiled_min else 0

    counts = launcher.empty((chunks, entries), np.int32)
    segments = launcher.empty((entries, 4), np.int32)
    order = launcher.empty((frames,), np.int32)
    streamed = launcher.empty((items, 4), np.int32)
    tiled = launcher.empty((tiled_items, 4), np.int32) if tiled_items else None
    counters = launcher.empty((4,), np.int32)
    partials = launcher.empty((frames, width, 4), np.int32)
    flagged = launcher.empty((frames,), np.int32)
    limits = launcher.empty((frames,), np.float64)
    done = launcher.empty((frames,), np.int32)

    ids = (bank_ids, _wide(bank_ids))
    output = (out, out_rows, _wide(out_rows))
    cuts = _int32(plan.tile_frames, WARPS * plan.warp_rows, plan.tiled_min)
    frames_and_entries = _int32(frames, entries)
    placed = (order, streamed, tiled)
    if chunks == 1:
        launcher.launch(
            "plan_all", 1, SORT_THREADS,
            (*ids, *frames_and_entries, slots, bank.num_clusters, *cuts, counts, segments, *placed, counters,
             cluster_ids),
        )  # fmt: skip
    else:
        launcher.launch("count_frames", chunks, SORT_THREADS, (*ids, *frames_and_entries, slots, counts))
        launcher.launch(
            "plan_entries", 1, SORT_THREADS,
            (*_int32(chunks, entries), bank.num_clusters, *cuts, counts, segments, counters),
        )  # fmt: skip
        launcher.launch(
            "sort_frames", chunks, SORT_THREADS,
            (*ids, *frames_and_entries, slots, bank.num_clusters, *cuts, counts, segments, *placed, cluster_ids),
        )  # fmt: skip

    sources = (features, order, bank.centroids, bank.half_norms, bank.num_clusters, *_int32(clusters, dim4))
    launcher.launch(
        "nearest_streamed", plan.streamed_blocks, THREADS,
        (*sources, *_int32(plan.warp_rows, width), streamed, counters, partials),
        plan.streamed_bytes(dim),
    )  # fmt: skip
    if tiled_items:
        launcher.launch(
            "nearest_tiled", min(plan.tiled_blocks, tiled_items), THREADS,
            (*sources, *_int32(width), tiled, counters, partials),
            4 * 4 * STEP * (TILE + 4),
        )  # fmt: skip

    placed_frames = (features, *ids, order, segments, slots, bank.centroids, bank.num_clusters)
    launcher.launch(
        "settle", _ceil(frames, WARPS), THREADS,
        (*placed_frames, bank.max_norms, *_int32(clusters, dim4, plan.tiled_min, plan.warp_rows,
         plan.streamed_roundings(dim), width), partials, counters, flagged, limits, done, cluster_ids, *output),
    )  # fmt: skip
    launcher.launch(
        "recheck", plan.recheck_blocks, THREADS,
        (*placed_frames, *_int32(clusters, dim4, plan.tiled_min, plan.warp_rows, width), partials, counters, flagged,
         limits, done, cluster_ids, *output),
    )  # fmt: skip


def gather(
    launcher: Launcher,
    bank: DeviceBank,
    bank_ids: Any,
    cluster_ids: Any,
    out: Any,
    *,
    slots: Any = None,
    out_rows: Any = None,
) -> None:
    """Write the centroids of these ids; arguments as in ``assign``. Frames whose ids do not exist get no row."""
    entries, clusters, dim = bank.sizes
    frames = len(cluster_ids)
    launcher.launch(
        "gather_rows", _ceil(frames, WARPS), THREADS,
        (bank_ids, _wide(bank_ids), cluster_ids, *_int32(frames, entries), slots, bank.centroids, bank.num_clusters,
         *_int32(clusters, dim // 4), out, out_rows, _wide(out_rows)),
    )  # fmt: skip


def _tile_frames(dim: int, device: Device) -> int:
    """The most frames with which two blocks fit on a multiprocessor, if that is 8 or more; else with which one fits."""

    def fits(frames: int, blocks: int) -> bool:
        needed = Plan(frames, 0, 0, 0, 0, 0).streamed_bytes(dim)
        room = device.shared_bytes_per_multiprocessor // blocks - _RESERVED_BYTES
        return needed <= min(room, device.shared_bytes_per_block)

    choices = [(frames, 2) for frames in (16, 8)] + [(frames, 1) for frames in (16, 8, 4, 2, 1)]
    for frames, blocks in choices:
        if fits(frames, blocks):
            return frames
    raise BankError(f"the bank has {dim} dimensions; this GPU's shared memory does not hold a frame of so many")


def _streamed_items(frames: int, entries: int, clusters: int, tile_frames: int, warp_rows: int) -> int:
    """No fewer than there can be: every entry that occurs may end with a tile that is not full."""
    tiles = min(frames, min(frames, entries) + frames // tile_frames)
    return tiles * _ceil(clusters, WARPS * warp_rows)


def _ceil(amount: int, part: int) -> int:
    return -(-amount // part)


def _int32(*values: int) -> tuple[np.int32, ...]:
    return tuple(np.int32(value) for value in values)


def _wide(indices: Any) -> np.int32:
    return np.int32(indices is not None and indices.dtype.itemsize == 8)
