"""Decodes what libsndfile cannot, through PyAV: MP4 and M4A, WebM and Matroska, raw AAC, AMR, WMA and others.

FFmpeg can do much more than decode: its formats include playlists that name other files and hosts. So it never guesses
a format and never opens anything. A file's first bytes choose one of the formats below, FFmpeg reads from a file that
is open already, whatever it asks to open besides is refused, and only decoders of audio run.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np

from mkc_fast.engine.audio.headers import MATROSKA, MP4_BOXES
from mkc_fast.errors import AudioError, MkcError
from mkc_fast.extras import required
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from numpy.typing import NDArray

    # Up to so many bytes of a file, from an offset on.
    Read = Callable[[int, int], bytes]

UNKNOWN_FRAMES = 1 << 62  # libsndfile's count for a stream that does not say, used here as well
_NAMES = {
    "mov": "MP4/M4A",
    "matroska": "WebM/Matroska",
    "aac": "AAC",
    "mp3": "MPEG audio",
    "amr": "AMR",
    "asf": "WMA/ASF",
    "avi": "AVI",
    "flv": "FLV",
    "ape": "Monkey's Audio",
    "wv": "WavPack",
    "tta": "TTA",
    "mpc8": "Musepack",
    "mpc": "Musepack",
    "ac3": "AC-3",
    "mpegts": "MPEG-TS",
    "mpeg": "MPEG-PS",
    "ogg": "Ogg with a codec that libsndfile lacks",
    "caf": "CAF with a codec that libsndfile lacks",
    "wav": "WAV with a codec that libsndfile lacks",
}
# Formats that FFmpeg has by the bytes which a file begins with.
_MAGIC = (
    (MATROSKA, "matroska"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"#!AMR", "amr"),
    (b"FLV\x01", "flv"),
    (b"MAC ", "ape"),
    (b"wvpk", "wv"),
    (b"TTA1", "tta"),
    (b"MPCK", "mpc8"),
    (b"MP+", "mpc"),
    (b"\x0b\x77", "ac3"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"OggS", "ogg"),
    (b"caff", "caf"),
)
_TS_PACKET = 188
# The decoders that may run; names of FFmpeg. What begins with one of the prefixes may run as well.
# fmt: off
_DECODERS = frozenset(
    {
        "aac", "aac_latm", "ac3", "eac3", "alac", "amrnb", "amrwb", "libopencore_amrnb",
        "libopencore_amrwb", "ape", "cook", "dca", "flac", "g722", "g723_1", "g726", "g729", "gsm",
        "gsm_ms", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "mpc7", "mpc8", "nellymoser",
        "opus", "libopus", "qcelp", "qdm2", "ralf", "shorten", "sipr", "speex", "libspeex", "tta", "vorbis",
        "wavpack", "wmalossless", "wmapro", "wmav1", "wmav2", "wmavoice",
    }
)
# fmt: on
_DECODER_PREFIXES = ("pcm_", "adpcm_")
# How long a stream is, is an estimate in these formats, or that of its longest stream.
_ESTIMATED = frozenset({"aac", "mp3", "amr", "ac3", "mpegts", "mpeg", "flv", "asf", "avi", "matroska", "wav"})
# In MP4 an edit list tells the length in milliseconds mostly, and decoders may need some packets to begin.
_TOLERANCE_S = 0.1
_HELD_FRAMES = 2  # of which the padding at a stream's end is cut
_MAX_ID3 = 1 << 28


def container_format(read: Read) -> str | None:
    """FFmpeg's name of a file's format, where it is one of those that are read here.

    Args:
        read: Up to so many bytes of the file, from an offset on.
    """
    head = read(0, 12)
    if head[:3] == b"ID3" and len(head) >= 10:  # a tag before raw AAC or MPEG audio
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        head = read(10 + min(size, _MAX_ID3), 12)
        return _of_sync(head)
    if head[4:8] in MP4_BOXES:
        return "mov"
    if head[:4] == b"RIFF":
        return {b"WAVE": "wav", b"AVI ": "avi"}.get(head[8:12])
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:1] == b"\x47" and read(_TS_PACKET, 1) == read(2 * _TS_PACKET, 1) == b"\x47":
        return "mpegts"
    return _of_sync(head)


def _of_sync(head: bytes) -> str | None:
    """Of a stream of frames that begin with twelve ones: layer 0 is AAC, the others are MPEG audio."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xF0 != 0xF0:
        return None
    return "mp3" if head[1] & 0x06 else "aac"


