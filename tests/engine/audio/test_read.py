"""Recordings of any rate, width and channel count become one waveform; bad ones become one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import AudioError, OutputError
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.audio.waveform import to_pcm16
from mkc_fast.engine.audio.write import write_waveform


def tone(rate: int, seconds: float = 0.5, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 384000])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_any_rate_and_channel_count_becomes_mono_16_khz(rate: int, channels: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate, channels=channels), rate, subtype="FLOAT")
    waveform = read_waveform(tmp_path / "a.wav", 16000)
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - 8000) <= 1
    middle = slice(1000, 7000)  # away from the resampler's edges
    np.testing.assert_allclose(waveform[middle], tone(16000)[: len(waveform), 0][middle], atol=1e-3)


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", "PCM_U8"), ("wav", "PCM_24"), ("wav", "DOUBLE"), ("flac", "PCM_16"), ("ogg", "VORBIS"),
     ("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_16")],
)  # fmt: skip
def test_whatever_libsndfile_reads_is_read(suffix: str, subtype: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(16000, 1.0), 16000, subtype=subtype)
    waveform = read_waveform(path, 16000)
    assert abs(len(waveform) - 16000) < 3000  # lossy formats add padding
    assert 0.3 < np.abs(waveform[2000:12000]).max() < 0.6


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([np.full(1000, 0.5), np.full(1000, -0.25)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_waveform(tmp_path / "a.wav", 16000), 0.125)


def test_16_khz_samples_come_unchanged(tmp_path: Path) -> None:
    samples = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    np.testing.assert_array_equal(read_waveform(tmp_path / "a.wav", 16000), samples / np.float32(32768))


def test_real_speech_reads_alike_from_both_encodings(speech: Path) -> None:
    mono = read_waveform(speech / "jfk_16k_mono.flac", 16000)
    stereo = read_waveform(speech / "jfk_44k_stereo.flac", 16000)
    assert abs(len(mono) - len(stereo)) < 1600
    shared = min(len(mono), len(stereo))
    assert np.corrcoef(mono[:shared], stereo[:shared])[0, 1] > 0.99


def damaged(folder: Path, kind: str) -> Path:
    path = folder / "bad.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 32000), 16000)
    if kind == "missing":
        path.unlink()
    elif kind == "a directory":
        path.unlink()
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not audio")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "too short":
        soundfile.write(path, np.zeros(399), 16000)
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), 16000)
    elif kind == "not finite":
        soundfile.write(path, np.array([0.0, np.nan] * 500), 16000, subtype="FLOAT", format="WAV")
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "a directory", "empty", "text", "truncated", "too short", "no samples", "not finite"]
)
def test_bad_recordings_are_one_line_that_names_them(kind: str, tmp_path: Path) -> None:
    with pytest.raises(AudioError) as caught:
        read_waveform(damaged(tmp_path, kind), 16000, 400)
    assert "bad.flac" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_written_files_hold_the_nearest_16_bit_values(suffix: str, tmp_path: Path) -> None:
    waveform = np.array([-1.0, -0.5, 0.0, 0.25, 1 / 32768, 0.6 / 32768, 1.0, 1.5], np.float32)
    write_waveform(tmp_path / f"a.{suffix}", waveform, 16000)
    samples, rate = soundfile.read(tmp_path / f"a.{suffix}", dtype="int16")
    assert rate == 16000
    assert samples.tolist() == [-32768, -16384, 0, 8192, 1, 1, 32767, 32767]
    assert soundfile.info(tmp_path / f"a.{suffix}").subtype == "PCM_16"
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]
    assert to_pcm16(waveform).dtype == np.int16


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="gone"):
        write_waveform(tmp_path / "gone" / "a.wav", np.zeros(10, np.float32), 16000)
