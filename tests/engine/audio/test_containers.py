"""What libsndfile cannot read is decoded through PyAV: to the sample, and opening nothing that a file names."""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import AudioError, MkcError
from mkc_fast.engine.audio import containers
from mkc_fast.engine.audio.containers import ContainerFile, container_format
from mkc_fast.engine.audio.read import Recording, duration_s, read_utterance, read_waveform
from mkc_fast.engine.datasets.dataset import Utterance

av = pytest.importorskip("av", reason="PyAV is not installed")

SAMPLES = 60_007  # no multiple of any codec's frame


@dataclass(frozen=True)
class Form:
    """A kind of file that PyAV can write, and how it is read back."""

    name: str
    codec: str
    rate: int = 44_100
    layout: str = "stereo"
    options: dict[str, str] = field(default_factory=dict)
    muxer: str | None = None
    lossless: bool = False
    # Codecs that pad their last frame, in files that do not say by how much.
    padded: bool = False

    def __str__(self) -> str:
        return self.name


ALAC = Form("alac.m4a", "alac", lossless=True)
AAC = Form("aac.m4a", "aac")
WEBM = Form("opus.webm", "libopus", 48_000)
FORMS = [
    AAC,
    Form("mono.m4a", "aac", 16_000, "mono"),
    Form("begins_with_its_header.m4a", "aac", options={"movflags": "faststart"}),
    ALAC,
    Form("flac.mp4", "flac", lossless=True),
    Form("pcm.mov", "pcm_s16le", lossless=True),
    Form("opus.mp4", "libopus", 48_000, "mono"),
    WEBM,
    Form("flac.mkv", "flac", lossless=True),
    Form(
        "fragments.mp4", "aac", options={"movflags": "frag_keyframe+empty_moov", "frag_duration": "300000"}, padded=True
    ),
    Form("adts.aac", "aac", padded=True),
    Form("mp3.avi", "libmp3lame", padded=True),
    Form("aac.flv", "aac", padded=True),
    Form("aac.ts", "aac", muxer="mpegts", padded=True),
    Form("amr.3gp", "libopencore_amrnb", 8_000, "mono", padded=True),
    Form("amr.amr", "libopencore_amrnb", 8_000, "mono", padded=True),
    Form("ac3.ac3", "ac3", padded=True),
]


@pytest.fixture(scope="module")
def spoken(speech: Path) -> np.ndarray:
    """Real speech (S, 2), with the rate ignored."""
    return soundfile.read(speech / "jfk_44k_stereo.flac", dtype="int16")[0][20_000 : 20_000 + SAMPLES]


def encode(path: Path, form: Form, samples: np.ndarray, *, video_first: bool = False, audio_streams: int = 1) -> Path:
    """Write speech (S, 2) int16; each further audio stream has silence."""
    if form.codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {form.codec}")
    with av.open(str(path), "w", format=form.muxer, options=form.options) as file:
        video = None
        if video_first:
            video = file.add_stream("mpeg4", rate=25)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        streams = [file.add_stream(form.codec, rate=form.rate, layout=form.layout) for _ in range(audio_streams)]
        file.start_encoding()
        if video is not None:
            for number in range(60):  # longer than the speech
                picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
                picture.pts = number
                file.mux(video.encode(picture))
            file.mux(video.encode(None))
        for number, stream in enumerate(streams):
            channels = samples if number == 0 else np.zeros_like(samples)
            if form.layout == "mono":
                channels = channels.mean(1, keepdims=True).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels.T), format="s16p", layout=form.layout)
            frame.sample_rate, frame.pts, frame.time_base = form.rate, 0, Fraction(1, form.rate)
            context = stream.codec_context
            convert = av.AudioResampler(context.format, form.layout, form.rate, context.frame_size or None)
            for piece in (*convert.resample(frame), *convert.resample(None)):
                file.mux(stream.encode(piece))
            file.mux(stream.encode(None))
    return path


def mono(samples: np.ndarray) -> np.ndarray:
    return (samples / 32768).mean(1)


def delay(first: np.ndarray, second: np.ndarray) -> int:
    """By how many samples the second waveform is later, where they are most alike."""
    size = 1 << (len(first) + len(second)).bit_length()
    product = np.fft.rfft(second, size) * np.conj(np.fft.rfft(first, size))
    lag = int(np.argmax(np.fft.irfft(product, size)))
    return lag if lag < size // 2 else lag - size


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_speech_comes_back_in_its_place_and_length(form: Form, spoken: np.ndarray, tmp_path: Path) -> None:
    path = encode(tmp_path / form.name, form, spoken)
    with pytest.raises(soundfile.SoundFileError):
        soundfile.info(path)
    read = read_waveform(path, form.rate)
    if form.lossless:
        np.testing.assert_allclose(read, mono(spoken), atol=1e-7)
    elif form.padded:
        assert SAMPLES <= len(read) <= SAMPLES + 4096
        assert 0 <= delay(mono(spoken), read) <= 2048
    else:
        assert len(read) == SAMPLES
        assert delay(mono(spoken), read) == 0
    length = duration_s(Utterance("a", path))
    # What a file says of itself without being decoded; of raw AAC it is a guess.
    assert length == pytest.approx(SAMPLES / form.rate, rel=0.15 if form.name.endswith(".aac") else 0.07)