def container_length_s(file: BinaryIO, kind: str) -> float:
    """Seconds of a recording as its header has them, without decoding it; 0 where it does not say or cannot be read.

    Args:
        file: Open for reading; it is left open.
        kind: Its format.
    """
    try:
        with _opened(file, kind, "") as container:
            audio = container.streams.audio
            if not audio:
                return 0.0
            if audio[0].duration is not None and audio[0].time_base is not None:
                return max(0.0, float(audio[0].duration * audio[0].time_base))
            return max(0.0, (container.duration or 0) / 1e6)
    except Exception:  # PyAV is missing, or the file is damaged: whoever decodes it says so
        return 0.0


class ContainerFile:
    """The first audio stream of a file, read forward, with what is used here of ``soundfile.SoundFile``.

    Encoder delay and padding are cut, as far as the file tells them. Several channels become one: their mean, or the
    one that is asked for.

    Attributes:
        samplerate: Hz, of the decoded samples.
        frames: How many there are as the header has it; ``UNKNOWN_FRAMES`` where it does not say.
        channels: 1.
        format: Its name in messages.
    """

    channels = 1

    def __init__(self, file: BinaryIO, kind: str, shown: str, channel: int | None = None) -> None:
        """Open a file; it is closed with this object.

        Args:
            file: Open for reading.
            kind: Its format, from ``container_format``.
            shown: Its name in messages.
            channel: Counted from 0; None is the mean of all.

        Raises:
            AudioError: PyAV is missing, or the file is damaged, without audio or this channel, or of a codec that is
                not admitted.
        """
        self.format, self._shown, self._kind, self._channel = _NAMES[kind], shown, kind, channel
        self._closing = contextlib.ExitStack()
        self._closing.callback(file.close)
        try:
            self._container = self._closing.enter_context(_opened(file, kind, shown))
            audio = self._container.streams.audio
            if not audio:
                raise AudioError(f"{shown}: holds no audio, only {self._others()}")
            self._stream = audio[0]
            codec = self._stream.codec_context
            name = getattr(codec, "name", "unknown")  # None for a codec that this FFmpeg does not know
            if name not in _DECODERS and not name.startswith(_DECODER_PREFIXES):
                raise AudioError(f"{shown}: its audio has the codec {one_line(name, 40)}, which is not read")
            codec.thread_count = 1  # a worker has its share of the cores
            self._left = self._trimmed()
            self._block = next(self._left, np.zeros(0, np.float32))
        except BaseException:
            self._closing.close()
            raise
        self.frames = self._claimed() if kind not in _ESTIMATED else UNKNOWN_FRAMES

    def __enter__(self) -> ContainerFile:  # noqa: PYI034 - Self is in the library from Python 3.11 on
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def seek(self, frame: int) -> None:
        """Go to a sample, from the beginning. The samples before it are decoded and left out, so that it is exact."""
        while frame > 0:
            block = self.read(min(frame, 1 << 18))
            if not len(block):
                return
            frame -= len(block)

    def read(self, count: int, dtype: str = "float32", always_2d: bool = True) -> NDArray[np.float32]:  # noqa: ARG002
        """The next samples, at most ``count``: (n, 1) float32; none at the end.

        Raises:
            AudioError: The stream is damaged or truncated, or changes its sample rate.
        """
        parts, missing = [], count
        while missing:
            if not len(self._block):
                block = next(self._left, None)
                if block is None:
                    break
                self._block = block
                continue
            parts.append(self._block[:missing])
            self._block = self._block[missing:]
            missing -= len(parts[-1])
        return (np.concatenate(parts) if parts else np.zeros(0, np.float32))[:, None]

    def _others(self) -> str:
        kinds = sorted({str(stream.type) for stream in self._container.streams})
        return one_line(" and ".join(kinds), 60) or "no stream"

    def _claimed(self) -> int:
        """Samples of the stream as its header has them."""
        duration, base = self._stream.duration, self._stream.time_base
        if not duration or not base or duration < 0:
            return UNKNOWN_FRAMES
        return min(UNKNOWN_FRAMES, round(float(duration * base) * self.samplerate))

    def _trimmed(self) -> Iterator[NDArray[np.float32]]:
        """Its samples (n,), without the padding at the end."""
        held: list[NDArray[np.float32]] = []
        count, end = 0, None
        self.samplerate = 0
        for frame, ends in self._decoded():
            end = ends
            if frame is None:
                continue
            if not self.samplerate:
                self.samplerate = frame.sample_rate
            if frame.sample_rate != self.samplerate:
                raise AudioError(
                    f"{self._shown}: its sample rate changes from {self.samplerate} to {frame.sample_rate} Hz"
                )
            held.append(self._mono(frame))
            count += len(held[-1])
            if len(held) > _HELD_FRAMES:
                yield held.pop(0)
        if not self.samplerate:
            raise AudioError(f"{self._shown}: holds no audio that can be decoded")
        claimed = UNKNOWN_FRAMES if self._kind in _ESTIMATED else self._claimed()
        if claimed < UNKNOWN_FRAMES and count < claimed - _TOLERANCE_S * self.samplerate:
            raise AudioError(f"{self._shown}: truncated: {count} of {claimed} samples can be read")
        rest = np.concatenate([*held, np.zeros(0, np.float32)])
        padding = 0 if end is None else count - round(end * self.samplerate)
        # More than what was held is no padding: then the stream's times are not those of its samples.
        yield rest[: len(rest) - padding] if 0 < padding < len(rest) else rest

    def _mono(self, frame: AudioFrame) -> NDArray[np.float32]:
        """The samples (n,) of a frame."""
        channels = _channels(frame)
        if self._channel is None:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by the reader
                mean: NDArray[np.float32] = np.full(len(channels), 1 / len(channels), np.float32) @ channels
            return mean
        if self._channel >= len(channels):
            raise AudioError(
                f"{self._shown}: has {len(channels)} channels; channel {self._channel}, counted from 0, is asked for"
            )
        one: NDArray[np.float32] = channels[self._channel]
        return one

    def _decoded(self) -> Iterator[tuple[AudioFrame | None, float | None]]:
        """Each frame, and where the stream ends in seconds so far; without a frame for a packet that has none."""
        import av

        stream, base, begin = self._stream, self._stream.time_base, self._stream.start_time or 0
        longest, end = 0, None
        try:
            for packet in self._container.demux(stream):
                # In the other formats, decoders are told the padding, or times are too coarse to tell it.
                if self._kind == "mov" and base is not None and packet.pts is not None and packet.duration:
                    last = packet.pts + packet.duration - begin
                    if packet.duration >= longest:
                        longest = packet.duration
                        # The edit list tells the end; its times are coarse, and a last packet that is short is exact.
                        last = min(last, stream.duration) if stream.duration and not begin else last
                    end = float(last * base)
                frames: list[AudioFrame | None] = [*packet.decode()]
                for frame in frames or [None]:
                    yield frame, end
        # IndexError: a damaged MPEG-TS whose streams appear late.
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise _not_readable(self._shown, error) from None


