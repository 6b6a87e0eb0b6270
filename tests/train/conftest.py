"""Speech to train on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.cluster import MiniBatchKMeans

from mkc_fast.engine.artifacts import read_model_info
from mkc_fast.export import build_bank
from mkc_fast.export.checkpoints.joblib_writer import write_kmeans
from mkc_fast.train.features.cache import CacheFacts, Entry, encoder_facts
from tests.conftest import Artifacts, MakeOnce

SPEAKERS = ("anna", "ben", "cleo")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks are slower with more, most of all beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def speech(clip: np.ndarray, tmp_path: Path) -> Path:
    """A list of two recordings of each of three speakers, with ``utt2spk`` beside it."""
    lines, speakers = [], []
    for number, speaker in enumerate(SPEAKERS):
        for part in range(2):
            name, begin = f"{speaker}-{part}", (2 * number + part) * 7000
            soundfile.write(tmp_path / f"{name}.wav", (0.5 + 0.2 * number) * clip[begin : begin + 32000], 16000)
            lines.append(f"{name} {name}.wav\n")
            speakers.append(f"{name} {speaker}\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    (tmp_path / "utt2spk").write_text("".join(speakers))
    return tmp_path / "wav.scp"


@dataclass(frozen=True)
class Synthetic:
    """Features of synthetic speakers, a bank with a k-means model of each, and the number of speakers.

    An utterance is a walk through units that all speakers share. A speaker turns the space of features a little, and
    moves it in some of the eight directions in which speakers differ.
    """

    cache: Path
    bank: Path
    speakers: list[str]


def make_synthetic(folder: Path, model: Path, seed: int, speakers: int = 30, clusters: int = 24) -> Synthetic:
    """Write a cache and a bank of synthetic speakers for a model of 64 dimensions."""
    info = read_model_info(model)
    random = np.random.default_rng(seed)
    units = random.normal(size=(20, info.dim))
    directions = random.normal(size=(8, info.dim)) / np.sqrt(8)
    rows, entries, names = [], [], []
    folder.mkdir()
    for number in range(speakers):
        name = f"spk{number:02d}"
        names.append(name)
        offset = 0.6 * random.normal(size=8) @ directions
        turn = np.eye(info.dim) + 0.2 * random.normal(size=(info.dim, info.dim)) / np.sqrt(info.dim)
        own = []
        for part in range(4):
            durations = random.integers(3, 9, 20)
            path = np.repeat(units[random.integers(len(units), size=20)], durations, axis=0)
            smooth = np.stack([np.convolve(column, (0.25, 0.5, 0.25), "same") for column in path.T], 1)
            features = smooth @ turn + offset + 0.2 * random.normal(size=path.shape)
            entries.append(Entry(f"{name}-{part}", name, 0, sum(map(len, rows)), len(features)))
            rows.append(features.astype(np.float32))
            own.append(features)
        every = np.concatenate(own)
        fitted = MiniBatchKMeans(clusters, n_init=1, random_state=seed).fit(every)
        write_kmeans(folder / f"{name}.pt", fitted.cluster_centers_)
    (folder / "kmeans.scp").write_text("".join(f"{name} {name}.pt\n" for name in names))
    build_bank(folder / "kmeans.scp", folder / "bank")
    cache = folder / "cache"
    cache.mkdir()
    np.save(cache / "shard-000000.npy", np.concatenate(rows))
    facts = CacheFacts(encoder_facts(info), "float32", [sum(map(len, rows))], len(entries), {})
    (cache / "features.json").write_text(facts.as_json())
    (cache / "index.jsonl").write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in entries))
    return Synthetic(cache, folder / "bank", names)


@pytest.fixture(scope="session")
def synthetic(artifacts: Artifacts, make_once: MakeOnce) -> Synthetic:
    """Eight synthetic speakers."""
    folder = make_once("synthetic", lambda made: make_synthetic(made / "of", artifacts.model, 1, speakers=8) and None)
    return Synthetic(folder / "of" / "cache", folder / "of" / "bank", [f"spk{number:02d}" for number in range(8)])
