"""What ``vpc check`` says before a run and after it: each broken condition is named, and a good folder has none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mkc_fast.cli import main
from mkc_fast.engine.voiceprivacy import inputs
from tests.conftest import Artifacts
from tests.engine.voiceprivacy.conftest import SETS

Check = Callable[..., tuple[int, dict[str, list[str]]]]


@pytest.fixture
def check(artifacts: Artifacts, checkout: Path, banks: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the command and returns its exit code and the findings of each status."""

    def run(*more: str, artifacts_too: bool = False) -> tuple[int, dict[str, list[str]]]:
        capsys.readouterr()
        arguments = ["vpc", "check", str(checkout / "data"), "--json", *more]
        if artifacts_too:
            arguments += ["--model", str(artifacts.model), "--bank-user", str(banks["all"])]
            arguments += ["--bank-attacker", str(banks["one"]), "--gpus", "cpu"]
        code = main(arguments)
        report = json.loads(capsys.readouterr().out)
        found: dict[str, list[str]] = {"ok": [], "note": [], "problem": []}
        for each in report["findings"]:
            found[each["status"]].append(f"{each['where']}: {each['text']}")
        assert report["problems"] == len(found["problem"])
        return code, found

    return run


@pytest.fixture
def anonymized(artifacts: Artifacts, checkout: Path, banks: dict[str, Path]) -> Path:
    """The folder with all sets anonymized."""
    arguments = ["vpc", "run", "--data", str(checkout / "data"), "--model", str(artifacts.model), "--quiet"]
    arguments += ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"]), "--gpus", "cpu"]
    assert main(arguments) == 0
    return checkout / "data"


def test_before_the_run_a_good_folder_has_no_problem_and_its_hours_are_estimated(check: Check) -> None:
    code, found = check(artifacts_too=True)
    assert (code, found["problem"]) == (0, [])
    assert sum(f"{count} recordings" in text for count in SETS.values() for text in found["ok"]) >= len(SETS)
    assert any("of work on cpu, at the measured RTFx of" in text for text in found["ok"])
    assert any("GB to write" in text for text in found["ok"])


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("wav.scp", "100-1-1 corpora/nowhere.wav\n", "1 recording not there"),
        ("wav.scp", "100-1-1 play corpora/x.wav |\n", "--allow-commands"),
        ("wav.scp", "", "the list is empty"),
        ("wav.scp", "100-1-1 run_anonymization.py\n", "1 recording not readable as audio"),
        ("utt2spk", "a b c\n", "expected 'utt-id speaker'"),
        ("utt2spk", "other 100\n", "has no speaker for"),
    ],
)
def test_before_the_run_what_will_fail_is_named(
    check: Check, checkout: Path, name: str, lines: str, message: str
) -> None:
    (checkout / "data" / "IEMOCAP_dev" / name).write_text(lines)
    code, found = check()
    assert code == 1
    assert any(text.startswith("IEMOCAP_dev:") and message in text for text in found["problem"]), found["problem"]
    assert all(text.startswith("IEMOCAP_dev:") for text in found["problem"])


def test_before_the_run_a_training_set_whose_ids_do_not_tell_the_speaker_is_a_problem(
    check: Check, checkout: Path
) -> None:
    utt2spk = checkout / "data" / "train-clean-360" / "utt2spk"
    utt2spk.write_text("".join(f"{line.split()[0]} somebody\n" for line in utt2spk.read_text().splitlines()))
    code, found = check()
    assert code == 1
    assert any("does not begin with the speaker" in text for text in found["problem"])


def test_the_speaker_level_needs_speakers(check: Check, checkout: Path) -> None:
    (checkout / "data" / "IEMOCAP_dev" / "utt2spk").unlink()
    assert check()[0] == 0
    code, found = check("--level", "speaker")
    assert code == 1
    assert any("no speaker is known" in text for text in found["problem"])


