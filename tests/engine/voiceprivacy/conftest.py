"""A toy checkout with the folders, lists and commands of the toolkits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast.export import build_bank

# Sets of 2024 with so many utterances each; the speakers are the first part of an id, as in LibriSpeech.
SETS = {
    "libri_dev_enrolls": 3,
    "libri_dev_trials_f": 3,
    "libri_dev_trials_m": 2,
    "IEMOCAP_dev": 2,
    "train-clean-360": 4,
}


def make_set(checkout: Path, name: str, count: int, clip: np.ndarray) -> None:
    """A data directory of this name in a checkout, with relative paths; the training set has commands of flac."""
    audio, data = checkout / "corpora" / name, checkout / "data" / name
    audio.mkdir(parents=True)
    data.mkdir(parents=True)
    lists: dict[str, list[str]] = {file: [] for file in ("wav.scp", "utt2spk", "text", "utt2dur", "utt2num_frames")}
    train = name.startswith("train")
    for number in range(count):
        speaker = str(100 + number % 2)
        utterance = f"{speaker}-{1000 + len(name)}-{number:04d}"
        path = audio / f"{utterance}.{'flac' if train else 'wav'}"
        samples = clip[: 8000 + 800 * number]
        soundfile.write(path, samples, 16000)
        shown = path.relative_to(checkout)
        lists["wav.scp"].append(f"{utterance} flac -c -d -s {shown} |" if train else f"{utterance} {shown}")
        lists["utt2spk"].append(f"{utterance} {speaker}")
        lists["text"].append(f"{utterance} SOME WORDS")
        lists["utt2dur"].append(f"{utterance} {len(samples) / 16000}")
        lists["utt2num_frames"].append(f"{utterance} {len(samples) // 160}")
    for file, lines in lists.items():
        (data / file).write_text("".join(f"{line}\n" for line in lines))
    (data / "spk2gender").write_text("100 f\n101 m\n")
    (data / "trials").write_text("100 100-1000-0000 target\n")


@pytest.fixture
def checkout(tmp_path: Path, clip: np.ndarray) -> Path:
    """A checkout with five sets, an anonymized directory of another system, and a folder of no toolkit."""
    root = tmp_path / "checkout"
    for name, count in SETS.items():
        make_set(root, name, count, clip)
    make_set(root, "libri_dev_enrolls_mcadams", 1, clip)
    make_set(root, "my_own_set", 1, clip)
    (root / "run_anonymization.py").write_text("")
    return root


@pytest.fixture
def banks(tmp_path: Path, golden: Path) -> dict[str, Path]:
    """Banks of one, three and all entries."""
    for name, count in {"one": 1, "three": 3, "all": None}.items():
        build_bank(golden / "kmeans.scp", tmp_path / name, kmeans_num=count, seed=1)
    return {name: tmp_path / name for name in ("one", "three", "all")}