def _channels(frame: AudioFrame) -> NDArray[np.float32]:
    """The samples (channels, n) of a frame, in [-1, 1]."""
    samples = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    kind, bits = samples.dtype.kind, 8 * samples.dtype.itemsize
    floats: NDArray[np.float32] = samples.astype(np.float32, copy=False)
    if kind == "u":
        floats = floats - np.float32(1 << bits - 1)
    return floats if kind == "f" else floats * np.float32(2.0 ** (1 - bits))


@contextlib.contextmanager
def _opened(file: BinaryIO, kind: str, shown: str) -> Iterator[InputContainer]:
    """A file as FFmpeg has it, read as one format and without anything else that it may name.

    Raises:
        AudioError: PyAV is missing, or the file is damaged.
    """
    try:
        with required(_NAMES[kind], "av"):
            import av
    except MkcError as error:
        raise AudioError(f"{shown}: {error}") from None

    admitted = [name for name in av.codecs_available if name in _DECODERS or name.startswith(_DECODER_PREFIXES)]
    options = {
        "codec_whitelist": ",".join(sorted(admitted)),
        "format_whitelist": kind,
        "protocol_whitelist": "none",
    }
    try:
        file.seek(0)
        container = av.open(file, "r", kind, container_options=options, metadata_errors="replace", io_open=_refused)
    except av.FFmpegError as error:
        raise _not_readable(shown, error) from None
    with container:
        yield container


def _refused(url: str, flags: int, options: dict[str, Any]) -> NoReturn:  # noqa: ARG001
    """Refuse what a file asks to open."""
    raise OSError("a recording names another file, which is not opened")


def _not_readable(shown: str, error: Exception) -> AudioError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return AudioError(f"{shown}: not readable as audio ({one_line(reason, 120)})")
