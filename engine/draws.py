"""Which bank entries a run draws from, and which one each frame gets: functions of the seed, id and frame alone."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.errors import ArgumentError, BankError
from mkc_fast.names import AUDIO, MODES

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# More than entropy can be put into a run; Python refuses to print integers of more than 4,300 digits.
_MAX_SEED_BITS = 256


def fresh_seed() -> str:
    """A seed from the operating system's entropy, for a run whose draws cannot be repeated or predicted."""
    return "entropy:" + secrets.token_hex(32)


# Draw ids that no utterance id equals: ids of lists hold no control characters.
CONSTANT_DRAW = "constant\0"


def speaker_draw(speaker: str) -> str:
    """The draw id that all utterances of a speaker share; no utterance has it as its id."""
    return f"speaker\0{speaker}"


def waveform_id(waveform: NDArray[np.float32]) -> str:
    """An utterance id for a waveform that has none: a digest of its samples."""
    return "sha256:" + hashlib.sha256(np.ascontiguousarray(waveform).data).hexdigest()


def check_draw(mode: object, stride: object, seed: object = None) -> None:
    """Refuse an unknown mode, a stride below 1, or a seed that is no integer of at most 256 bits.

    Raises:
        ArgumentError: The mode is neither ``audio`` nor ``frame``, the stride is not a positive integer, or the seed is
            neither None nor such an integer.
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise ArgumentError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
    if not _is_integer(stride) or stride < 1:  # type: ignore[operator]
        raise ArgumentError(f"stride is {_shown(stride)}; expected a whole number of frames from 1 up")
    check_seed(seed)


def check_seed(seed: object) -> None:
    """Refuse a seed that is neither None nor an integer of at most 256 bits.

    Raises:
        ArgumentError: It is not.
    """
    if seed is None:
        return
    if not _is_integer(seed):
        raise ArgumentError(f"seed is {seed!r}; expected a whole number")
    if int(seed).bit_length() > _MAX_SEED_BITS:  # type: ignore[call-overload]
        raise ArgumentError(f"seed is {_shown(seed)}; expected one of at most {_MAX_SEED_BITS} bits")


def _encoded(key: str) -> bytes:
    """A key as bytes: what was not UTF-8 as the bytes that it was, other lone surrogates as three bytes each."""
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return key.encode("utf-8", "surrogatepass")


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """A value in a message; large integers by their size, since Python refuses to print the largest."""
    large = isinstance(value, int) and value.bit_length() > _MAX_SEED_BITS
    return f"an integer of {value.bit_length()} bits" if large else repr(value)  # type: ignore[attr-defined]


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
        stride: Frames that share a draw, in ``frame`` mode; one longer than the recording is one draw.
        seed: An integer of at most 256 bits, or text.
        utterance_id: Of the recording.

    Returns:
        (T,) int64, in [0, entries).
    """
    check_draw(mode, stride, None if isinstance(seed, str) else seed)
    # As a Python integer: NumPy's own types would overflow, or make the groups floats.
    shared = max(1, frames if mode == AUDIO else min(int(stride), frames))
    groups = np.arange(frames) // shared
    count = int(groups[-1]) + 1 if frames else 0
    key = _encoded(f"mkc-fast draw 1\0{seed}\0{utterance_id}")
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
    key = _encoded(f"mkc-fast subset 1\0{fresh_seed() if seed is None else seed}")
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
