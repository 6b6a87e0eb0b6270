"""The scripts of the small set: what they write is what the engine reads, and each training goes on where it ended."""

from __future__ import annotations

import ctypes.util
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mkc_fast.engine.artifacts import open_bank
from mkc_fast.export import build_bank, export_model
from mkc_fast.export.checkpoints.published import load_wavlm
from mkc_fast.export.networks.wavlm import WavLM as ExportedWavLM
from tests.conftest import ROOT

SCRIPTS = ROOT / "examples" / "small_set"
TIMEOUT_S = 900


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the scripts is where Python looks first, as when they run."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for name in ("sizes", "voices", "speech", "wavlm", "encoder", "start", "make"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two speakers of noise, with phones, as ``speech.py`` writes them."""
    random = np.random.default_rng(1)
    for name in ("train", "valid"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        lists: dict[str, list[str]] = {"wav.scp": [], "utt2spk": [], "phones.ctm": []}
        for speaker in ("awb0", "slt2"):
            for number in range(4):
                utterance = f"{speaker}-{number:04d}"
                samples = 0.1 * random.standard_normal(40000)
                soundfile.write(folder / f"{utterance}.flac", samples, 16000, subtype="PCM_16")
                lists["wav.scp"].append(f"{utterance} {utterance}.flac\n")
                lists["utt2spk"].append(f"{utterance} {speaker}\n")
                lists["phones.ctm"] += [
                    f"{utterance} 1 0.000 1.000 sil\n",
                    f"{utterance} 1 1.000 0.700 aa\n",
                    f"{utterance} 1 1.700 0.800 z\n",
                ]
        for file, lines in lists.items():
            (folder / file).write_text("".join(lines))
    return tmp_path / "data"


def run(script: str, *arguments: object) -> None:
    subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        check=True,
        timeout=TIMEOUT_S,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # more are slower in networks so small
    )


@pytest.mark.usefixtures("scripts")
def test_the_encoder_in_training_is_the_one_that_is_exported(tmp_path: Path) -> None:
    from sizes import CONVOLUTIONS, WAVLM
    from wavlm import WavLM

    torch.manual_seed(2)
    network = WavLM({**WAVLM, "conv_layers": CONVOLUTIONS}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path / "wavlm.pt"
    torch.save({"cfg": WAVLM, "model": network.published()}, path)
    exported = ExportedWavLM(path, load_wavlm(path), WAVLM["encoder_layers"])
    waveform = 0.1 * torch.randn(2, 9000)
    with torch.no_grad():
        torch.testing.assert_close(
            exported(waveform, torch.tensor([9000, 9000])), network(waveform), rtol=1e-4, atol=1e-4
        )


@pytest.mark.usefixtures("scripts")
def test_phones_and_spectra_belong_to_the_frames_that_are_heard(data: Path) -> None:
    from encoder import Speech
    from sizes import HOP, RATE
    from speech import PHONES

    speech = Speech(data / "train")
    heard, clean, phones, speakers = speech.batch(np.random.default_rng(3), 6, change=False)
    np.testing.assert_array_equal(heard, clean)
    times = [0.0, 1.0, 1.7, 2.5]
    named = [PHONES.index(name) for name in ("sil", "aa", "z")]
    for wave, labels, speaker in zip(clean, phones, speakers, strict=True):
        # Where the crop lies in its speaker's recordings, which are 2.5 s long each.
        samples, _ = speech.streams[speaker]
        places = np.flatnonzero(samples == np.int16(round(float(wave[0]) * 32768)))
        (begin,) = [at for at in places if np.array_equal(samples[at : at + 50] / np.float32(32768), wave[:50])]
        middles = ((begin + 200 + HOP * np.arange(len(labels))) / RATE) % 2.5
        expected = np.asarray(named)[np.searchsorted(times, middles, side="right") - 1]
        assert (expected == labels).mean() > 0.98  # phones are kept each 5 ms
    changed, clean, *_ = speech.batch(np.random.default_rng(3), 6, change=True)
    assert np.isfinite(changed).all()
    assert not np.array_equal(changed, clean)


@pytest.mark.usefixtures("scripts")
def test_the_encoders_training_goes_on_exactly(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import encoder
    from encoder import Speech, Training
    from sizes import WAVLM

    monkeypatch.setattr(encoder, "_QUANTIZED_FROM", 1)
    torch.set_num_threads(1)
    speech = Speech(data / "train")

    def taken(training: Training, first: int, last: int) -> list[dict[str, float]]:
        return [training.take(speech.batch(np.random.default_rng(n), 1, change=True)) for n in range(first, last)]

    whole = Training(4, 1e-3, 2, bf16=False, device=torch.device("cpu"))
    logs = taken(whole, 0, 4)
    begun = Training(4, 1e-3, 2, bf16=False, device=torch.device("cpu"))
    parts = taken(begun, 0, 2)
    gone_on = Training(4, 1e-3, 2, bf16=False, device=torch.device("cpu"))
    gone_on.resume(begun.state())
    assert parts + taken(gone_on, 2, 4) == logs
    assert "quantized" in logs[-1]
    assert len(whole.encoder.published()) == len(whole.encoder.state_dict())
    assert WAVLM["encoder_layers"] == 6


@pytest.mark.usefixtures("scripts")
def test_sentences_are_plain_and_always_the_same(tmp_path: Path) -> None:
    from speech import sentences

    text = tmp_path / "book.txt"
    text.write_text(
        "The ship lay at anchor in the bay. He had 3 men with him on the deck. Why? "
        'It was the mate, who sang to us all night. "Aye," said he; the wind is rising from the west today. '
        "The ship lay at anchor in the bay."
    )
    made = sentences([text])
    assert sorted(made) == [
        "It was the mate, who sang to us all night",
        "The ship lay at anchor in the bay",
        "The wind is rising from the west today",
    ]
    assert made == sentences([text])


@pytest.mark.usefixtures("scripts")
@pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="espeak-ng is not installed")
def test_a_synthesizer_says_a_sentence_and_its_phones() -> None:
    from speech import PHONES, speak
    from voices import ESPEAK, TRAINING

    voice = next(voice for voice in TRAINING if voice.synthesizer == ESPEAK)
    samples, segments = speak(voice, "The old mill by the river grinds corn")
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.01)
    assert segments[-1][1] == pytest.approx(len(samples) / 16000, abs=0.01)
    assert all(begin < end for begin, end, _ in segments)
    spoken = " ".join(phone for _, _, phone in segments if phone != "sil")
    assert set(spoken.split()) <= set(PHONES)
    assert "m ih l b ay" in spoken