def test_resampling_is_that_of_other_files(spoken: np.ndarray, tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", ALAC, spoken)
    soundfile.write(tmp_path / "a.wav", spoken, 44_100)
    np.testing.assert_array_equal(read_waveform(path, 16_000), read_waveform(tmp_path / "a.wav", 16_000))


@pytest.mark.parametrize(("begin_s", "end_s"), [(0.3, 0.9), (0.0, 0.5), (0.7, None)])
def test_a_segment_is_the_slice_of_the_whole(
    begin_s: float, end_s: float | None, spoken: np.ndarray, tmp_path: Path
) -> None:
    path = encode(tmp_path / "a.m4a", AAC, spoken)
    whole = read_waveform(path, 44_100)
    part = read_waveform(path, 44_100, begin_s=begin_s, end_s=end_s)
    np.testing.assert_array_equal(part, whole[round(begin_s * 44_100) : end_s and round(end_s * 44_100)])
    with pytest.raises(AudioError, match="begins at 9 s, the recording has 1"):
        read_waveform(path, 44_100, begin_s=9.0)
    with pytest.raises(AudioError, match="ends at 9 s, the recording has 1"):
        read_waveform(path, 44_100, end_s=9.0)


def test_the_first_audio_stream_is_read_and_video_is_not_decoded(
    spoken: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "film.mp4", AAC, spoken, video_first=True, audio_streams=2)
    alone = encode(tmp_path / "a.m4a", AAC, spoken)
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=False) as said:
            read = read_waveform(path, 44_100)
    finally:
        av.logging.set_level(level)
    np.testing.assert_array_equal(read, read_waveform(alone, 44_100))
    assert any("mpeg4" in text and "whitelist" in text for _, _, text in said)


def test_video_without_audio_is_one_line(tmp_path: Path, spoken: np.ndarray) -> None:
    path = encode(tmp_path / "film.mp4", AAC, spoken, video_first=True, audio_streams=0)
    with pytest.raises(AudioError, match=r"film\.mp4: holds no audio, only video$"):
        read_waveform(path, 16_000)
    assert duration_s(Utterance("a", path)) == 0


