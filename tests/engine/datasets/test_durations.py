"""Lists of lengths in an anonymized data directory are those of its recordings, counted as the original counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast.engine.datasets.durations import with_durations, with_frame_counts
from mkc_fast.engine.datasets.kaldi import finish_data_directory, read_data_directory

# An output has T * 320 samples of a recording with T = (S - 400) // 320 + 1 frames.
ORIGINAL = {"u1": 87_654, "u2": 16_000, "u3": 48_123}
OUTPUT = {name: ((samples - 400) // 320 + 1) * 320 for name, samples in ORIGINAL.items()}
LENGTHS = {name: (samples, 16_000) for name, samples in OUTPUT.items()}


def test_durations_keep_their_decimals_and_at_least_two() -> None:
    text = "u1 5.478375\nu2 1\nother 2.5\nu3 3.008 and more\n"
    assert with_durations(text, LENGTHS) == "u1 5.460000\nu2 0.98\nother 2.5\nu3 3.008 and more\n"


@pytest.mark.parametrize("count", [lambda s: 1 + (s - 400) // 160, lambda s: (s + 80) // 160], ids=["snip", "centre"])
def test_frames_are_counted_as_the_list_counts_them(count) -> None:
    text = "".join(f"{name} {count(samples)}\n" for name, samples in ORIGINAL.items())
    expected = "".join(f"{name} {count(samples)}\n" for name, samples in OUTPUT.items())
    assert with_frame_counts(text, LENGTHS) == expected


def test_a_data_directory_has_all_lists_of_its_original_with_the_outputs_lengths(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.mkdir()
    (path / "wav.scp").write_text("u1 a.wav\nu2 b.wav\nfailed c.wav\n")
    (path / "utt2dur").write_text("u1 1.0\nu2 0.5\nfailed 3.25\n")
    (path / "reco2dur").write_text("u1 1.0\nu2 0.5\nfailed 3.25\n")
    (path / "utt2num_frames").write_text("u1 98\nu2 48\nfailed 323\n")
    directory = read_data_directory(path, "_mkc")
    directory.audio_dir.mkdir(parents=True)
    written = {}
    for name, samples in (("u1", 15_680), ("u2", 7_680)):
        written[name] = directory.audio_dir / f"{name}.wav"
        soundfile.write(written[name], np.zeros(samples), 16_000)
    finish_data_directory(directory, written)
    out = tmp_path / "d_mkc"
    assert (out / "utt2dur").read_text() == "u1 0.98\nu2 0.48\nfailed 3.25\n"
    assert (out / "reco2dur").read_text() == (out / "utt2dur").read_text()
    assert (out / "utt2num_frames").read_text() == "u1 96\nu2 46\nfailed 323\n"
    assert {file.name for file in path.iterdir()} == {file.name for file in out.iterdir() if file.is_file()}
