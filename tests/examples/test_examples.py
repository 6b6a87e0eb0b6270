"""Each example runs as its first lines say, and the notebook runs with and without a model of the user's."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile

from tests.conftest import ROOT, Artifacts

EXAMPLES = ROOT / "examples"
NOTEBOOK = json.loads((EXAMPLES / "modes.ipynb").read_text())
# What a slow machine may take for what takes a few seconds.
TIMEOUT_S = 300


@pytest.fixture
def recordings(tmp_path: Path, clip: np.ndarray) -> Path:
    """A folder of two recordings, one of them in a subfolder, and of something else."""
    folder = tmp_path / "recordings"
    (folder / "more").mkdir(parents=True)
    soundfile.write(folder / "first.flac", clip[:16000], 16000)
    soundfile.write(folder / "more" / "second.wav", clip[:12000], 16000)
    (folder / "notes.txt").write_text("not a recording")
    return folder


def run(name: str, artifacts: Artifacts, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / name, *arguments, "--model", artifacts.model, "--bank", artifacts.bank]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=TIMEOUT_S, cwd=artifacts.model
    )


def test_a_folder_is_anonymized_into_a_folder(artifacts: Artifacts, recordings: Path, tmp_path: Path) -> None:
    done = run("anonymize_folder.py", artifacts, recordings, tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 of 2 recordings anonymized\n", "")
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert written == {"first.wav", "more/second.wav"}
    assert soundfile.info(tmp_path / "out" / "first.wav").frames == (16000 - 400) // 320 * 320 + 320


def test_a_recording_that_fails_leaves_the_others(artifacts: Artifacts, recordings: Path, tmp_path: Path) -> None:
    (recordings / "damaged.wav").write_bytes(b"RIFF")
    done = run("anonymize_folder.py", artifacts, recordings, tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "2 of 3 recordings anonymized\n")
    assert done.stderr.startswith("failed: ")
    assert "damaged.wav" in done.stderr


def test_outputs_replace_neither_recordings_nor_each_other(artifacts: Artifacts, recordings: Path) -> None:
    before = sorted(recordings.rglob("*"))
    assert run("anonymize_folder.py", artifacts, recordings, recordings / "out").returncode == 2
    assert sorted(recordings.rglob("*")) == before
    (recordings / "first.wav").write_bytes((recordings / "more" / "second.wav").read_bytes())
    assert run("anonymize_folder.py", artifacts, recordings, recordings.parent / "out").returncode == 2
    assert not (recordings.parent / "out").exists()


def test_a_list_is_anonymized_with_progress(artifacts: Artifacts, recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text(f"u1 {recordings / 'first.flac'}\nu2 {recordings / 'more' / 'second.wav'}\n")
    arguments = ("--list", tmp_path / "wav.scp", "--out", tmp_path / "out", "--devices", "cpu")
    done = run("anonymize_corpus.py", artifacts, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("2 of 2 recordings, RTFx ")
    assert {path.name for path in (tmp_path / "out").glob("*.wav")} == {"u1.wav", "u2.wav"}


@pytest.mark.slow
def test_shards_go_through_ray_data_and_become_shards(artifacts: Artifacts, recordings: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data", reason="Ray is not installed (extra ray)")
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    (recordings / "third.flac").write_bytes(b"fLaC")
    for number, names in enumerate((["first"], ["third"])):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as tar:
            for name in names:
                tar.add(recordings / f"{name}.flac", f"{name}.flac")
                tar.add(recordings / "notes.txt", f"{name}.txt")
    shards = sorted(tmp_path.glob("shard-*.tar"))
    done = run("ray_shards.py", artifacts, *shards, "--out", tmp_path / "out", "--ray", "local", "--seed", "7")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "1 of 2 recordings anonymized"), done.stderr
    assert "failed: third: " in done.stderr
    (sample,) = webdataset.WebDataset(list(map(str, (tmp_path / "out").glob("*.tar"))), shardshuffle=False)
    assert (sample["__key__"], sample["txt"]) == ("first", b"not a recording")
    assert not {"bank_ids", "bytes", "error"} & sample.keys()
    samples, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")
    expected = artifacts.anonymizer.anonymize(soundfile.read(recordings / "first.flac", dtype="float32")[0], seed=7,
                                              utterance_id="first")  # fmt: skip
    assert rate == 16000
    np.testing.assert_allclose(samples, expected.waveform, atol=1e-3)


def test_a_folder_is_anonymized_by_worker_processes(artifacts: Artifacts, recordings: Path, tmp_path: Path) -> None:
    done = run("anonymize_corpus.py", artifacts, "--input", recordings, "--out", tmp_path / "out", "--devices", "cpu")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "first.wav").exists()
    assert (tmp_path / "out" / "more" / "second.wav").exists()


def test_a_data_directory_is_anonymized(artifacts: Artifacts, recordings: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "wav.scp").write_text(f"u1 {recordings / 'first.flac'}\n")
    (data / "utt2spk").write_text("u1 s1\n")
    done = run("anonymize_corpus.py", artifacts, "--data-dir", data, "--devices", "cpu")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data_mkc" / "wav.scp").read_text().startswith("u1 ")
    again = run("anonymize_corpus.py", artifacts, "--data-dir", data, "--out", tmp_path / "out")
    assert (again.returncode, again.stderr) == (1, "error: give data_dirs, or audio_list and out, not both\n")


@pytest.mark.parametrize("given", [False, True], ids=["random weights", "a model of the user's"])
def test_the_notebook_runs(
    *, given: bool, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mpl.use("Agg")
    shown: list[list[str]] = []

    def show() -> None:
        shown.append([axis.get_title() for axis in plt.gcf().axes])
        plt.close()

    monkeypatch.setattr(plt, "show", show)
    cells = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    namespace: dict[str, object] = {}
    for number, source in enumerate(cells):
        exec(compile(source, f"modes.ipynb, code cell {number}", "exec"), namespace)
        if given and number == 0:
            assert namespace.keys() >= {"MODEL", "BANK", "RECORDING"}
            namespace |= {"MODEL": artifacts.model, "BANK": artifacts.bank}
    modes = ["audio mode", "frame mode, stride 1", "frame mode, stride 25"]
    assert shown == [modes, ["input", *modes]]
    printed = capsys.readouterr().out
    assert "audio mode: 1 entries" in printed
    assert ("noise" in printed) == (not given)


def test_the_notebook_is_committed_without_outputs() -> None:
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    names = [path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb"}]
    assert len(names) == 4
    assert all(f"- `{name}`: " in listed for name in names)
