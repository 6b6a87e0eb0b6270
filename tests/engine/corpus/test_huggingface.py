"""``AnonymizeRows`` is a function for ``Dataset.map``: undecoded audio in and out, the same samples as alone."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import ArgumentError, AudioError
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.corpus.huggingface import AnonymizeRows
from tests.conftest import Artifacts


@pytest.fixture
def rows(speech: Path) -> list[dict[str, object]]:
    """A row with bytes and one with a path."""
    path = speech / "jfk_44k_stereo.flac"
    return [{"bytes": path.read_bytes(), "path": "a.flac"}, {"bytes": None, "path": str(speech / "jfk_16k_mono.flac")}]


def decoded(row: dict[str, bytes]) -> np.ndarray:
    return soundfile.read(io.BytesIO(row["bytes"]), dtype="float32")[0]


def test_rows_are_what_the_recordings_give_alone(
    rows: list[dict[str, object]], artifacts: Artifacts, speech: Path
) -> None:
    anonymize = AnonymizeRows(artifacts.model, artifacts.bank, device="cpu", seed=5)
    made = anonymize({"audio": rows, "text": ["x", "y"]}, [7, 8], 0)["audio"]
    assert [row["path"] for row in made] == ["a.flac", "jfk_16k_mono.flac"]
    for row, name, number in zip(made, ("jfk_44k_stereo", "jfk_16k_mono"), (7, 8), strict=True):
        waveform = read_waveform(speech / f"{name}.flac", 16000)
        alone = artifacts.anonymizer.anonymize(waveform, mode="frame", stride=1, seed=5, utterance_id=str(number))
        np.testing.assert_allclose(decoded(row), alone.waveform, atol=1e-3)
    assert len(pickle.dumps(anonymize)) < 2000, "the model is not for other processes"


def test_what_cannot_be_done_is_said(rows: list[dict[str, object]], artifacts: Artifacts) -> None:
    anonymize = AnonymizeRows(artifacts.model, artifacts.bank, device="cpu", seed=5)
    with pytest.raises(ArgumentError, match="rows need ids"):
        anonymize({"audio": rows}, 0)
    with pytest.raises(ArgumentError, match="no column 'audio'"):
        anonymize({"sound": rows}, [0, 1])
    with pytest.raises(ArgumentError, match=r"Audio\(decode=False\)"):
        anonymize({"audio": [{"array": [0.0], "sampling_rate": 16000}]}, [0])
    with pytest.raises(AudioError, match="row 3: not readable as audio"):
        anonymize({"audio": [{"bytes": b"no audio", "path": None}]}, [3])
    with pytest.raises(AudioError, match="only local files are read"):
        anonymize({"audio": [{"bytes": None, "path": "https://example.org/a.wav"}]}, [3])


def test_datasets_maps_with_it(rows: list[dict[str, object]], artifacts: Artifacts, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    code = f"""
import sys
from pathlib import Path
from datasets import Audio, Dataset
from mkc_fast.engine.corpus.huggingface import AnonymizeRows
sound = Path({str(rows[1]["path"])!r}).read_bytes()
rows = [{{"audio": {{"bytes": sound, "path": f"{{n}}.flac"}}, "id": f"u{{n}}"}} for n in range(4)]
dataset = Dataset.from_list(rows).cast_column("audio", Audio(decode=False))
anonymize = AnonymizeRows({str(artifacts.model)!r}, {str(artifacts.bank)!r}, id_column="id", device="cpu", seed=5)
made = dataset.map(anonymize, batched=True, batch_size=3, with_rank=True)
made.cast_column("audio", Audio(sampling_rate=16_000)).save_to_disk({str(tmp_path / "made")!r})
assert made["id"][:] == ["u0", "u1", "u2", "u3"]
assert all(row["bytes"][:4] == b"fLaC" for row in made["audio"])
assert len({{row["bytes"] for row in made["audio"]}}) == 4  # each its own draws
print("torch" in sys.modules)
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **offline}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "False"
