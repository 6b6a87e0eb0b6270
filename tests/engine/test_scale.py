"""Waveforms of a wrong scale or layout are refused, warned of or understood, never anonymized without a word."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import ArgumentError, AudioError
from mkc_fast.cli import main
from mkc_fast.engine.audio.read import read_utterance, read_waveform
from mkc_fast.engine.audio.waveform import check_waveform
from mkc_fast.engine.datasets.dataset import Utterance
from tests.conftest import Artifacts


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "mkc_fast"]


def test_16_bit_units_are_refused_with_the_peak_and_what_to_do(artifacts: Artifacts, clip: np.ndarray) -> None:
    wrong = clip * np.float32(32768)
    for run in (artifacts.anonymizer.anonymize, artifacts.anonymizer.encode):
        with pytest.raises(AudioError, match=rf"peaks at {np.abs(wrong).max():.6g}.*32768.*int16"):
            run(wrong)
    with pytest.raises(AudioError, match="utterance b: peaks at"):
        artifacts.anonymizer.anonymize_batch([clip, wrong], utterance_ids=["a", "b"])


def test_float_files_in_16_bit_units_are_refused(clip: np.ndarray, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", clip * 32768, 16000, "FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: peaks at .*16-bit PCM"):
        read_waveform(tmp_path / "a.wav", 16000)


@pytest.mark.parametrize(("peak", "warned"), [(0.5, 0), (1.0, 0), (1.05, 1), (1.2, 1), (-3.0, 1), (8.0, 1)])
def test_a_peak_above_full_scale_is_one_warning(
    peak: float, warned: int, artifacts: Artifacts, clip: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    loud = clip[:20000].copy()
    loud[9000] = peak
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        artifacts.anonymizer.anonymize(loud, utterance_id="u1")
    said = warnings_of(caplog)
    assert len(said) == warned
    assert all(f"utterance u1: peaks at {abs(peak):.3g}" in line for line in said)


def test_a_peak_beyond_float32_is_not_finite() -> None:
    """The cast makes it infinite, so the check comes after it."""
    with pytest.raises(AudioError, match="not finite"):
        check_waveform(np.array([0.0, 1e300]), 1)
    with pytest.raises(AudioError, match=r"peaks at 8\.1"):
        check_waveform(np.array([0.0, -8.1]), 1)


@pytest.mark.parametrize("order", ["<", ">"])
def test_int16_is_taken_for_what_it_is(order: str, artifacts: Artifacts, clip: np.ndarray) -> None:
    pcm = np.rint(clip * 32768).clip(-32768, 32767).astype(f"{order}i2")
    expected = artifacts.anonymizer.anonymize(pcm / np.float32(32768), seed=1)
    np.testing.assert_array_equal(artifacts.anonymizer.anonymize(pcm, seed=1).waveform, expected.waveform)
    assert check_waveform(np.array([-32768, 32767], np.int16), 1).tolist() == [-1.0, 32767 / 32768]


def test_an_unaligned_waveform_is_computed(artifacts: Artifacts, clip: np.ndarray) -> None:
    samples = clip[:20000]
    buffer = b"\0\0" + samples.tobytes()
    unaligned = np.frombuffer(buffer, np.float32, offset=2)
    assert not unaligned.flags.aligned
    expected = artifacts.anonymizer.anonymize(samples, seed=1)
    np.testing.assert_array_equal(artifacts.anonymizer.anonymize(unaligned, seed=1).waveform, expected.waveform)
    features = artifacts.anonymizer.encode(samples)
    shifted = np.frombuffer(b"\0\0" + features.tobytes(), np.float32, offset=2).reshape(features.shape)
    banks = np.zeros(len(features), int)
    for stage in (artifacts.anonymizer.restore, artifacts.anonymizer.vocode):
        np.testing.assert_array_equal(stage(shifted), stage(features))
    np.testing.assert_array_equal(
        artifacts.anonymizer.assign(shifted, banks), artifacts.anonymizer.assign(features, banks)
    )


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000.0])
def test_another_rate_is_resampled_as_files_are(
    rate: float, artifacts: Artifacts, clip: np.ndarray, tmp_path: Path
) -> None:
    samples = np.resize(clip, int(2.5 * rate))
    soundfile.write(tmp_path / "a.wav", samples, int(rate), "FLOAT")
    anonymizer = artifacts.anonymizer
    expected = anonymizer.anonymize(read_waveform(tmp_path / "a.wav", 16000), seed=1, utterance_id="u")
    found = anonymizer.anonymize(samples, seed=1, utterance_id="u", sample_rate=rate)
    np.testing.assert_array_equal(found.waveform, expected.waveform)
    batch = anonymizer.anonymize_batch([samples], seed=1, utterance_ids=["u"], sample_rate=rate)
    np.testing.assert_array_equal(batch[0].waveform, expected.waveform)


@pytest.mark.parametrize("rate", [0, -16000, 999, float("nan"), float("inf"), "16000", True, 10**18])
def test_impossible_rates_are_refused(rate: object, artifacts: Artifacts, clip: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match="sample_rate"):
        artifacts.anonymizer.anonymize(clip, sample_rate=rate)  # type: ignore[arg-type]


def test_a_run_says_it_once_and_counts(
    artifacts: Artifacts, clip: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(5):
        samples = clip[:16000] * (1 if index == 2 else 5)
        soundfile.write(tmp_path / f"u{index}.wav", samples, 16000, "FLOAT")
    (tmp_path / "a.scp").write_text("".join(f"{tmp_path}/u{index}.wav\n" for index in range(5)))
    arguments = ["infer", "--model", artifacts.model, "--bank", artifacts.bank, "--gpus", "cpu",
                 "--audio-scp", tmp_path / "a.scp", "--output-dir", tmp_path / "out", "--json"]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("peaks at") == 1
    assert json.loads(shown.out)["loud"] == 4


def test_padded_outputs_of_a_run_are_as_long_as_their_recordings(
    artifacts: Artifacts, clip: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "u1.wav", clip[:20001], 16000)
    soundfile.write(tmp_path / "u2.wav", np.resize(clip, 3 * 20001), 48000)
    (tmp_path / "a.scp").write_text(f"{tmp_path}/u1.wav\n{tmp_path}/u2.wav\n")
    arguments = ["infer", "--model", artifacts.model, "--bank", artifacts.bank, "--gpus", "cpu", "--seed", "1",
                 "--audio-scp", tmp_path / "a.scp", "--output-dir", tmp_path / "out"]  # fmt: skip
    assert main([*map(str, arguments), "--pad"]) == 0
    for name in ("u1", "u2"):
        written, _ = soundfile.read(tmp_path / "out" / f"{name}.wav")
        assert len(written) == 20001
        assert not written[-80:].any()
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2, "the folder holds padded outputs"
    assert "made with pad True, this run has False" in capsys.readouterr().err


def test_a_command_that_says_nothing_is_quoted_as_such() -> None:
    for command, words in (("exit 3", r"exit code 3 \(it printed no reason\)"), ("echo no >&2; exit 4", r"4 \(no\)")):
        with pytest.raises(AudioError, match=words):
            read_utterance(Utterance("u", Path("command"), command=command), 16000, 400)


def test_a_file_that_cannot_be_read_says_why() -> None:
    memory = Path("/proc/self/mem")  # a regular file by its kind, which nobody reads from its beginning
    if not memory.exists():
        pytest.skip("there is no /proc")
    with pytest.raises(AudioError, match=r"cannot be read \((Input/output error|Invalid argument)\)"):
        read_waveform(memory, 16000)