def test_a_disk_that_is_too_small_a_bank_that_does_not_fit_and_files_left_behind_are_named(
    check: Check, checkout: Path, banks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    (banks["one"] / "centroids.npy").unlink()
    (checkout / "data" / "IEMOCAP_dev" / "stray.wav").write_text("a b\n")
    code, found = check(artifacts_too=True)
    assert code == 1
    assert any(text.startswith("disk:") for text in found["problem"])
    assert any(text.startswith("bank of the attacker:") for text in found["problem"])
    assert any("stray.wav: not copied" in text for text in found["note"])


def test_one_bank_for_both_roles_is_noted(artifacts: Artifacts, check: Check, banks: dict[str, Path]) -> None:
    shutil.rmtree(banks["one"])
    shutil.copytree(banks["all"], banks["one"])
    code, found = check("--no-probe", artifacts_too=True)
    assert code == 0
    assert any("the same bank" in text for text in found["note"])


def test_after_the_run_everything_that_an_evaluation_reads_is_there(check: Check, anonymized: Path) -> None:
    code, found = check()
    assert (code, found["problem"]) == (0, [])
    assert sum("every file, id and path there" in text for text in found["ok"]) == len(SETS)
    assert any(text.startswith("experiment:") for text in found["ok"])


def _remove_wav(made: Path) -> None:
    next((made / "wav").iterdir()).unlink()


def _spoil_wav(made: Path) -> None:
    next((made / "wav").iterdir()).write_bytes(b"no audio")


def _remove_text(made: Path) -> None:
    (made / "text").unlink()


def _drop_line(made: Path) -> None:
    lines = (made / "wav.scp").read_text().splitlines(keepends=True)
    (made / "wav.scp").write_text("".join(lines[1:]))


def _rename_id(made: Path) -> None:
    (made / "wav.scp").write_text((made / "wav.scp").read_text().replace("100-", "999-", 1))


def _rename_wav(made: Path) -> None:
    path = next((made / "wav").iterdir())
    path.rename(path.with_name("other.wav"))
    (made / "wav.scp").write_text((made / "wav.scp").read_text().replace(f"/{path.name}", "/other.wav"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_wav, "recordings of its wav.scp that are not there"),
        (_spoil_wav, "recordings that cannot be read"),
        (_remove_text, "lacks text"),
        (_drop_line, "its wav.scp has"),
        (_rename_id, "its wav.scp lacks"),
        (_rename_wav, "recordings that are not named by their ids"),
    ],
)
def test_after_the_run_a_directory_that_an_evaluation_would_fail_on_is_named(
    check: Check, anonymized: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(anonymized / "libri_dev_trials_f_mkc")
    code, found = check()
    assert code == 1
    assert any(text.startswith("libri_dev_trials_f_mkc:") and message in text for text in found["problem"])
    assert all(text.startswith("libri_dev_trials_f_mkc:") for text in found["problem"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--bank-user", "one"], "bank of the user"),
        (["--stride", "3"], "stride"),
        (["--mode", "audio"], "mode"),
        (["--level", "speaker"], "level"),
        (["--kmeans-num", "2"], "kmeans_num"),
    ],
)
def test_sets_that_do_not_belong_together_are_refused(
    artifacts: Artifacts, anonymized: Path, banks: dict[str, Path], check: Check, more: list[str], message: str
) -> None:
    given = {"--bank-user": "all", "--bank-attacker": "one"}
    arguments = ["vpc", "run", "--data", str(anonymized), "--model", str(artifacts.model), "--gpus", "cpu", "--quiet"]
    if more[0] in given:
        given[more[0]] = more[1]
        more = []
    for option, bank in given.items():
        arguments += [option, str(banks[bank])]
    assert main([*arguments, "--set", "libri_dev_trials_f", "--overwrite", *more]) == 0
    code, found = check()
    assert code == 1
    assert len(found["problem"]) == 1
    assert found["problem"][0].startswith(message)
    assert "libri_dev_trials_f" in found["problem"][0]
    code, found = check("--allow-mixed")
    assert (code, found["problem"]) == (0, [])


def test_sets_that_other_banks_made_than_those_given_are_named(
    check: Check, anonymized: Path, banks: dict[str, Path], artifacts: Artifacts
) -> None:
    assert check(artifacts_too=True)[0] == 0
    given = ["--model", str(artifacts.model), "--bank-user", str(banks["three"]), "--bank-attacker", str(banks["one"])]
    code, found = check(*given)
    assert code == 1
    assert {text.partition(":")[0] for text in found["problem"]} == {
        "IEMOCAP_dev",
        *(f"libri_dev_trials_{e}" for e in "fm"),
    }
    assert all("was made with the bank all" in text for text in found["problem"])


def test_what_names_nothing_is_refused(check: Check, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(checkout / "data")
    for more, message in (
        ([data, "--anon-suffix", ""], "the suffix of the anonymized directories is empty"),
        ([data, "--role-of", "unknown=user"], "a role is given for unknown"),
        ([], "give the folder of data directories"),
        ([data, "--data", data], "give the folder of data directories"),
    ):
        assert main(["vpc", "check", *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["vpc", "check", "--data", data]) == 0
    code, found = check("--set", "nothing")
    assert (code, len(found["problem"])) == (1, 1)


def test_directories_of_a_grid_are_named(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path], check: Check
) -> None:
    arguments = ["vpc", "run", str(checkout / "data"), "--model", str(artifacts.model), "--gpus", "cpu", "--quiet"]
    arguments += ["--bank-user", str(banks["all"]), str(banks["one"]), "--bank-attacker", str(banks["one"])]
    assert main([*arguments, "--set", "IEMOCAP_dev"]) == 0
    code, found = check()
    assert code == 0
    assert any("--anon-suffix _mkc_one_all or _mkc_one_one" in text for text in found["note"])
    assert check("--anon-suffix", "_mkc_one_all", "--set", "IEMOCAP_dev")[0] == 0


def test_a_directory_that_something_else_made_is_noted(check: Check, anonymized: Path) -> None:
    (anonymized / ".mkc-fast" / "IEMOCAP_dev_mkc" / "provenance.json").unlink()
    code, found = check()
    assert code == 0
    assert any("nothing tells what made it" in text for text in found["note"])


def test_a_half_finished_folder_is_checked_half_and_half(
    artifacts: Artifacts, checkout: Path, banks: dict[str, Path], check: Check
) -> None:
    arguments = ["vpc", "run", "--data", str(checkout / "data"), "--model", str(artifacts.model), "--quiet"]
    arguments += ["--bank-user", str(banks["all"]), "--bank-attacker", str(banks["one"]), "--gpus", "cpu"]
    assert main([*arguments, "--set", "IEMOCAP_dev"]) == 0
    (checkout / "data" / "libri_dev_trials_m_mkc").mkdir()
    code, found = check(artifacts_too=True)
    assert code == 0
    assert any(text.startswith("IEMOCAP_dev_mkc:") for text in found["ok"])
    assert any(text.startswith("libri_dev_trials_m_mkc: begun") for text in found["note"])
    assert any("of work on cpu" in text for text in found["ok"])
