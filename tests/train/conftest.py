"""Speech to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

SPEAKERS = ("anna", "ben", "cleo")


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
