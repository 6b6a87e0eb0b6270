"""All sets of a checkout in one run: the bank of each role, grids of banks, levels, and what evaluations read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from mkc_fast.cli import main
from tests.conftest import Artifacts
from tests.engine.voiceprivacy.conftest import SETS

ATTACKER = ("libri_dev_enrolls", "train-clean-360")


def command(artifacts: Artifacts, checkout: Path, *more: str) -> list[str]:
    return [
        *("vpc", "run", "--data", str(checkout / "data"), "--model", str(artifacts.model)),
        *("--seed", "7", "--gpus", "cpu", *more),
    ]


def wavs(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / "wav").iterdir())}


def anonymized_alone(artifacts: Artifacts, checkout: Path, name: str, bank: Path) -> dict[str, bytes]:
    """What ``infer`` makes of a set with this bank."""
    arguments = ["infer", "--data-dir", str(checkout / "data" / name), "--anon-suffix", f"_alone_{bank.name}"]
    arguments += ["--model", str(artifacts.model), "--bank", str(bank), "--gpus", "cpu", "--quiet", "--seed", "7"]
    assert main(arguments) == 0
    return wavs(checkout / "data" / f"{name}_alone_{bank.name}")


def test_every_set_is_anonymized_from_the_bank_of_its_role(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"])]
    assert main(command(artifacts, checkout, *given)) == 0
    output = capsys.readouterr()
    assert "my_own_set" in output.err
    assert "mcadams" not in output.err
    for name, count in SETS.items():
        bank = banks["one"] if name in ATTACKER else banks["all"]
        assert wavs(checkout / "data" / f"{name}_mkc") == anonymized_alone(artifacts, checkout, name, bank)
        (row,) = [line for line in output.out.splitlines() if line.strip().startswith(f"{name}_mkc")]
        assert row.split()[1] == str(count)
        assert row.split()[3] == bank.name
    assert {path.name for path in (checkout / "data").glob("my_own_set*")} == {"my_own_set"}


def test_an_evaluation_finds_every_file_id_and_path(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From any working directory, since the paths are relative to the checkout."""
    monkeypatch.chdir(tmp_path)
    given = ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"])]
    assert main(command(artifacts, checkout, *given)) == 0
    for name in SETS:
        original, made = checkout / "data" / name, checkout / "data" / f"{name}_mkc"
        assert {path.name for path in made.iterdir() if path.is_file()} == {path.name for path in original.iterdir()}
        lines = [line.split() for line in (made / "wav.scp").read_text().splitlines()]
        assert [line[0] for line in lines] == [
            line.split()[0] for line in (original / "wav.scp").read_text().splitlines()
        ]
        for utterance, path in lines:
            assert path == f"data/{name}_mkc/wav/{utterance}.wav"
            assert soundfile.info(checkout / path).frames > 0