def test_speakers_are_many_and_none_is_in_both_parts() -> None:
    sys.path.insert(0, str(SCRIPTS))
    try:
        from voices import HELD_OUT, TRAINING
    finally:
        sys.path.remove(str(SCRIPTS))
    names = [voice.name for voice in (*TRAINING, *HELD_OUT)]
    assert len(set(names)) == len(names)
    assert len(TRAINING) >= 40
    settings = [(voice.base, voice.formants, voice.pitch) for voice in (*TRAINING, *HELD_OUT)]
    assert len(set(settings)) == len(settings)


def test_the_scripts_make_a_set_that_the_engine_runs(data: Path, tmp_path: Path) -> None:
    """Two steps of everything: from data to packed checkpoints, exported and built."""
    wavlm, start, work, packed = (tmp_path / name for name in ("WavLM.pt", "start.pt", "work", "set"))
    run("encoder.py", "--data", data, "--out", wavlm, "--steps", 1, "--batch", 1)
    run("start.py", "--data", data, "--out", start, "--steps", 2, "--spectral-steps", 1, "--batch", 1, "--frames", 16)
    given = ["--data", data, "--wavlm", wavlm, "--start", start, "--work", work, "--clusters", 8]
    steps = ["--conformer-steps", 2, "--feature-steps", 1, "--vocoder-steps", 2, "--adversarial-steps", 1]
    run("make.py", *given, *steps, "--held-out", "slt2", "--pack", packed)
    vocoders = {"vocoder_of_features": 1, "vocoder": 2, "vocoder_with_discriminators": 1}
    made = {"features", "features_of_varied_speech", "bank", "start", "conformer", *vocoders}
    assert set(json.loads((work / "hours.json").read_text())) == made
    record = tmp_path / "small_set.json"
    run("make.py", *given, *steps, "--held-out", "slt2", "--pack", packed, "--record", record)  # everything is there
    said = json.loads(record.read_text())
    assert said["steps"] == {"encoder": 1, "conformer": 2, "start": 2, **vocoders}
    assert set(said["hours"]) == {"encoder", *made}
    assert [line["step"] for line in said["curves"]["start"]] == [2]
    assert "discriminators" in said["curves"]["vocoder_with_discriminators"][-1]
    assert "discriminators" not in said["curves"]["vocoder"][-1]
    for name in ("wavlm.pt", "conformer_vocoder.pt"):
        (tmp_path / name).write_bytes(lzma.decompress((packed / f"{name}.xz").read_bytes()))
    info = export_model(tmp_path / "wavlm.pt", tmp_path / "conformer_vocoder.pt", tmp_path / "model")
    assert (info.dim, info.hop) == (160, 320)
    built = build_bank(packed / "kmeans.scp", tmp_path / "bank")
    assert built.names == ["awb0", "slt2"]
    exact, rounded = open_bank(work / "bank").centroids, open_bank(tmp_path / "bank").centroids
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=0.151 * exact.std())
    assert not np.array_equal(rounded, exact)
    assert sum(path.stat().st_size for path in packed.rglob("*") if path.is_file()) < 10e6
