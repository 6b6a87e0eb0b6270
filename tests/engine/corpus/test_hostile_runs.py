"""Runs that would replace what is not theirs, or are started from odd places, are refused in one line or just work."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import AudioError, ListError, OutputError
from mkc_fast.cli import main
from mkc_fast.engine.audio.headers import HEAD_BYTES, length_s
from mkc_fast.engine.audio.read import duration_s, read_waveform
from mkc_fast.engine.corpus import outputs as module
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE
from mkc_fast.engine.corpus.outputs import check_recordings, plan_folder
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.datasets.dataset import Utterance
from tests.conftest import Artifacts


@pytest.fixture
def audio(tmp_path: Path, clip: np.ndarray) -> Path:
    """A folder with two recordings, ``a.wav`` and ``b.wav``."""
    (tmp_path / "audio").mkdir()
    for name, begin in (("a", 0), ("b", 8000)):
        soundfile.write(tmp_path / "audio" / f"{name}.wav", clip[begin : begin + 8000], 16000)
    return tmp_path / "audio"


def infer(artifacts: Artifacts, *more: str) -> int:
    return main(["infer", "--model", str(artifacts.model), "--bank", str(artifacts.bank), "--gpus", "cpu", *more])


def refusal(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal."""
    assert code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_outputs_that_are_other_lines_recordings_are_refused(
    artifacts: Artifacts, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scp = tmp_path / "swapped.scp"
    scp.write_text(f"b {audio}/a.wav\na {audio}/b.wav\n")
    before = contents(audio)
    code = infer(artifacts, "--audio-scp", str(scp), "--output-dir", str(audio), "--overwrite")
    assert "is the recording" in refusal(code, capsys)
    assert contents(audio) == before


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_outputs_that_lead_to_recordings_are_refused(link: str, audio: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    getattr(tmp_path / "out" / "u.wav", link)(audio / "b.wav")
    utterances = [Utterance("t", audio / "b.wav"), Utterance("u", audio / "a.wav")]
    with pytest.raises(OutputError, match=r"u\.wav: is the recording .*b\.wav itself"):
        plan_folder(utterances, tmp_path / "out", tmp_path / "out", Settings())


def test_a_data_directory_whose_recordings_another_writes_is_refused(
    artifacts: Artifacts, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "wav.scp").write_text(f"a {audio}/a.wav\n")
    assert infer(artifacts, "--data-dir", str(data), "--seed", "7") == 0
    before = contents(tmp_path)
    both = ["--data-dir", str(data), "--data-dir", f"{data}_mkc", "--overwrite"]
    assert "is the recording" in refusal(infer(artifacts, *both), capsys)
    assert contents(tmp_path) == before
    # One after the other they may be.
    assert infer(artifacts, "--data-dir", f"{data}_mkc") == 0
    folder = plan_folder([Utterance("a", audio / "a.wav")], tmp_path / "out", tmp_path / "out", Settings())
    check_recordings([folder])


def test_a_data_directory_given_twice_in_two_spellings_is_refused(
    artifacts: Artifacts, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "wav.scp").write_text(f"a {audio}/a.wav\n")
    spelled = ["--data-dir", str(data), "--data-dir", f"{tmp_path}/audio/../data"]
    assert "the data directory is given twice" in refusal(infer(artifacts, *spelled), capsys)


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_manifest_that_is_a_link_is_not_followed(
    more: list[str], artifacts: Artifacts, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_FILE).symlink_to(tmp_path / "precious.txt")
    (tmp_path / "list.scp").write_text(f"{audio}/a.wav\n")
    scp = ["--audio-scp", str(tmp_path / "list.scp"), "--output-dir", str(tmp_path / "out")]
    assert "manifest.jsonl: is a link" in refusal(infer(artifacts, *scp, *more), capsys)
    assert (tmp_path / "precious.txt").read_text() == "precious"


def test_an_output_folder_that_no_file_system_has_is_one_line(
    artifacts: Artifacts, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.scp").write_text(f"{audio}/a.wav\n")
    scp = ["--audio-scp", str(tmp_path / "list.scp")]
    for name, words in (("x" * 300, "File name too long"), ("list.scp/x", "Not a directory")):
        assert words in refusal(infer(artifacts, *scp, "--output-dir", str(tmp_path / name)), capsys)


def test_ids_that_differ_in_how_accents_are_put_together(
    tmp_path: Path, audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = [Utterance(name, audio / "a.wav") for name in ("\u00c9", "e\u0301")]
    assert len(plan_folder(utterances, tmp_path, tmp_path / "out", Settings()).outputs) == 2
    # On a file system such as macOS's they are one name.
    monkeypatch.setattr(module, "_folds_case", lambda _: True)
    with pytest.raises(ListError, match="would write the same file"):
        plan_folder(utterances, tmp_path, tmp_path / "out", Settings())


def test_a_run_without_standard_streams_works(artifacts: Artifacts, audio: Path, tmp_path: Path) -> None:
    (tmp_path / "list.scp").write_text(f"{audio}/a.wav\n/nowhere.wav\n")
    program = [sys.executable, "-c", "import sys; from mkc_fast.cli import main; sys.exit(main())", "infer"]
    options = {
        "--model": artifacts.model, "--bank": artifacts.bank, "--gpus": "cpu",
        "--audio-scp": tmp_path / "list.scp", "--output-dir": tmp_path / "out",
    }  # fmt: skip
    words = [*program, *(str(word) for option in options.items() for word in option)]
    run = subprocess.run(["bash", "-c", f"exec {shlex.join(words)} <&- >&- 2>&-"], timeout=60, check=False)
    assert run.returncode == 1  # one is not there
    assert soundfile.info(tmp_path / "out" / "a.wav").frames > 0


def test_a_segment_may_end_half_a_second_late(audio: Path) -> None:
    # As in Kaldi's extract-segments. The recording has half a second.
    path = audio / "a.wav"
    assert len(read_waveform(path, 16000, begin_s=0.1, end_s=0.99)) == 6400
    with pytest.raises(AudioError, match=r"ends at 1\.01 s, the recording has 0\.5 s"):
        read_waveform(path, 16000, begin_s=0.1, end_s=1.01)
    for end_s in (1e12, 1e308):
        with pytest.raises(AudioError, match="the recording has"):
            read_waveform(path, 16000, begin_s=0.1, end_s=end_s)


def test_a_segment_of_a_truncated_recording_is_refused(audio: Path) -> None:
    path = audio / "a.wav"
    soundfile.write(audio / "a.flac", soundfile.read(path)[0], 16000)
    whole = (audio / "a.flac").read_bytes()
    (audio / "a.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AudioError):
        read_waveform(audio / "a.flac", 16000, begin_s=0.0, end_s=0.45)


# Headers, which are read before anything is decoded


KINDS = ("WAV", "WAVEX", "FLAC", "AIFF", "OGG", "RF64")
SUBTYPES = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")
WRITABLE = [(kind, subtype) for kind in KINDS for subtype in SUBTYPES if soundfile.check_format(kind, subtype)]


@pytest.mark.parametrize(("kind", "subtype"), WRITABLE)
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2)])
def test_lengths_from_headers_are_the_decoders(
    kind: str, subtype: str, rate: int, channels: int, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (12345, channels))
    soundfile.write(path, samples, rate, subtype, format=kind)
    info = soundfile.info(path)
    assert duration_s(Utterance("u", path)) == pytest.approx(info.frames / rate, abs=1e-9)
    found = length_s(path.read_bytes()[:HEAD_BYTES], path.stat().st_size)
    if found is not None:
        assert found == info.frames / rate
    # What nearly all of a corpus is needs no decoder.
    assert found is not None or kind not in {"WAV", "FLAC"} or subtype in {"ULAW", "IMA_ADPCM"}


def test_damaged_headers_are_left_to_the_decoder(tmp_path: Path, clip: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for kind in ("WAV", "FLAC"):
        path = tmp_path / "a"
        soundfile.write(path, clip[:16000], 16000, format=kind)
        whole = path.read_bytes()
        for cut in range(64):
            found = length_s(whole[:cut], cut)
            assert found is None or found <= cut or kind == "FLAC"
        for _ in range(500):
            damaged = bytearray(whole[:64])
            damaged[rng.integers(0, 64)] = rng.integers(0, 256)
            found = length_s(bytes(damaged), len(whole))
            assert found is None or 0 <= found < float("inf")
