"""The verifications rank the same trials, what one of them lacks is said, and a measure that fails loses no other."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mkc_fast.cli import main
from mkc_fast.errors import AudioError, ListError, MkcError
from mkc_fast.evaluation import Given, evaluate, run
from mkc_fast.evaluation.record import without_folders
from mkc_fast.evaluation.rows import notes, rows
from mkc_fast.extras import missing_packages
from tests.evaluation.speakers import embed, pitch_of, write_set

NAMES = [f"s{speaker}-{sentence}" for speaker in range(4) for sentence in range(4)]
LISTS = ("wav.scp", "utt2spk", "text")
SHIFT = 1.2


@dataclass(frozen=True)
class Sets:
    """As the VoicePrivacy Challenge has them: odd sentences are trials, even ones enrol."""

    original: Path
    anonymized: Path
    enrolls: Path


def keep(folder: Path, names: list[str]) -> Path:
    """Leave only these utterances in the lists."""
    for name in LISTS:
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(line for line in lines if line.split()[0] in names))
    return folder


def even(*speakers: int) -> list[str]:
    return [f"s{speaker}-{sentence}" for speaker in speakers for sentence in (0, 2)]


@pytest.fixture
def sets(tmp_path: Path) -> Sets:
    tried = [name for name in NAMES if name not in even(0, 1, 2, 3)]
    original = keep(write_set(tmp_path / "trials"), tried)
    (original / "trials").write_text(
        "".join(
            f"s{model} {name} {'target' if name.startswith(f's{model}-') else 'nontarget'}\n"
            for name in tried
            for model in range(4)
        )
    )
    enrolls = keep(write_set(tmp_path / "enrolls"), even(0, 1, 2, 3))
    (enrolls / "enrolls").write_text("".join(f"{name}\n" for name in even(0, 1, 2, 3)))
    return Sets(original, keep(write_set(tmp_path / "trials_mkc", shift=SHIFT), tried), enrolls)


def privacy_of(sets: Sets, **options: Any) -> dict[str, Any]:
    given = Given(verifier=options.pop("verifier", embed))
    record = evaluate(
        sets.original, sets.anonymized, enrolment=sets.enrolls, given=given, only=["privacy"], resamples=10, **options
    ).record
    return dict(record["measures"]["privacy"])


def test_without_the_attackers_recordings_the_other_rates_are_given(sets: Sets, tmp_path: Path) -> None:
    made = privacy_of(sets, out=tmp_path / "out")
    found = made["verifications"]
    assert found["original"]["eer"] == 0
    assert (found["ignorant"]["targets"], found["ignorant"]["nontargets"]) == (8, 24)
    assert found["lazy_informed"]["eer"] is None
    assert found["lazy_informed"]["not_measured"] == "--enrolment-anonymized names the attacker's recordings"
    assert made["enrolment_anonymized"] == "none"
    record = {"measures": {"privacy": made}}
    assert [row.anonymized for row in rows(record, "privacy")][1] == "none"
    assert "lazy-informed attacker: not measured: --enrolment-anonymized names" in " ".join(notes(record, "privacy"))
    assert (tmp_path / "out" / "evaluation.json").exists()
    pytest.importorskip("matplotlib", reason="the page needs matplotlib")
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert page.count("EER, lazy-informed attacker") == 2, "the table and the note, and no tile"


def test_trials_that_cannot_be_scored_are_refused_before_a_recording_is_heard(sets: Sets) -> None:
    heard: list[tuple[int, int]] = []
    (sets.original / "trials").write_text("s0 s0-1 target\ns0 s0-3 target\n")
    with pytest.raises(ListError, match="2 target and 0 nontarget trials can be scored"):
        privacy_of(sets, progress=lambda *count: heard.append(count))
    assert not heard


def test_all_verifications_rank_the_trials_that_all_of_them_can_score(
    sets: Sets, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = keep(write_set(tmp_path / "other", shift=SHIFT), even(0, 1))
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        made = privacy_of(sets, enrolment_anonymized=other)
    assert {(each["targets"], each["nontargets"]) for each in made["verifications"].values()} == {(4, 12)}
    assert made["trials_without_score"] == 16
    assert made["models"] == 2
    assert made["speakers"] == 4
    assert f"4 of 8 enrolment utterances of {sets.enrolls} are not in {other}, such as 's2-0'" in caplog.text
    assert "16 more trials have no score" in " ".join(notes({"measures": {"privacy": made}}, "privacy"))


def test_another_draw_that_enrols_too_few_speakers_leaves_the_other_rates(sets: Sets, tmp_path: Path) -> None:
    other = keep(write_set(tmp_path / "other"), ["s0-1"])
    found = privacy_of(sets, enrolment_anonymized=other)["verifications"]
    assert found["original"]["targets"] == 8
    assert found["lazy_informed"]["not_measured"].startswith("other: 0 target and 0 nontarget trials can be scored")


def test_lists_of_other_names_are_named_in_a_warning_and_may_be_given(
    sets: Sets, caplog: pytest.LogCaptureFixture
) -> None:
    listed = privacy_of(sets)
    (sets.original / "trials").rename(sets.original / "trials_f")
    (sets.original / "trials_of_no_list.wav").touch()
    (sets.enrolls / "enrolls").rename(sets.enrolls / "enrolls_f")
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        assert privacy_of(sets)["trials"] == "all pairs"
    assert "every utterance is compared with every speaker; not read: trials_f (--trials names one)" in caplog.text
    assert "every utterance enrols its speaker; not read: enrolls_f (--enrolls names one)" in caplog.text
    caplog.clear()
    named = privacy_of(sets, trials=sets.original / "trials_f", enrolls=sets.enrolls / "enrolls_f")
    assert named == listed
    assert "not read" not in caplog.text
    (sets.enrolls / "enrolls_f").write_text("nobody\n")
    with pytest.raises(ListError, match="enrolls_f: none of its utterances has a recording in "):
        privacy_of(sets, enrolls=sets.enrolls / "enrolls_f")


@pytest.mark.parametrize("option", ["--trials", "--enrolls"])
def test_the_command_takes_lists_by_name(sets: Sets, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="the verifier is a graph")
    (sets.original / "a.onnx").touch()
    arguments = [str(sets.original), str(sets.anonymized), "--only", "privacy", "--asv", str(sets.original / "a.onnx")]
    assert main(["evaluate", *arguments, option, str(sets.original / "gone")]) == 2
    assert "gone: cannot be read" in capsys.readouterr().err


def test_speakers_without_a_recording_change_neither_interval_nor_count(sets: Sets) -> None:
    def vague(waveform: np.ndarray) -> np.ndarray:
        angle = pitch_of(waveform) / 400 + len(waveform) % 700 / 700
        return np.array([np.cos(angle), np.sin(angle)], np.float32)

    alone = privacy_of(sets, verifier=vague)
    with (sets.original / "trials").open("a") as file:
        file.writelines(f"x{number} x{number}-1 target\nx{number} s0-1 nontarget\n" for number in range(60))
    made = privacy_of(sets, verifier=vague)
    assert made["verifications"] == alone["verifications"]
    assert (made["speakers"], made["models"], made["trials_without_score"]) == (4, 4, 120)


def test_trials_without_an_embedding_are_one_line_with_the_cause(sets: Sets) -> None:
    def never(waveform: np.ndarray) -> np.ndarray:
        if len(waveform) in {4500, 5500}:
            raise AudioError("holds no speech")
        return embed(waveform)

    made = evaluate(
        sets.original, sets.anonymized, enrolment=sets.enrolls, given=Given(verifier=never), only=["privacy"]
    )
    assert "none of the 8 utterances has an embedding of both its recordings, such as " in made.not_measured["privacy"]
    assert made.not_measured["privacy"].endswith("s0-1.wav: holds no speech")


@pytest.mark.parametrize("axes", [1, 2])
def test_embeddings_of_frames_end_the_work_at_once(sets: Sets, axes: int) -> None:
    heard: list[tuple[int, int]] = []
    with pytest.raises(MkcError, match=r"of s0-\d \(original\) has the shape .*expected the same number of values"):
        evaluate(
            *(sets.original, sets.original),
            given=Given(verifier=lambda waveform: np.ones((len(waveform) // 100, 1, 1)[:axes], np.float32)),
            only=["privacy"],
            progress=lambda *count: heard.append(count),
        )
    assert len(heard) <= 2


@pytest.mark.parametrize("error", [MkcError("no luck"), IndexError("no luck")])
def test_a_measure_that_fails_at_the_end_leaves_the_others(
    sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(run, "measure_privacy", fail)
    made = evaluate(
        *(sets.original, sets.anonymized, tmp_path / "out"), given=Given(verifier=embed), only=["privacy", "duration"]
    )
    assert set(made.record["measures"]) == {"duration"}
    assert made.record["not_measured"]["privacy"].endswith("no luck")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == made.record


def test_the_record_has_the_last_part_of_a_path_and_the_terminal_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing_packages("torch", "webrtcvad", "resemblyzer"):
        pytest.skip("else that is why privacy is not measured")
    folder = write_set(tmp_path / "of a client" / "speech", lists=False)
    skipped = [word for measure in ("intelligibility", "quality", "pitch") for word in ("--skip", measure)]
    assert main(["evaluate", str(folder), str(folder), *skipped, "--jobs", "1", "--out", str(tmp_path / "out")]) == 0
    assert f"no privacy: {folder}: has no utt2spk" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["not_measured"]["privacy"].startswith("speech: has no utt2spk")


@pytest.mark.parametrize(
    ("text", "paths", "expected"),
    [
        ("/secret/client a/u/trials: none", ["/secret/client a/u"], "u/trials: none"),
        ("data/u/text: empty; metadata/u", ["data/u", None], "u/text: empty; metadata/u"),
        ("failed: OSError: '/usr/lib/x/y.so'", [], "failed: OSError: 'y.so'"),
        (
            "trials: 1/2 of 'a/b'; needs pip install x",
            ["trials", "/trials"],
            "trials: 1/2 of 'a/b'; needs pip install x",
        ),
    ],
)
def test_folders_leave_a_message(text: str, paths: list[str | None], expected: str) -> None:
    assert without_folders(text, paths) == expected


def test_a_measure_that_was_asked_for_and_fails_at_the_end_is_an_exit_code(
    sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise MkcError("no luck")

    monkeypatch.setattr(run, "measure_duration", fail)
    paths = [str(sets.original), str(sets.anonymized)]
    assert main(["evaluate", *paths, "--only", "duration", "--jobs", "1", "--out", str(tmp_path / "out")]) == 1
    assert "failed: duration: no luck" in capsys.readouterr().err
    assert (tmp_path / "out" / "evaluation.json").exists()
