"""The training demo runs the whole circle, and what it prints is measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mkc_fast.cli import demo_train, main
from mkc_fast.engine.artifacts import open_bank
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_demo_trains_from_speech_to_anonymized_speech(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_train, "_STEPS", 200)
    threads = torch.get_num_threads()
    try:
        assert main(["demo", "--train", "--out", str(tmp_path / "demo")]) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    rows = re.findall(r"^ *(spk\d\d) +\d+ +([\d.]+) +([\d.]+) +(-?\d+)%", said, re.MULTILINE)
    assert [name for name, *_ in rows] == ["spk03", "spk06", "spk09", "spk12"]
    for _, quantized, restored, less in rows:
        assert float(restored) < float(quantized)  # after 200 steps a little
        assert int(less) == pytest.approx(100 * (1 - float(restored) / float(quantized)), abs=1)
    made = tmp_path / "demo"
    assert len(open_bank(made / "bank").info.names) == 16
    for name in ("model/model.json", "features/features.json", "training.png", "anonymized.wav"):
        assert (made / name).stat().st_size > 0


def test_a_size_that_takes_days_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--train", "--size", "large", "--out", str(tmp_path / "demo")]) == 2
    assert "--train trains a small set of its own" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_the_speech_that_is_shipped_is_small_and_complete() -> None:
    folder = ROOT / "cli" / "demo_speakers"
    recordings = [line.split() for line in (folder / "wav.scp").read_text().splitlines()]
    speakers = [line.split() for line in (folder / "utt2spk").read_text().splitlines()]
    assert [name for name, _ in recordings] == [name for name, _ in speakers]
    assert {path.name for path in folder.glob("*.flac")} == {name for _, name in recordings}
    assert sum(path.stat().st_size for path in folder.glob("*.flac")) < 800_000
