"""One call anonymizes a corpus as the command does, reports progress, and can be stopped."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from mkc_fast import ArgumentError, ListError, MkcError, anonymize_corpus
from mkc_fast.cli import main
from mkc_fast.engine.corpus.anonymize import open_corpus
from mkc_fast.engine.corpus.outputs import plan_folder
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.corpus.run import Run, run_corpus
from mkc_fast.engine.corpus.status import Status, Summary
from mkc_fast.engine.datasets.path_lists import read_audio_list
from mkc_fast.engine.options import EngineOptions
from mkc_fast.export import build_bank
from tests.conftest import Artifacts
from tests.fakes.anonymizers import factory

# What a slow machine may take for what takes a few seconds.
TIMEOUT_S = 300


@pytest.fixture
def audio_list(tmp_path: Path, clip: np.ndarray) -> Path:
    """A list of four recordings of about a second."""
    lines = []
    for number in range(4):
        path = tmp_path / f"r{number}.wav"
        soundfile.write(path, clip[: 16000 + 1000 * number], 16000)
        lines.append(f"u{number} {path}\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    return tmp_path / "wav.scp"


@pytest.fixture
def data_dir(tmp_path: Path, audio_list: Path) -> Path:
    """A Kaldi data directory of the same recordings."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "wav.scp").write_text(audio_list.read_text())
    (data / "utt2spk").write_text("".join(f"u{number} s{number}\n" for number in range(4)))
    return data


@pytest.fixture
def second_bank(tmp_path: Path, golden: Path) -> Path:
    """A bank of one of the entries of the first."""
    build_bank(golden / "kmeans.scp", tmp_path / "second_bank", kmeans_num=1, seed=3)
    return tmp_path / "second_bank"


def command(artifacts: Artifacts, *more: str) -> list[str]:
    return ["infer", "--model", str(artifacts.model), "--bank", str(artifacts.bank), "--gpus", "cpu", *more]


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.wav"))}


def test_one_call_writes_what_the_command_writes(artifacts: Artifacts, audio_list: Path, tmp_path: Path) -> None:
    given = {"audio_list": str(audio_list), "out": str(tmp_path / "call"), "mode": "frame", "seed": 7}
    summary = anonymize_corpus(artifacts.model, artifacts.bank, **given, devices=["cpu"])
    assert (summary.files, summary.written, summary.failed, summary.interrupted) == (4, 4, [], False)
    more = ["--audio-scp", str(audio_list), "--output-dir", str(tmp_path / "command"), "--seed", "7"]
    assert main(command(artifacts, *more)) == 0
    assert outputs(tmp_path / "call") == outputs(tmp_path / "command")
    assert len(outputs(tmp_path / "call")) == 4
    # Either continues what the other has begun.
    again = anonymize_corpus(artifacts.model, artifacts.bank, **{**given, "out": tmp_path / "command"}, devices=["cpu"])
    assert (again.written, again.present) == (0, 4)


def test_data_directories_are_completed(artifacts: Artifacts, data_dir: Path, tmp_path: Path) -> None:
    summary = anonymize_corpus(
        artifacts.model, artifacts.bank, data_dirs=[data_dir], anon_suffix="_anon", seed=7, devices=["cpu"]
    )
    assert summary.written == 4
    out = tmp_path / "data_anon"
    lines = (out / "wav.scp").read_text().splitlines()
    assert lines == [f"u{number} {out}/wav/u{number}.wav" for number in range(4)]
    assert (out / "utt2spk").read_bytes() == (data_dir / "utt2spk").read_bytes()
    more = ["--data-dir", str(data_dir), "--anon-suffix", "_command", "--seed", "7"]
    assert main(command(artifacts, *more)) == 0
    assert outputs(out / "wav") == outputs(tmp_path / "data_command" / "wav")


