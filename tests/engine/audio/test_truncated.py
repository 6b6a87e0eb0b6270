"""Recordings that were cut are told from shorter ones, whatever format libsndfile writes them in."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import AudioError
from mkc_fast.engine.audio import read as module
from mkc_fast.engine.audio.headers import claimed_bytes
from mkc_fast.engine.audio.read import read_utterance, read_waveform
from mkc_fast.engine.datasets.dataset import Utterance

RATE = 16000
# What headers give the size of; of the rest, FLAC and HTK are found damaged by the decoder.
SIZED = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "NIST", "CAF", "SVX")
KINDS = [
    (kind, subtype, channels)
    for kind in (*SIZED, "FLAC")
    for subtype in soundfile.available_subtypes(kind)
    for channels in (1, 2)
]


def written(kind: str, subtype: str, channels: int = 1, frames: int = 20001, endian: str = "FILE") -> bytes:
    """A recording of noise, or a skip where libsndfile does not write it."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (frames, channels))
    file = io.BytesIO()
    try:
        soundfile.write(file, samples, RATE, subtype, endian, kind)
    except (soundfile.SoundFileError, ValueError):
        pytest.skip("libsndfile does not write this")
    return file.getvalue()


def claimed(content: bytes) -> int | None:
    return claimed_bytes(lambda offset, count: content[offset : offset + count])


def refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(AudioError) as caught:
        read_waveform(path, RATE)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "subtype", "channels"), KINDS)
def test_cut_recordings_are_refused_and_whole_ones_are_not(
    kind: str, subtype: str, channels: int, tmp_path: Path
) -> None:
    whole = written(kind, subtype, channels)
    (tmp_path / "whole").write_bytes(whole)
    assert len(read_waveform(tmp_path / "whole", RATE)) >= 20000
    if kind in SIZED:
        size = claimed(whole)
        assert size is not None
        assert len(whole) // 2 < size <= len(whole)
        cuts = [cut for cut in (size - 1, size - 2 * channels, size // 2, size // 2 + 1, 6000, 4096) if cut < size]
    else:
        cuts = [len(whole) - 500, len(whole) // 2]
    for cut in cuts:
        refused(whole[:cut], tmp_path / "cut")


@pytest.mark.parametrize("kind", ["WAV", "AU"])
def test_the_other_byte_order_is_read(kind: str, tmp_path: Path) -> None:
    whole = written(kind, "PCM_16", endian="BIG" if kind == "WAV" else "LITTLE")
    assert whole[:4] in (b"RIFX", b"dns.")
    (tmp_path / "whole").write_bytes(whole)
    assert len(read_waveform(tmp_path / "whole", RATE)) == 20001
    refused(whole[: len(whole) // 2], tmp_path / "cut")


@pytest.mark.parametrize("frames", [20000, 20001])
@pytest.mark.parametrize("where", ["before", "behind", "both"])
def test_other_chunks_are_no_samples(frames: int, where: str, tmp_path: Path) -> None:
    whole = written("WAV", "PCM_U8", frames=frames)
    begin = whole.index(b"data")
    notes = b"LIST" + struct.pack("<I", 9001) + bytes(9002)  # padded, and longer than what is read at first
    head, data = whole[:begin], whole[begin:]
    data += b"\0" * (len(data) % 2)
    content = head + (notes if where != "behind" else b"") + data + (notes if where != "before" else b"")
    (tmp_path / "whole.wav").write_bytes(content)
    assert len(read_waveform(tmp_path / "whole.wav", RATE)) == frames
    # Without the byte that pads an odd size, which some writers leave out.
    (tmp_path / "whole.wav").write_bytes((head + data)[: begin + 8 + frames])
    assert len(read_waveform(tmp_path / "whole.wav", RATE)) == frames
    refused(content[: begin + frames // 2], tmp_path / "cut.wav")


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_what_was_written_into_a_pipe_is_read_to_its_end(size: int, tmp_path: Path) -> None:
    whole = bytearray(written("WAV", "PCM_16"))
    begin = whole.index(b"data") + 4
    whole[begin : begin + 4] = size.to_bytes(4, "little")
    assert claimed(bytes(whole)) is None
    (tmp_path / "a.wav").write_bytes(whole)
    if size:  # libsndfile takes 0 for no samples at all
        assert len(read_waveform(tmp_path / "a.wav", RATE)) == 20001


def test_an_au_of_unknown_size_is_read_to_its_end(tmp_path: Path) -> None:
    whole = bytearray(written("AU", "PCM_16"))
    whole[8:12] = b"\xff" * 4
    (tmp_path / "a.au").write_bytes(whole)
    assert len(read_waveform(tmp_path / "a.au", RATE)) == 20001


def test_what_a_command_prints_is_checked_too(tmp_path: Path) -> None:
    whole = written("WAV", "PCM_16")
    (tmp_path / "a.wav").write_bytes(whole)
    command = f"head -c {len(whole) // 2} {tmp_path / 'a.wav'}"
    with pytest.raises(AudioError, match="truncated"):
        read_utterance(Utterance("u", Path("head"), command=command), RATE, 400)
    assert len(read_utterance(Utterance("u", Path("cat"), command=f"cat {tmp_path / 'a.wav'}"), RATE, 400)) == 20001


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "W64", "CAF", "MP3"])
@pytest.mark.parametrize("end_s", [None, 60.0])
def test_a_file_that_shrinks_while_it_is_read_is_refused(
    kind: str, end_s: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 70 * RATE)
    soundfile.write(path, samples, RATE, format=kind)
    monkeypatch.setattr(module, "_BLOCK_SAMPLES", 1 << 12)
    decoded, peak = [], module.absolute_peak

    def cut(block: np.ndarray) -> float:
        if not decoded:
            os.truncate(path, path.stat().st_size * 3 // 5)
        decoded.append(len(block))
        return peak(block)

    monkeypatch.setattr(module, "absolute_peak", cut)
    with pytest.raises(AudioError, match=str(path)):
        read_waveform(path, RATE, end_s=end_s)
    assert len(decoded) > 1


def test_a_header_that_lies_costs_nothing(tmp_path: Path) -> None:
    """Chunks of no size at all, a million of them: only some are looked at."""
    read: list[int] = []
    content = b"RIFF\xff\xff\xff\xffWAVE" + b"junk\0\0\0\0" * 1_000_000

    def counted(offset: int, count: int) -> bytes:
        read.append(count)
        return content[offset : offset + count]

    assert claimed_bytes(counted) is None
    assert len(read) <= 10_001


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("left", [-1, 0.97, 0.5, "the last page"])
def test_an_ogg_file_that_ends_before_its_last_page_is_refused(
    subtype: str, left: float | str, tmp_path: Path, clip: np.ndarray
) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, clip[:48000], 16000, subtype, format="OGG")
    whole = path.read_bytes()
    assert len(read_waveform(path, 16000)) > 40000
    end = whole.rfind(b"OggS") if isinstance(left, str) else int(left * len(whole)) if left > 0 else int(left)
    path.write_bytes(whole[:end])
    with pytest.raises(AudioError, match="truncated"):
        read_waveform(path, 16000)
