"""Reads what the headers of recordings claim, without a decoder: how long they are, and where their samples end.

libsndfile believes the file's size where it contradicts the header, so that a file which was cut in half passes for a
shorter one. What the header claims tells the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # Up to so many bytes of a file, from an offset on.
    Read = Callable[[int, int], bytes]

# Files may have chunks before their samples; for a recording's length alone, what is farther behind is left to the
# decoder.
HEAD_BYTES = 4096
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_UNKNOWN_SIZE = 0xFFFFFFFF
# What SoX writes into a pipe, in whole frames.
_SOX_UNKNOWN_SIZE = 0x7FFFF000
_MAX_CHUNKS = 10_000
# A page of Ogg: 27 bytes, of which the last counts its segments, then a byte for the length of each, then these.
_OGG, _OGG_HEAD, _MOST_OGG_PAGE, _OGG_LAST = b"OggS", 27, 27 + 255 + 255 * 255, 4
# Names of the boxes that an MP4 file, or one of its fragments, may begin or go on with.
MP4_BOXES = frozenset(
    {
        b"ftyp",
        b"styp",
        b"moov",
        b"moof",
        b"mdat",
        b"mfra",
        b"sidx",
        b"free",
        b"skip",
        b"wide",
        b"pnot",
        b"udta",
        b"uuid",
    }
)
MATROSKA, _MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_Order = Literal["little", "big"]
# W64 names its chunks by GUIDs; those of libsndfile and Sound Forge begin with the four letters.
_W64_RIFF, _W64_WAVE = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00", b"wave\xf3\xac\xd3\x11"


@dataclass(frozen=True)
class _Chunks:
    """How a format lays out its chunks: a name, a size, and so many bytes, up to the next multiple of ``padded``."""

    begin: int
    order: _Order = "little"
    name_bytes: int = 4
    size_bytes: int = 4
    padded: int = 2
    counts_itself: bool = False  # the size includes name and size

    def walk(self, read: Read) -> Iterator[tuple[bytes, int, int]]:
        """The name of each chunk, where its content begins, and its size."""
        position, head_bytes = self.begin, self.name_bytes + self.size_bytes
        for _ in range(_MAX_CHUNKS):
            head = read(position, head_bytes)
            if len(head) < head_bytes:
                return
            size = int.from_bytes(head[self.name_bytes :], self.order)
            if self.counts_itself:
                size -= head_bytes
                if size < 0:
                    return
            position += head_bytes
            yield head[: self.name_bytes], position, size
            position += size + -size % self.padded


def length_s(head: bytes, size_bytes: int) -> float | None:
    """Seconds of a recording, as its header has them.

    Args:
        head: The file's first bytes, up to ``HEAD_BYTES``.
        size_bytes: Of the file, beyond which no samples are.

    Returns:
        None where a decoder must be asked: other formats, samples that are not of whole bytes, a FLAC stream that does
        not say its length, a header that is damaged.
    """
    try:
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            return _wav_length_s(lambda offset, count: head[offset : offset + count], size_bytes)
        if head[:4] == b"fLaC":
            return _flac_length_s(head)
    except (IndexError, ZeroDivisionError):
        pass
    return None


def claimed_bytes(read: Read) -> int | None:
    """The size that a file has at least, if its header is right about its samples.

    Knows WAV, RIFX, RF64, BW64, W64, AIFF, AIFF-C, 8SVX, AU, CAF, NIST SPHERE, AVI, MP4 and Matroska.

    Args:
        read: Up to so many bytes of the file, from an offset on.

    Returns:
        None where the header does not say: other formats, a damaged header, and one that was written before the samples
        were counted, as into a pipe, which leaves a size of 0 or of all ones.
    """
    head = read(0, 64)
    try:
        if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
            return _wav_end(read, "big" if head[:4] == b"RIFX" else "little")
        if head[:16] == _W64_RIFF and head[24:32] == _W64_WAVE:
            chunks = _Chunks(40, name_bytes=16, size_bytes=8, padded=8, counts_itself=True)
            return _end(chunks.walk(read), b"data", (0, (1 << 64) - 1 - 24))
        if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            # The content begins with an offset and a block size, which are part of the size.
            return _end(_Chunks(12, "big").walk(read), b"SSND", (0, 8, _UNKNOWN_SIZE))
        if head[:4] == b"FORM" and head[8:12] in (b"8SVX", b"16SV"):
            return _end(_Chunks(12, "big").walk(read), b"BODY", (0, _UNKNOWN_SIZE))
        if head[:4] in (b".snd", b"dns."):
            order: _Order = "big" if head[:4] == b".snd" else "little"
            begin, size = _number(head, 4, 4, order), _number(head, 8, 4, order)
            return None if size in (0, _UNKNOWN_SIZE) else begin + size
        if head[:4] == b"caff":
            # The content begins with an edit count, which is part of the size.
            chunks = _Chunks(8, "big", size_bytes=8, padded=1)
            return _end(chunks.walk(read), b"data", (0, 4, (1 << 64) - 1))
        if head[:8] == b"NIST_1A\n":
            return _nist_end(read)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            size = _number(head, 4, 4)
            return None if size in (0, _UNKNOWN_SIZE) else 8 + size
        if head[4:8] in MP4_BOXES:
            return _mp4_end(read)
        if head[:4] == MATROSKA:
            return _matroska_end(read)
    except (IndexError, ValueError):
        pass
    return None


def is_cut_ogg(read: Read, size: int) -> bool:
    """Whether an Ogg file ends before its stream: its last page is not whole, or not marked as the last (RFC 3533).

    Args:
        read: Up to so many bytes of the file, from an offset on.
        size: Of the file, in bytes.

    Returns:
        False for files of other formats.
    """
    if read(0, 4) != _OGG:
        return False
    tail = read(max(0, size - 2 * _MOST_OGG_PAGE), 2 * _MOST_OGG_PAGE)
    page = tail[max(0, tail.rfind(_OGG)) :]
    if len(page) < _OGG_HEAD or len(page) < _OGG_HEAD + page[26]:
        return True
    lengths = page[_OGG_HEAD : _OGG_HEAD + page[26]]
    return len(page) < _OGG_HEAD + len(lengths) + sum(lengths) or not page[5] & _OGG_LAST


def _end(chunks: Iterator[tuple[bytes, int, int]], wanted: bytes, unknown: tuple[int, ...]) -> int | None:
    """Where the chunk with the samples ends."""
    for name, begin, size in chunks:
        if name[:4] == wanted:
            return None if size in unknown else begin + size
    return None


def _wav_end(read: Read, order: _Order) -> int | None:
    large, frame_bytes = None, 1
    for name, begin, size in _Chunks(12, order).walk(read):
        if name == b"ds64":  # of RF64 and BW64: sizes of the file and of the samples, in 64 bits
            large = _number(read(begin, 16), 8, 8, order)
        elif name == b"fmt ":
            frame_bytes = max(1, _number(read(begin, 16), 12, 2, order))
        elif name == b"data":
            if size == _UNKNOWN_SIZE and large not in (None, 0, (1 << 64) - 1):
                return begin + large
            if size in (0, _UNKNOWN_SIZE) or size // frame_bytes == _SOX_UNKNOWN_SIZE // frame_bytes:
                return None
            return begin + size
    return None


def _nist_end(read: Read) -> int | None:
    """Of a text of ``name -type value`` a line, whose size stands in its second line; the samples follow it."""
    begin = int(read(8, 8))
    if not 16 <= begin <= 1 << 20:
        return None
    fields = {}
    for line in read(16, begin - 16).split(b"\n"):
        words = line.split(None, 2)
        if words[:1] == [b"end_head"]:
            break
        if len(words) == 3:
            fields[words[0]] = words[2].strip()
    if b"," in fields.get(b"sample_coding", b""):  # compressed
        return None
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    if any(not fields.get(name, b"1").isdigit() for name in names) or b"sample_count" not in fields:
        return None
    count, channels, width = (int(fields.get(name, b"1")[:18]) for name in names)
    return begin + count * channels * width if count else None


def _mp4_end(read: Read) -> int | None:
    """Of boxes: a size of 32 bits, which includes itself, and a name; a size of 1 is followed by one of 64 bits."""
    position = 0
    for _ in range(_MAX_CHUNKS):
        head = read(position, 16)
        if len(head) < 8 or head[4:8] not in MP4_BOXES:
            break
        size = _number(head, 0, 4, "big")
        if size == 1:
            size = _number(head, 8, 8, "big")
        if size < 8:  # 0: up to the file's end, whatever that is
            break
        position += size
    return position or None


def _matroska_end(read: Read) -> int | None:
    """Of two elements, a header and a segment; each has an id, a size, and a content of so many bytes."""
    begin, size = _matroska_element(read(0, 16), 4)
    if size is None:
        return None
    position = begin + size
    segment = read(position, 16)
    if segment[:4] != _MATROSKA_SEGMENT:
        return None
    begin, size = _matroska_element(segment, 4)
    return None if size is None else position + begin + size


def _matroska_element(head: bytes, id_bytes: int) -> tuple[int, int | None]:
    """Where an element's content begins, and its size; None is not known, as in a recording that was streamed.

    The leading zeros of the size's first byte tell how many bytes follow it. All ones in the others mean that the size
    is not known.
    """
    first = head[id_bytes]
    if not first:
        raise ValueError
    length = 9 - first.bit_length()
    number = _number(head, id_bytes, length, "big") & (1 << 7 * length) - 1
    return id_bytes + length, None if number == (1 << 7 * length) - 1 else number


def _wav_length_s(read: Read, size_bytes: int) -> float | None:
    """Of "fmt " (tag, channels, rate, bytes a second, bytes a frame, bits a sample) and the size of "data"."""
    rate, frame_bytes = 0, 0
    for name, begin, size in _Chunks(12).walk(read):
        if name == b"fmt ":
            fmt = read(begin, 16)
            bits = _number(fmt, 14, 2)
            if _number(fmt, 0, 2) not in (_PCM, _FLOAT, _EXTENSIBLE) or bits % 8:
                return None
            rate, frame_bytes = _number(fmt, 4, 4), _number(fmt, 2, 2) * bits // 8
        elif name == b"data":
            # A writer that was killed, or wrote into a pipe, leaves a size of nothing or of everything.
            if size in (0, _UNKNOWN_SIZE):
                return None
            return min(size, size_bytes - begin) // frame_bytes / rate
    return None


def _flac_length_s(head: bytes) -> float | None:
    """Of STREAMINFO, which is first: from its 11th byte 20 bits of rate, 8 of no concern, 36 of samples."""
    if head[4] & 0x7F or len(head) < 26:
        return None
    packed = int.from_bytes(head[18:26], "big")
    frames = packed & ((1 << 36) - 1)
    return frames / (packed >> 44) if frames else None


def _number(content: bytes, begin: int, count: int, order: _Order = "little") -> int:
    if begin + count > len(content):
        raise IndexError
    return int.from_bytes(content[begin : begin + count], order)