def test_a_data_directory_with_a_failed_recording_is_not_completed_before_it_can_be_read(
    artifacts: Artifacts, data_dir: Path, tmp_path: Path
) -> None:
    whole = (tmp_path / "r2.wav").read_bytes()
    (tmp_path / "r2.wav").write_bytes(b"no audio")
    scp = tmp_path / "data_mkc" / "wav.scp"

    def run() -> Summary:
        return anonymize_corpus(artifacts.model, artifacts.bank, data_dirs=[data_dir], seed=7, devices=["cpu"])

    summary = run()
    assert (summary.written, [name for name, _ in summary.failed]) == (3, ["u2"])
    assert summary.incomplete == [str(tmp_path / "data_mkc")]
    assert not scp.exists()
    (tmp_path / "r2.wav").write_bytes(whole)
    summary = run()
    assert (summary.written, summary.present, summary.incomplete) == (1, 3, [])
    assert [line.split()[0] for line in scp.read_text().splitlines()] == ["u0", "u1", "u2", "u3"]


def test_a_complete_data_directory_loses_its_wav_scp_while_it_is_made_again(
    artifacts: Artifacts, data_dir: Path, tmp_path: Path
) -> None:
    scp = tmp_path / "data_mkc" / "wav.scp"
    anonymize_corpus(artifacts.model, artifacts.bank, data_dirs=[data_dir], seed=7, devices=["cpu"])
    assert scp.exists()
    (tmp_path / "r2.wav").write_bytes(b"no audio")
    anonymize_corpus(artifacts.model, artifacts.bank, data_dirs=[data_dir], seed=8, devices=["cpu"], overwrite=True)
    assert not scp.exists()


def test_copy_silence_completes_a_data_directory_and_the_next_run_tries_again(
    artifacts: Artifacts, data_dir: Path, tmp_path: Path
) -> None:
    whole = (tmp_path / "r2.wav").read_bytes()
    (tmp_path / "r2.wav").write_bytes(whole[:-2000])  # cut off, so that its header still tells its length
    scp, output = tmp_path / "data_mkc" / "wav.scp", tmp_path / "data_mkc" / "wav" / "u2.wav"

    def run() -> Summary:
        return anonymize_corpus(
            artifacts.model,
            artifacts.bank,
            data_dirs=[data_dir],
            seed=7,
            devices=["cpu"],
            on_failure="copy-silence",
        )

    summary = run()
    assert ([name for name, _ in summary.failed], summary.silenced, summary.incomplete) == (["u2"], 1, [])
    assert len(scp.read_text().splitlines()) == 4
    silence, rate = soundfile.read(output)
    assert rate == 16000
    assert not silence.any()
    assert len(silence) > 320
    (tmp_path / "r2.wav").write_bytes(whole)
    summary = run()
    assert (summary.written, summary.present, summary.silenced) == (1, 3, 0)
    assert soundfile.read(output)[0].any()


