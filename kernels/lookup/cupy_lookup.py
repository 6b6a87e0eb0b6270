"""The look-up on a GPU, through CuPy. Its kernels have run on a CPU only (tests/fakes/cuda); not yet run on a GPU.

What that leaves open: speed, races that need real parallelism, and CuPy's own behaviour. The kernels compile without
register spills for compute capability 7.5 to 12.0, and every launch, copy and event of this file runs in the tests,
against a stand-in for CuPy and CUDA that delays and reorders what streams leave open.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import BankError, DeviceError
from mkc_fast.kernels.cuda.device import CupyLauncher, import_cupy, one_line_errors, open_device
from mkc_fast.kernels.lookup.interface import Lookup
from mkc_fast.kernels.lookup.launches import Device, DeviceBank, Plan, assign, gather, make_plan
from mkc_fast.kernels.lookup.residency import Round, SlotCache

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_STAGING_BYTES = 32 << 20
# Frames of one call of the host's interface that are on the device at once: 256 MB at D = 1024.
_MAX_FRAMES = 65536


class CupyLookup(Lookup):
    """Nearest centroids on one CUDA device; semantics, checks and ids are those of ``Lookup``.

    The bank is copied to the device if it fits in a part of its free memory. Otherwise as many entries as fit are kept
    there, least recently used out first; a call computes with those it finds while the others come, in rounds of at
    most 16, over a stream of their own. Half norms and sizes are always there.

    Two ids can differ from the NumPy back end's only where the distances differ by less than float64's own rounding
    (1e-13 of them) and are not equal. An object is for one thread at a time.

    Args:
        centroids: (N, K, D) float32; may be a memory map, which is read through page-locked buffers.
        half_norms: (N, K) float64.
        num_clusters: K of each of the N entries.
        device: The number of the CUDA device.
        memory_fraction: How much of the device's free memory the bank may take.

    Raises:
        BankError: D is not a multiple of 4, or too large.
        DeviceError: There is no CuPy, no such device, or not enough memory.
    """

    def __init__(
        self,
        centroids: NDArray[np.float32],
        half_norms: NDArray[np.float64],
        num_clusters: Sequence[int],
        device: int = 0,
        *,
        memory_fraction: float = 0.5,
    ) -> None:
        super().__init__(centroids, half_norms, num_clusters)
        if self.dim % 4:
            raise BankError(f"the bank has {self.dim} dimensions; the CUDA look-up takes multiples of 4")
        self._cupy = import_cupy()
        self._device = open_device(self._cupy, device)
        with self._device, one_line_errors(self._cupy, device):
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
            self._launcher = CupyLauncher(self._cupy, "mkc_fast.kernels.lookup", "nearest.cu", "plan_all")
            attributes = self._device.attributes
            self._properties = Device(
                attributes["MultiProcessorCount"],
                attributes["MaxSharedMemoryPerBlockOptin"],
                attributes["MaxSharedMemoryPerMultiprocessor"],
            )
            self._plan(1)  # refuses what cannot run
            self._upload_bank(memory_fraction)

    def replace(self, centroids: NDArray[np.float32], half_norms: NDArray[np.float64]) -> None:
        """Take other centroids in place of these, of the same shape and the same sizes, for training.

        Args:
            centroids: (N, K, D) float32.
            half_norms: (N, K) float64.

        Raises:
            BankError: A shape is another one, half norms do not fit, or not all of the bank is on the device.
        """
        if centroids.shape != self.centroids.shape or half_norms.shape != self.half_norms.shape:
            raise BankError(f"centroids have shape {centroids.shape}; the bank has {self.centroids.shape}")
        if self._cache is not None:
            raise BankError("not all of the bank is on the device, so its centroids cannot be replaced")
        super().__init__(centroids, half_norms, self.num_clusters.tolist())
        small = self._small()
        with self._on(self._copies):
            bank = self._bank
            for target, values in zip((bank.half_norms, bank.num_clusters, bank.max_norms), small, strict=True):
                target.set(values, stream=self._copies)
            bank.centroids.set(np.ascontiguousarray(centroids), stream=self._copies)
            self._copies.synchronize()

    @property
    def resident(self) -> bool:
        """Whether all of the bank is on the device."""
        return self._cache is None

    def assign_device(
        self,
        features: Any,
        bank_ids: Any,
        *,
        out: Any = None,
        out_rows: Any = None,
        cluster_ids: Any = None,
        stream: Any = None,
    ) -> Any:
        """``assign`` on the device, queued on a stream, without waiting for it and without looking at values.

        Args:
            features: (T, D) float32 CuPy array, C-contiguous.
            bank_ids: (T,) int32 or int64, CuPy or NumPy. An id outside [0, N) marks a frame that is none, as in a
                padded batch: it gets cluster -1 and no row. If not all of the bank is on the device, ids in CuPy are
                fetched from it, which waits for the stream; ids in NumPy are not.
            out: (rows, D) float32 CuPy array, C-contiguous: the centroids found are written there too.
            out_rows: (T,) int32 or int64 CuPy array, the row of ``out`` for each frame, negative for none. Default:
                frame t has row t. Rows are not checked against ``out``, and none may occur twice.
            cluster_ids: (T,) int32 CuPy array, C-contiguous, that the ids are written to; default: a new one.
            stream: A CuPy stream of this device; default: the current one. The arrays are ready on it.

        Returns:
            Cluster ids, (T,) int32 CuPy array, ready on the stream.

        Raises:
            BankError: A shape or type does not fit the bank.
            DeviceError: The device is out of memory.
        """
        with self._on(stream) as current:
            self._check_rows("features", features)
            frames = len(features)
            ids, host_ids = self._indices("bank_ids", bank_ids, frames)
            rows, _ = self._indices("out_rows", out_rows, frames)
            self._check_output(out, rows, frames)
            if cluster_ids is None:
                cluster_ids = self._cupy.empty((frames,), np.int32)
            elif cluster_ids.shape != (frames,) or cluster_ids.dtype != np.int32 or not cluster_ids.flags.c_contiguous:
                raise BankError(f"cluster_ids are not a contiguous ({frames},) int32 CuPy array")
            if frames:
                plan = self._plan(frames)
                for slots in self._resident(host_ids, ids, current):
                    where = {"slots": slots, "out": out, "out_rows": rows}
                    assign(self._launcher, self._bank, features, ids, cluster_ids, plan, **where)
            return cluster_ids

    def gather_device(
        self, bank_ids: Any, cluster_ids: Any, out: Any, out_rows: Any = None, *, stream: Any = None
    ) -> None:
        """``lookup`` on the device, queued on a stream: writes centroids into rows of ``out``.

        Args:
            bank_ids: As in ``assign_device``.
            cluster_ids: (T,) int32 CuPy array; frames whose ids do not exist get no row.
            out: As in ``assign_device``.
            out_rows: As in ``assign_device``.
            stream: As in ``assign_device``.

        Raises:
            BankError: A shape or type does not fit the bank.
            DeviceError: The device is out of memory.
        """
        with self._on(stream) as current:
            if (
                not isinstance(cluster_ids, self._cupy.ndarray)
                or cluster_ids.ndim != 1
                or cluster_ids.dtype != np.int32
            ):
                raise BankError("cluster_ids are not a (T,) int32 CuPy array")
            frames = len(cluster_ids)
            ids, host_ids = self._indices("bank_ids", bank_ids, frames)
            rows, _ = self._indices("out_rows", out_rows, frames)
            self._check_output(out, rows, frames)
            if frames:
                contiguous = self._cupy.ascontiguousarray(cluster_ids)
                for slots in self._resident(host_ids, ids, current):
                    gather(self._launcher, self._bank, ids, contiguous, out, slots=slots, out_rows=rows)

    def _assign(self, features: NDArray[np.float32], bank_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        cluster_ids = np.empty(len(features), np.int32)
        with self._on(self._stream):
            for start in range(0, len(features), _MAX_FRAMES):
                part = slice(start, start + _MAX_FRAMES)
                cluster_ids[part] = self.assign_device(
                    self._cupy.asarray(features[part]), bank_ids[part], stream=self._stream
                ).get()
        return cluster_ids

    def _lookup(self, bank_ids: NDArray[np.int64], cluster_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._cache:  # rows from the host's copy, instead of whole entries to the device
            return super()._lookup(bank_ids, cluster_ids)
        rows = np.empty((len(bank_ids), self.dim), np.float32)
        with self._on(self._stream):
            for start in range(0, len(rows), _MAX_FRAMES):
                part = slice(start, start + _MAX_FRAMES)
                out = self._cupy.empty(rows[part].shape, np.float32)
                clusters = self._cupy.asarray(cluster_ids[part].astype(np.int32))
                self.gather_device(bank_ids[part], clusters, out, stream=self._stream)
                rows[part] = out.get()
        return rows

    def _plan(self, frames: int) -> Plan:
        return make_plan(frames, self.num_entries, self.centroids.shape[1], self.dim, self._properties)

    # ---- What is where ----

    def _upload_bank(self, memory_fraction: float) -> None:
        """Put the bank on the device, or as much of it as may be there."""
        cupy = self._cupy
        entries, clusters = self.half_norms.shape
        self._copies = cupy.cuda.Stream(non_blocking=True)
        with self._copies:
            small = [cupy.asarray(each) for each in self._small()]
            self._copies.synchronize()
        entry_bytes = 4 * clusters * self.dim
        free, _ = self._device.mem_info
        fitting = int(free * memory_fraction) // entry_bytes
        if not fitting:
            raise DeviceError(
                f"device cuda:{self._device.id}: {free >> 20} MB are free, and of those {memory_fraction:g} does not "
                f"hold one bank entry of {entry_bytes >> 20} MB"
            )
        num_slots = min(fitting, entries)
        self._bank = DeviceBank(cupy.empty((num_slots, clusters, self.dim), np.float32), *small)
        self._cache = SlotCache(num_slots) if num_slots < entries else None
        if self._cache:
            self._staging = _Staging(cupy, 1, (clusters, self.dim))
            self._reads = cupy.cuda.Stream(non_blocking=True)
            self._arrived = self._recorded(self._copies)  # the last upload
            self._last_reads: list[Any] = [None] * num_slots  # an event for each slot
            return
        together = min(max(1, _STAGING_BYTES // entry_bytes), entries)
        staging = _Staging(cupy, together, (clusters, self.dim))
        for start in range(0, entries, together):
            part = slice(start, min(start + together, entries))
            staging.copy(self.centroids[part], self._bank.centroids[part], self._copies)
        self._copies.synchronize()

    def _small(self) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float64]]:
        """Half norms, sizes, and the longest norm of each entry, as a ``DeviceBank`` has them."""
        used = np.arange(self.half_norms.shape[1]) < self.num_clusters[:, None]
        with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite, and is decided in float64
            half_norms = self.half_norms.astype(np.float32)
        longest = np.sqrt(2 * np.where(used, self.half_norms, 0).max(axis=1))
        return half_norms, self.num_clusters.astype(np.int32), longest

    def _resident(self, host_ids: NDArray[Any] | None, ids: Any, stream: Any) -> Iterator[Any]:
        """Once if the bank is on the device: None; else for each round of the call's entries the (N,) slots.

        What is queued on the stream before the next is asked for can read the entries that have a slot.
        """
        if not self._cache:
            yield None
            return
        cupy = self._cupy
        known = np.unique(ids.get() if host_ids is None else host_ids)
        known = known[(known >= 0) & (known < self.num_entries)]
        for part in self._cache.rounds(known.tolist()):
            self._upload(part)
            places = np.full(self.num_entries, -1, np.int32)
            places[list(part.slots)] = list(part.slots.values())
            stream.wait_event(self._arrived)  # also for what an earlier call has brought, for another stream
            try:
                yield cupy.asarray(places)
            finally:
                # A slot may be read from several streams: `_reads` comes after all of them.
                self._reads.wait_event(self._recorded(stream))
                read = self._recorded(self._reads)
                for slot in part.slots.values():
                    self._last_reads[slot] = read

    def _upload(self, part: Round) -> None:
        """Queue the copies of a round behind the last reads of the slots that they overwrite."""
        if not part.uploads:
            return
        reads = {id(read): read for read in (self._last_reads[part.slots[entry]] for entry in part.uploads) if read}
        for read in reads.values():
            self._copies.wait_event(read)
        for entry in part.uploads:
            slot = part.slots[entry]
            self._staging.copy(self.centroids[entry : entry + 1], self._bank.centroids[slot : slot + 1], self._copies)
        self._arrived = self._recorded(self._copies)

    def _recorded(self, stream: Any) -> Any:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        return event

    @contextlib.contextmanager
    def _on(self, stream: Any) -> Iterator[Any]:
        """Queue what follows on a stream, by default the current one."""
        with self._device, one_line_errors(self._cupy, self._device.id):
            chosen = self._cupy.cuda.get_current_stream() if stream is None else stream
            with chosen:
                yield chosen

    # ---- Checks on shapes and types; values are not looked at ----

    def _check_rows(self, name: str, array: Any) -> None:
        if (
            not isinstance(array, self._cupy.ndarray)
            or array.ndim != 2
            or array.shape[1] != self.dim
            or array.dtype != np.float32
            or not array.flags.c_contiguous
            or array.data.ptr % 16
        ):
            found = f"shape {getattr(array, 'shape', None)} and type {getattr(array, 'dtype', type(array).__name__)}"
            raise BankError(
                f"{name} have {found}; expected a CuPy array (T, {self.dim}) float32, C-contiguous, aligned to 16 bytes"
            )

    def _check_output(self, out: Any, out_rows: Any, frames: int) -> None:
        if out is None:
            return
        self._check_rows("the rows of out", out)
        if out_rows is None and len(out) < frames:
            raise BankError(f"out has {len(out)} rows for {frames} frames")

    def _indices(self, name: str, indices: Any, frames: int) -> tuple[Any, NDArray[Any] | None]:
        """(T,) indices on the device, and on the host if they came from there."""
        if indices is None:
            return None, None
        if not isinstance(indices, self._cupy.ndarray):
            indices = np.asarray(indices)
        if indices.shape != (frames,) or (indices.dtype.kind not in "iu" and frames):
            raise BankError(f"{name} has shape {indices.shape} and type {indices.dtype}; expected ({frames},) integers")
        if indices.dtype not in {np.dtype(np.int32), np.dtype(np.int64)}:
            indices = indices.astype(np.int64)
        host = indices if isinstance(indices, np.ndarray) else None
        return self._cupy.ascontiguousarray(self._cupy.asarray(indices)), host


class _Staging:
    """Copies to the device through two page-locked buffers in turn, so that reading and copying overlap."""

    def __init__(self, cupy: Any, entries: int, entry_shape: tuple[int, ...]) -> None:
        shape = (entries, *entry_shape)
        locked = [cupy.cuda.alloc_pinned_memory(4 * math.prod(shape)) for _ in range(2)]
        self._buffers = [np.frombuffer(memory, np.float32, math.prod(shape)).reshape(shape) for memory in locked]
        self._copied = [cupy.cuda.Event(disable_timing=True) for _ in range(2)]
        self._turn = 0

    def copy(self, source: NDArray[np.float32], target: Any, stream: Any) -> None:
        """Queue a copy of no more entries than a buffer has; ``source`` is read before this returns."""
        buffer, copied = self._buffers[self._turn][: len(source)], self._copied[self._turn]
        self._turn = 1 - self._turn
        copied.synchronize()
        np.copyto(buffer, source)
        target.set(buffer, stream=stream)
        copied.record(stream)