def test_what_a_command_prints_may_be_m4a(spoken: np.ndarray, tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", AAC, spoken)
    printed = read_utterance(Utterance("a", path, command=f"cat '{path}'"), 16_000, 1)
    np.testing.assert_array_equal(printed, read_waveform(path, 16_000))


def test_a_long_recording_is_decoded_in_blocks(spoken: np.ndarray, tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", AAC, np.tile(spoken, (40, 1)))
    read = read_utterance(Utterance("a", path), 44_100, 1, most_samples=SAMPLES)
    assert isinstance(read, Recording)
    whole = read_waveform(path, 44_100)
    forward = read.forward()
    np.testing.assert_array_equal(np.concatenate([forward[i : i + 70_000] for i in range(0, len(read), 70_000)]), whole)
    with path.open("rb") as file:
        stream = ContainerFile(file, "mov", "a.mp4")
        stream.read(100)
        assert file.tell() < path.stat().st_size / 2
        stream.__exit__(None, None, None)


@pytest.mark.parametrize("form", [AAC, FORMS[2], ALAC, WEBM, Form("mp3.avi", "libmp3lame"), FORMS[9]], ids=str)
def test_cut_files_are_refused(form: Form, spoken: np.ndarray, tmp_path: Path) -> None:
    whole = encode(tmp_path / form.name, form, spoken).read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9, 0.999):
        cut = tmp_path / "cut"
        cut.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(AudioError) as caught:
            read_waveform(cut, 16_000)
        assert str(cut) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_files_never_raise_anything_else(spoken: np.ndarray, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for form in (AAC, WEBM, FORMS[13]):
        whole = np.frombuffer(encode(tmp_path / form.name, form, spoken[:20_000]).read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            where = draw.integers(0, len(whole), 8)
            where[:4] %= 600  # headers
            damaged[where] = draw.integers(0, 256, 8)
            (tmp_path / "damaged").write_bytes(damaged.tobytes())
            duration_s(Utterance("a", tmp_path / "damaged"))
            try:
                assert read_waveform(tmp_path / "damaged", 16_000).ndim == 1
            except AudioError as error:
                assert "\n" not in str(error)  # noqa: PT017


PLAYLISTS = {
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
    "hls.m4a": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
    "concat.mp4": "ffconcat version 1.0\nfile '{}'\n",
    "list.ts": "G\nfile '{}'\n",
    "dash.webm": '<?xml version="1.0"?><MPD><Period><BaseURL>{}</BaseURL></Period></MPD>',
    "sdp.m4a": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 96\na=control:{}\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_open_nothing(name: str, tmp_path: Path, no_waiting: None) -> None:
    secret = tmp_path / "secret.wav"
    os.mkfifo(secret)  # whoever opens it waits
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(secret))
    assert duration_s(Utterance("a", path)) == 0
    with pytest.raises(AudioError, match="not readable as audio"):
        read_waveform(path, 16_000)


def boxed(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def with_reference(movie: bytes, target: Path) -> bytes:
    """A QuickTime file with its header at the end, whose samples are now said to lie in another file."""
    text = os.fsencode(target)
    alias = bytes(10) + b"\x04disk".ljust(28, b"\0") + bytes(12) + b"\x06secret".ljust(64, b"\0") + bytes(16)
    alias += struct.pack(">hh", 1, 1) + bytes(16)
    alias += struct.pack(">hH", 2, len(text)) + text + bytes(len(text) % 2) + struct.pack(">h", -1)
    made = boxed(b"dref", struct.pack(">II", 0, 1) + boxed(b"alis", struct.pack(">I", 0) + alias))
    begin = movie.index(b"dref") - 4
    end = begin + struct.unpack_from(">I", movie, begin)[0]
    grown = bytearray(movie[:begin] + made + movie[end:])
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = grown.rindex(parent, 0, begin) - 4
        size = struct.unpack_from(">I", grown, place)[0]
        struct.pack_into(">I", grown, place, size + len(made) - (end - begin))
    return bytes(grown)


def test_samples_that_lie_in_another_file_are_not_read(spoken: np.ndarray, tmp_path: Path, no_waiting: None) -> None:
    secret = tmp_path / "secret.wav"
    movie = encode(tmp_path / "a.mov", FORMS[5], spoken).read_bytes()
    path = tmp_path / "reference.mov"
    path.write_bytes(with_reference(movie, secret))
    # That it is such a reference: FFmpeg follows it where it is told to.
    asked: list[str] = []

    def note(url: str, flags: int, options: object) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(movie)

    with path.open("rb") as file, av.open(file, "r", "mov", options={"enable_drefs": "1"}, io_open=note):
        assert asked == [str(secret)]
    os.mkfifo(secret)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "_refused", note)
        try:
            read = read_waveform(path, 44_100)
        except AudioError:
            pass
        else:  # the samples that are in the file itself
            assert len(read) == SAMPLES
    assert asked == [str(secret)]


def test_what_a_file_asks_to_open_is_refused(spoken: np.ndarray, tmp_path: Path, no_waiting: None) -> None:
    path = tmp_path / "reference.mov"
    os.mkfifo(tmp_path / "secret.wav")
    path.write_bytes(with_reference(encode(tmp_path / "a.mov", FORMS[5], spoken).read_bytes(), tmp_path / "secret.wav"))
    opened = av.open

    def following(*args: object, container_options: dict[str, str], **named: object) -> object:
        return opened(*args, container_options={**container_options, "enable_drefs": "1"}, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(av, "open", following)
        with pytest.raises(AudioError, match="names another file, which is not opened"):
            read_waveform(path, 44_100)


def test_no_option_lets_ffmpeg_choose_a_format_or_a_host(
    spoken: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.m4a", AAC, spoken)
    given: list[tuple[tuple[object, ...], dict[str, object]]] = []
    opened = av.open

    def noted(*args: object, **named: object) -> object:
        given.append((args, named))
        return opened(*args, **named)

    monkeypatch.setattr(av, "open", noted)
    read_waveform(path, 16_000)
    ((file, mode, form), named), *_ = given
    assert (hasattr(file, "read"), mode, form) == (True, "r", "mov")
    options = named["container_options"]
    assert options["protocol_whitelist"] == "none"
    assert options["format_whitelist"] == "mov"
    codecs = options["codec_whitelist"].split(",")
    assert "aac" in codecs
    assert not {"h264", "mpeg4", "png", "ass", "hevc", "vp9"} & set(codecs)
    kinds = {name: av.Codec(name, "r").type for name in codecs}
    assert set(kinds.values()) == {"audio"}


@pytest.mark.parametrize("name", ["aac.m4a", "opus.webm", "adts.aac"])
def test_without_pyav_one_line_names_the_extra(
    name: str, spoken: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = next(form for form in FORMS if form.name == name)
    path = encode(tmp_path / name, form, spoken)
    monkeypatch.setitem(sys.modules, "av", None)
    assert duration_s(Utterance("a", path)) == 0
    with pytest.raises(MkcError) as caught:
        read_waveform(path, 16_000)
    assert str(path) in str(caught.value)
    assert "needs PyAV: pip install 'mkc-fast[av]'" in str(caught.value)
    assert isinstance(caught.value, AudioError)


def formats(contents: Iterable[bytes]) -> list[str | None]:
    return [container_format(lambda offset, count, c=content: c[offset : offset + count]) for content in contents]


def test_formats_are_known_by_their_first_bytes() -> None:
    tag = b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)
    assert formats([tag + b"\xff\xf1\x50\x80", tag + b"\xff\xfb\x90\x64", tag, tag[:9]]) == ["aac", "mp3", None, None]
    assert formats([b"", b"\x47", b"G" * 4, b"text that is no recording", b"RIFF\0\0\0\0ACON"]) == [None] * 5
    assert formats([b"\x47" + bytes(187) + b"\x47" + bytes(187) + b"\x47"]) == ["mpegts"]
