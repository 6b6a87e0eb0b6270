"""Lists of lengths (``utt2dur``, ``reco2dur``, ``utt2num_frames``), recomputed for the anonymized recordings."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import soundfile

from mkc_fast.engine.storage.addresses import Address
from mkc_fast.engine.storage.reading import read_object
from mkc_fast.errors import ListError, MkcError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mkc_fast.engine.storage.addresses import Place

_HEAD_BYTES = 4096
_READERS = 8  # on a network's file system each header is a wait
# Kaldi's features: a frame every 10 ms, of 25 ms. With snip-edges a frame needs all of them, without it is centred.
_SHIFT_S, _LENGTH_S = 0.010, 0.025
# An output is shorter than its recording by less than this.
_SHORTER_S = 0.025


def lengths_of(outputs: Mapping[str, Place]) -> dict[str, tuple[int, int]]:
    """Samples and sample rate of each output by utterance id, from its header; without those that cannot be read."""
    with ThreadPoolExecutor(_READERS, "length") as readers:
        found = zip(outputs, readers.map(_length, outputs.values()), strict=True)
        return {name: length for name, length in found if length is not None}


def _length(place: Place) -> tuple[int, int] | None:
    try:
        if isinstance(place, Address):
            return _length_at(place)
        info = soundfile.info(place)
    except (OSError, RuntimeError, MkcError):
        return None
    return info.frames, info.samplerate


def _length_at(address: Address) -> tuple[int, int] | None:
    """The same of an output at an address, from its first bytes; those of libsndfile's WAV files are always 44."""
    head = read_object(address.url, ListError, 0, _HEAD_BYTES)
    if head[:4] == b"RIFF" and head[36:40] == b"data":
        bytes_a_sample = int.from_bytes(head[32:34], "little")
        return int.from_bytes(head[40:44], "little") // max(1, bytes_a_sample), int.from_bytes(head[24:28], "little")
    info = soundfile.info(io.BytesIO(head))
    return info.frames, info.samplerate


def with_durations(text: str, lengths: Mapping[str, tuple[int, int]]) -> str:
    """A list of ``id seconds`` a line with the seconds of the outputs; what has none keeps its line."""

    def seconds(name: str, before: str) -> str:
        samples, rate = lengths[name]
        decimals = len(before.partition(".")[2])
        return f"{samples / rate:.{max(2, decimals)}f}"

    return _rewritten(text, lengths, seconds)


def with_frame_counts(text: str, lengths: Mapping[str, tuple[int, int]]) -> str:
    """A list of ``id frames`` a line with the frames of the outputs, counted as the list counts them.

    Kaldi counts in two ways (``--snip-edges``). The list's way is the one that explains more of its lines.
    """
    snipped = centred = 0
    for line in text.splitlines():
        name, _, count = line.partition(" ")
        if name in lengths and count.strip().isdigit():
            samples, rate = lengths[name]
            longest = samples + round(_SHORTER_S * rate)
            snipped += _snipped(samples, rate) <= int(count) <= _snipped(longest, rate)
            centred += _centred(samples, rate) <= int(count) <= _centred(longest, rate)
    counted = _snipped if snipped >= centred else _centred
    return _rewritten(text, lengths, lambda name, _: str(counted(*lengths[name])))


def _snipped(samples: int, rate: int) -> int:
    return max(0, 1 + (samples - round(_LENGTH_S * rate)) // round(_SHIFT_S * rate))


def _centred(samples: int, rate: int) -> int:
    shift = round(_SHIFT_S * rate)
    return (samples + shift // 2) // shift


def _rewritten(text: str, lengths: Mapping[str, tuple[int, int]], value: Callable[[str, str], str]) -> str:
    lines = []
    for line in text.splitlines(keepends=True):
        fields = line.split()
        known = len(fields) == 2 and fields[0] in lengths
        lines.append(f"{fields[0]} {value(fields[0], fields[1])}\n" if known else line)
    return "".join(lines)
