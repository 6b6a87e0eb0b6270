"""The models of the packages that are installed, on speech: equal to what the packages' own code computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mkc_fast.errors import AudioError
from mkc_fast.evaluation import evaluate
from mkc_fast.evaluation.pitch import SwiftF0
from mkc_fast.evaluation.quality import Dnsmos
from mkc_fast.evaluation.recognizers import PocketSphinx
from mkc_fast.evaluation.resemblyzer import Resemblyzer, mel_bands
from tests.conftest import ROOT

pytest.importorskip("onnxruntime", reason="runs networks")


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


# Of cli/demo_speech.flac; what resemblyzer 0.1.4 over librosa 0.11 and speechmos 0.0.1.1 give.
EMBEDDING = [
    0.142804,
    0,
    0.0232822,
    0,
    0,
    0.0838179,
    0.0160895,
    0,
    0.141268,
    0.163356,
    0.116258,
    0.0970821,
    0.0490525,
    0,
    0.0123355,
    0.0106293,
    0.0445607,
    0,
    0,
    0.00417184,
    0,
    0.0239148,
    0,
    0,
]
RATINGS = [3.22936403, 3.54524272, 2.77090198]


@needs("resemblyzer", "webrtcvad", "torch")
def test_an_embedding_is_that_of_resemblyzers_own_code(clip: np.ndarray) -> None:
    embedding = Resemblyzer().open()(clip)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-6)
    assert embedding[: len(EMBEDDING)] == pytest.approx(EMBEDDING, abs=1e-5)
    assert len(Resemblyzer().facts().files[0].sha256) == 64


@needs("resemblyzer", "webrtcvad", "torch")
@pytest.mark.parametrize(
    "waveform", [np.zeros(16000, np.float32), np.full(16000, 0.1, np.float32), np.zeros(400, np.float32) + 0.1]
)
def test_a_recording_without_speech_has_no_embedding(waveform: np.ndarray) -> None:
    with pytest.raises(AudioError, match="it has no speaker"):
        Resemblyzer().open()(waveform)


@needs("speechmos")
def test_ratings_are_those_of_speechmos_own_code(clip: np.ndarray) -> None:
    assert Dnsmos().open()(clip) == pytest.approx(RATINGS, abs=1e-4)


@needs("speechmos")
def test_noise_rates_lower_than_speech(clip: np.ndarray) -> None:
    rate = Dnsmos().open()
    noise = np.random.default_rng(0).normal(0, 0.1, len(clip)).astype(np.float32)
    assert (rate(noise) < rate(clip)).all()


@needs("swift_f0")
def test_the_pitch_of_a_tone_is_found_and_silence_and_noise_have_none() -> None:
    track = SwiftF0().open()
    time = np.arange(32000) / 16000
    tone = sum(0.1 / number * np.sin(2 * np.pi * 200 * number * time) for number in range(1, 6)).astype(np.float32)
    found = track(tone)
    assert np.median(found[5:-5]) == pytest.approx(200, rel=0.01)
    assert (found[5:-5] > 0).mean() > 0.95
    assert not track(np.zeros(16000, np.float32)).any()
    assert (track(np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)) > 0).mean() < 0.1


@needs("swift_f0")
def test_a_long_recording_has_the_pitch_of_its_parts(clip: np.ndarray) -> None:
    track = SwiftF0().open()
    whole = clip[: len(clip) // 256 * 256]
    once, often = track(whole), track(np.concatenate([whole] * 7))  # 38 s, more than run together
    assert len(often) == 7 * len(once)
    inner = slice(11, len(once) - 11)
    for copy in range(7):
        assert np.allclose(often[copy * len(once) :][inner], once[inner], rtol=1e-3)


@needs("pocketsphinx")
def test_what_is_heard_does_not_depend_on_what_was_heard_before(clip: np.ndarray) -> None:
    recognize = PocketSphinx().open()
    first, second = clip[: 2 * 16000], clip[2 * 16000 : 4 * 16000]
    alone = recognize(first)
    recognize(second)
    assert recognize(first) == alone


def test_the_mel_bands_have_equal_areas_and_cover_the_band() -> None:
    bands = mel_bands()
    assert bands.shape == (40, 201)
    assert (bands.sum(axis=1) * 40) == pytest.approx(np.ones(40), rel=0.6)  # few bins of 40 Hz in the low bands
    assert (bands[20:].sum(axis=1) * 40) == pytest.approx(np.ones(20), rel=0.05)


@needs("resemblyzer", "webrtcvad", "torch", "swift_f0")
def test_speech_beside_itself_has_the_verifiers_own_error_rate(tmp_path: Path) -> None:
    speakers = ROOT / "cli" / "demo_speakers"
    for name in ("wav.scp", "utt2spk"):
        lines = (speakers / name).read_text().splitlines(keepends=True)[:8]
        (tmp_path / name).write_text("".join(lines))
    for line in (tmp_path / "wav.scp").read_text().split()[1::2]:
        (tmp_path / line).symlink_to(speakers / line)
    made = evaluate(tmp_path, tmp_path, only=["privacy", "pitch"], resamples=20, jobs=1).record["measures"]
    rates = {name: found["eer"] for name, found in made["privacy"]["verifications"].items()}
    assert rates["original"] == rates["ignorant"] == rates["lazy_informed"] < 0.5
    assert made["pitch"]["correlation"]["mean"] == pytest.approx(1)