def test_a_recording_that_can_be_read_the_second_time_is_written(
    artifacts: Artifacts, audio_list: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_INS", str(tmp_path))
    utterances = read_audio_list(audio_list)
    folder = plan_folder(utterances, tmp_path / "out", tmp_path / "out", Settings())
    run = Run([folder], artifacts.model, artifacts.bank, Settings(), factory=factory("FailsToReadOnce"))
    summary = run_corpus(run)
    assert (summary.written, summary.failed) == (len(utterances), [])
    assert (tmp_path / "read failed").exists()


def test_an_output_of_every_kind_of_bank_is_what_its_bank_gives_alone(
    artifacts: Artifacts, data_dir: Path, tmp_path: Path, second_bank: Path
) -> None:
    alone = {}
    for bank in (artifacts.bank, second_bank):
        anonymize_corpus(
            artifacts.model, bank, data_dirs=[data_dir], anon_suffix=f"_{bank.name}", seed=7, devices=["cpu"]
        )
        alone[bank] = outputs(tmp_path / f"data_{bank.name}" / "wav")
    assert alone[artifacts.bank] != alone[second_bank]
    folders = []
    for bank in (artifacts.bank, second_bank):
        (folder,) = open_corpus(data_dirs=[data_dir], anon_suffix=f"_both_{bank.name}").folders
        folders.append(replace(folder, bank=bank))
    run_corpus(Run(folders, artifacts.model, tmp_path / "unused", Settings(seed=7), options=EngineOptions(batch_s=10)))
    for bank, folder in zip(alone, folders, strict=True):
        assert outputs(folder.outputs.folder).keys() == alone[bank].keys()
        for name, content in outputs(folder.outputs.folder).items():
            expected = np.frombuffer(alone[bank][name][44:], "<i2").astype(int)
            found = np.frombuffer(content[44:], "<i2").astype(int)
            assert abs(found - expected).max() <= 4  # 1e-4 of full scale: these ran in batches


def test_progress_is_reported_up_to_the_end(artifacts: Artifacts, audio_list: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def progress(status: Status) -> None:
        seen.append((status.summary.written, status.done))

    anonymize_corpus(
        artifacts.model, artifacts.bank, audio_list=audio_list, out=tmp_path / "out", devices=["cpu"], progress=progress
    )
    assert seen == sorted(seen)
    assert [done for _, done in seen].count(True) == 1
    assert seen[-1] == (4, True)


def test_the_callback_stops_it_and_the_same_call_continues(
    artifacts: Artifacts, data_dir: Path, tmp_path: Path
) -> None:
    written: list[int] = []
    given = {"data_dirs": [data_dir], "seed": 7, "devices": ["cpu"]}
    summary = anonymize_corpus(
        artifacts.model,
        artifacts.bank,
        **given,
        progress=lambda status: written.append(status.summary.written),
        stopped=lambda: bool(written and written[-1]),
    )
    assert summary.interrupted
    assert 0 < summary.written < 4
    out = tmp_path / "data_mkc"
    assert not (out / "wav.scp").exists()  # the directory is not complete, and does not look so
    assert not psutil.Process().children()
    summary = anonymize_corpus(artifacts.model, artifacts.bank, **given)
    assert (summary.interrupted, summary.written + summary.present) == (False, 4)
    assert len((out / "wav.scp").read_text().splitlines()) == 4


def test_an_error_in_a_callback_ends_the_workers(artifacts: Artifacts, audio_list: Path, tmp_path: Path) -> None:
    def fail(_: Status) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        anonymize_corpus(
            artifacts.model, artifacts.bank, audio_list=audio_list, out=tmp_path / "out", devices=["cpu"], progress=fail
        )
    assert not psutil.Process().children()


def test_a_script_without_a_guard_runs_once(artifacts: Artifacts, audio_list: Path, tmp_path: Path) -> None:
    """Workers do not import the calling script, so it starts no processes in a loop."""
    script, runs = tmp_path / "script.py", tmp_path / "runs"
    script.write_text(
        f"""from mkc_fast import anonymize_corpus
with open({str(runs)!r}, "a") as file:
    file.write("run ")
summary = anonymize_corpus(
    {str(artifacts.model)!r}, {str(artifacts.bank)!r}, audio_list={str(audio_list)!r}, out={str(tmp_path / "out")!r},
    devices=["cpu"], num_proc=2,
)
print(summary.written)
"""
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (ended.returncode, ended.stdout) == (0, "4\n"), ended.stderr
    assert runs.read_text() == "run "


def test_exactly_one_form_of_input_is_given(artifacts: Artifacts, audio_list: Path, data_dir: Path) -> None:
    out = data_dir.parent / "out"
    corpus = open_corpus(audio_list=audio_list, out=out)
    wrong: list[dict] = [
        {},
        {"audio_list": audio_list},
        {"out": out},
        {"audio_list": audio_list, "out": out, "data_dirs": [data_dir]},
        {"corpus": corpus, "out": out},
    ]
    for given in wrong:
        with pytest.raises(ArgumentError, match="give "):
            anonymize_corpus(artifacts.model, artifacts.bank, **given, devices=["cpu"])
    with pytest.raises(ListError, match="given twice"):
        open_corpus(data_dirs=[data_dir, f"{data_dir}/."])
    with pytest.raises(MkcError, match="format is 'mp3'"):
        open_corpus(audio_list=audio_list, out=out, audio_format="mp3")
    assert not out.exists()
