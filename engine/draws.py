"""Which bank entries a run draws from, and which one each frame gets: functions of the seed, id and frame alone."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Literal

import numpy as np

from mkc_fast import BankError, MkcError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Mode = Literal["audio", "frame"]
MODES: tuple[Mode, ...] = ("audio", "frame")


def fresh_seed() -> str:
    """A seed from the operating system's entropy, for a run whose draws nobody can repeat or predict."""
    return "entropy:" + secrets.token_hex(32)


def waveform_id(waveform: NDArray[np.float32]) -> str:
    """An utterance id for a waveform that has none: a digest of its samples."""
    return "sha256:" + hashlib.sha256(np.ascontiguousarray(waveform).data).hexdigest()


def check_draw(mode: object, stride: object) -> None:
    """Refuse an unknown mode or a stride below 1.

    Raises:
        MkcError: The mode is neither ``audio`` nor ``frame``, or the stride is not positive.
    """
    if mode not in MODES:
        raise MkcError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
    if isinstance(stride, bool) or not isinstance(stride, (int, np.integer)) or stride < 1:
        raise MkcError(f"stride is {stride!r}; expected a whole number of frames from 1 up")


def draw_bank_ids(
    frames: int, entries: int, *, mode: str, stride: int, seed: int | str, utterance_id: str
) -> NDArray[np.int64]:
    """Draw a bank entry for every frame, uniformly and with replacement.

    ``audio`` mode draws one entry for the whole recording, ``frame`` mode a new one every ``stride`` frames. The draws
    are the output of SHAKE-256 over seed and utterance id, 8 bytes each: they are the same on every machine, a longer
    utterance begins like a shorter one, and knowing some of them does not tell the others. 64 bits are scaled to
    [0, entries) by multiplication, which favours no entry by more than entries / 2**64.

    Args:
        frames: T.
        entries: N, below 2**31.
        mode: ``"audio"`` or ``"frame"``.
        stride: Frames that share a draw, in ``frame`` mode.
        seed: Any integer, or text.
        utterance_id: Of the recording.

    Returns:
        (T,) int64, in [0, entries).
    """
    check_draw(mode, stride)
    groups = np.arange(frames) // (frames if mode == "audio" else stride) if frames else np.arange(0)
    count = int(groups[-1]) + 1 if frames else 0
    key = f"mkc-fast draw 1\0{seed}\0{utterance_id}".encode("utf-8", "surrogateescape")
    words = np.frombuffer(hashlib.shake_256(key).digest(8 * count), "<u8")
    high, low = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)
    number = np.uint64(entries)
    drawn = (high * number + ((low * number) >> np.uint64(32))) >> np.uint64(32)
    return drawn.astype(np.int64)[groups]


def draw_entries(num_entries: int, kmeans_num: object, seed: int | str | None) -> NDArray[np.int64]:
    """Draw the subset of a bank from which the frames of a run draw, uniformly and without replacement.

    Entry i gets bytes 8 i to 8 i + 7 of SHAKE-256 over the seed as its number, and the ``kmeans_num`` entries of the
    smallest numbers are taken. So the subset is the same on every machine, independent of the frames' draws, and part
    of each larger one of the same seed.

    Args:
        num_entries: N, of the whole bank.
        kmeans_num: Entries to draw; more than there are draws all.
        seed: As for ``draw_bank_ids``; None draws from the operating system's entropy.

    Returns:
        (min(N, kmeans_num),) int64, ascending.

    Raises:
        BankError: ``kmeans_num`` is not a whole number from 1 up.
    """
    if isinstance(kmeans_num, bool) or not isinstance(kmeans_num, (int, np.integer)) or kmeans_num < 1:
        raise BankError(f"kmeans_num is {kmeans_num!r}; expected a whole number from 1 up")
    key = f"mkc-fast subset 1\0{fresh_seed() if seed is None else seed}".encode("utf-8", "surrogateescape")
    numbers = np.frombuffer(hashlib.shake_256(key).digest(8 * num_entries), "<u8")
    return np.sort(np.argsort(numbers, kind="stable")[: int(kmeans_num)]).astype(np.int64)


def check_entries(entries: ArrayLike, num_entries: int) -> NDArray[np.int64]:
    """The entries of a bank of ``num_entries`` that frames are to draw from, in ascending order.

    Raises:
        BankError: They are not whole numbers in [0, N), each once, or there is none.
    """
    given = np.asarray(entries)
    if given.ndim != 1 or not given.size or given.dtype.kind not in "iu":
        raise BankError(f"entries have shape {given.shape} and type {given.dtype}; expected (n,) int, n from 1 up")
    if given.min() < 0 or given.max() >= num_entries:
        raise BankError(f"entries are {given.min()} to {given.max()}; the bank has 0 to {num_entries - 1}")
    ascending = np.unique(given).astype(np.int64)
    if len(ascending) != len(given):
        raise BankError(f"entries name {len(given)}, but only {len(ascending)} different ones")
    return ascending