def test_outside_of_a_checkout_the_paths_are_absolute(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (checkout / "run_anonymization.py").unlink()
    monkeypatch.chdir(tmp_path)
    given = ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"]), "--set", "IEMOCAP_dev"]
    arguments = command(artifacts, Path("checkout"), *given)
    assert main(arguments) == 0
    lines = (checkout / "data" / "IEMOCAP_dev_mkc" / "wav.scp").read_text().splitlines()
    assert all(line.split()[1].startswith(str(checkout)) for line in lines)


def test_a_grid_of_banks_has_a_suffix_for_each_pair_and_computes_each_bank_once(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--bank-user", str(banks["all"]), str(banks["three"]), "--bank-attacker", str(banks["one"])]
    given += ["--set", "libri_dev_enrolls", "libri_dev_trials_f", "--json"]
    assert main(command(artifacts, checkout, *given)) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["written"] == SETS["libri_dev_enrolls"] + 2 * SETS["libri_dev_trials_f"]
    data = checkout / "data"
    for user in ("all", "three"):
        trials = data / f"libri_dev_trials_f_mkc_one_{user}"
        assert wavs(trials) == anonymized_alone(artifacts, checkout, "libri_dev_trials_f", banks[user])
        enrolls = data / f"libri_dev_enrolls_mkc_one_{user}"
        assert wavs(enrolls) == wavs(data / "libri_dev_enrolls_mkc_one_all")
        assert f"libri_dev_enrolls_mkc_one_{user}/wav/" in (enrolls / "wav.scp").read_text()
        assert {path.name for path in enrolls.iterdir()} == {path.name for path in trials.iterdir()}
    first, second = (data / f"libri_dev_enrolls_mkc_one_{user}" / "wav" for user in ("all", "three"))
    assert all((first / path.name).samefile(path) for path in second.iterdir())
    assert main(command(artifacts, checkout, *given)) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 0


def test_a_grid_that_grows_computes_only_what_is_new(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--set", "libri_dev_enrolls", "libri_dev_trials_f", "--json", "--bank-attacker", str(banks["one"])]
    two = ["--bank-user", str(banks["all"]), str(banks["three"])]
    assert main(command(artifacts, checkout, *sets, *two)) == 0
    capsys.readouterr()
    four = ["--bank-user", str(banks["one"]), str(banks["three"]), str(banks["all"])]
    assert main(command(artifacts, checkout, *sets, *four)) == 0
    assert json.loads(capsys.readouterr().out)["written"] == SETS["libri_dev_trials_f"]
    assert (checkout / "data" / "libri_dev_enrolls_mkc_one_one" / "wav.scp").exists()


def test_provenance_says_what_made_a_set_and_lies_outside_of_its_directory(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path]
) -> None:
    given = ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"]), "--stride", "2"]
    given += ["--level", "speaker", "--level-of", "IEMOCAP_dev=constant"]
    assert main(command(artifacts, checkout, *given)) == 0
    said = {
        name: json.loads((checkout / "data" / ".mkc-fast" / f"{name}_mkc" / "provenance.json").read_text())
        for name in SETS
    }
    assert {name: each["bank"]["name"] for name, each in said.items()} == {
        name: "one" if name in ATTACKER else "all" for name in SETS
    }
    assert {name: each["role"] for name, each in said.items()} == {
        name: "attacker" if name in ATTACKER else "user" for name in SETS
    }
    assert {each["level"] for name, each in said.items() if name != "IEMOCAP_dev"} == {"speaker"}
    one = said["IEMOCAP_dev"]
    assert (one["level"], one["mode"], one["stride"], one["seeded"]) == ("constant", "frame", 2, True)
    assert one["ran"][0]["provider"] == "cpu"
    assert one["utterances"] == SETS["IEMOCAP_dev"]
    assert str(checkout) not in json.dumps(said)


def test_results_dir_names_the_folder_of_recordings(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path]
) -> None:
    given = ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"]), "--results-dir", "anon_wav"]
    assert main(command(artifacts, checkout, *given, "--set", "IEMOCAP_dev", "--anon-suffix", "_x")) == 0
    made = checkout / "data" / "IEMOCAP_dev_x"
    assert len(list((made / "anon_wav").iterdir())) == SETS["IEMOCAP_dev"]
    assert all("/anon_wav/" in line for line in (made / "wav.scp").read_text().splitlines())


def test_a_set_with_a_recording_that_fails_has_no_wav_scp_and_the_others_are_complete(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    next((checkout / "corpora" / "IEMOCAP_dev").iterdir()).write_bytes(b"no audio")
    given = ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"])]
    assert main(command(artifacts, checkout, *given)) == 1
    assert "not complete, and without a wav.scp: IEMOCAP_dev." in capsys.readouterr().err
    complete = {name for name in SETS if (checkout / "data" / f"{name}_mkc" / "wav.scp").exists()}
    assert complete == set(SETS) - {"IEMOCAP_dev"}
    assert main(command(artifacts, checkout, *given, "--on-failure", "copy-silence")) == 0
    assert (checkout / "data" / "IEMOCAP_dev_mkc" / "wav.scp").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "nothing"], "data/nothing: there is no such data directory"),
        (["--anon-suffix", "_a b"], "holds a space"),
        (["--results-dir", "w w"], "holds a space"),
        (["--set", "my_own_set"], "my_own_set: whose bank anonymizes it is not known"),
        (["--role-of", "libri_dev_enrolls"], "expected SET=ROLE"),
        (["--role-of", "libri_dev_enrolls=thief"], "expected the role user or attacker"),
        (["--role-of", "unknown=user"], "a role is given for unknown"),
        (["--level-of", "IEMOCAP_dev=all"], "expected one of utterance, speaker, constant"),
    ],
)
def test_a_mistake_costs_one_line_and_writes_nothing(
    artifacts: Artifacts,
    checkout: Path,
    banks: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    before = sorted(checkout.rglob("*"))
    given = ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"])]
    assert main(command(artifacts, checkout, *given, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(checkout.rglob("*")) == before


def test_a_set_of_another_name_is_anonymized_with_the_role_that_is_given(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path]
) -> None:
    given = ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"])]
    given += ["--set", "my_own_set", "--role-of", "my_own_set=attacker"]
    assert main(command(artifacts, checkout, *given)) == 0
    said = json.loads((checkout / "data" / ".mkc-fast" / "my_own_set_mkc" / "provenance.json").read_text())
    assert (said["role"], said["bank"]["name"]) == ("attacker", "one")


def test_a_run_that_is_killed_and_started_again_ends_like_an_undisturbed_one(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path]
) -> None:
    given = ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"])]
    assert main(command(artifacts, checkout, *given, "--anon-suffix", "_whole")) == 0
    disturbed = [sys.executable, "-m", "mkc_fast", *command(artifacts, checkout, *given)]
    process = subprocess.Popen(disturbed, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    data = checkout / "data"
    while process.poll() is None and not any(data.glob("*_mkc/wav/*.wav")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert main(command(artifacts, checkout, *given)) == 0
    for name in SETS:
        assert wavs(data / f"{name}_mkc") == wavs(data / f"{name}_whole")
        assert not [path for path in (data / f"{name}_mkc").rglob("*") if path.name.startswith(".")]
