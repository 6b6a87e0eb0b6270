"""``evaluate`` and its command, with stand-ins for models: what is read, measured, written and refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mkc_fast.cli import main
from mkc_fast.errors import ArgumentError, ListError, MkcError, OutputError
from mkc_fast.evaluation import Given, evaluate
from mkc_fast.evaluation.inputs import read_speech
from mkc_fast.evaluation.listening import Heard, Models, Task, listen_to_all
from mkc_fast.evaluation.models import Function
from tests.conftest import Artifacts
from tests.evaluation.speakers import WORDS, die, embed, rate, recognize, recording, track, write_set

STAND_INS = Given(verifier=embed, recognizer=recognize, quality=rate, pitch=track)
ALL = ("privacy", "intelligibility", "quality", "pitch", "duration")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("original") / "speech")


def evaluated(original: Path, anonymized: Path, **options: Any) -> dict[str, Any]:
    return evaluate(original, anonymized, given=STAND_INS, resamples=50, **options).record


def eers(record: dict[str, Any]) -> dict[str, float]:
    return {name: found["eer"] for name, found in record["measures"]["privacy"]["verifications"].items()}


def test_speech_beside_itself_is_unchanged_in_every_measure(original: Path) -> None:
    record = evaluated(original, original)
    made = record["measures"]
    assert tuple(made) == ALL
    assert record["not_measured"] == record["failed"] == {}
    assert eers(record) == {"original": 0, "ignorant": 0, "lazy_informed": 0}
    assert made["privacy"]["verifications"]["original"]["targets"] == 16
    assert made["privacy"]["verifications"]["original"]["nontargets"] == 48
    for side in ("original", "anonymized", "to_transcript"):
        assert made["intelligibility"][side]["wer"]["rate"] == made["intelligibility"][side]["cer"]["rate"] == 0
    assert made["quality"]["original"] == made["quality"]["anonymized"]
    assert made["pitch"]["correlation"]["mean"] == pytest.approx(1)
    assert made["pitch"]["semitones"]["mean"] == 0
    assert made["duration"]["ratio"] == {"mean": 1, "interval": [1, 1]}
    assert record["recordings"]["heard"] == 16
    assert record["recordings"]["speakers"] == 4


def test_a_shift_hides_speakers_from_the_ignorant_attacker_alone(original: Path, tmp_path: Path) -> None:
    record = evaluated(original, write_set(tmp_path / "shifted", shift=1.3, lists=False))
    found = eers(record)
    assert found["original"] == found["lazy_informed"] == 0
    assert found["ignorant"] > 0.2
    assert record["measures"]["pitch"]["semitones"]["mean"] == pytest.approx(12 * np.log2(1.3), abs=0.2)


def test_another_voice_for_each_utterance_hides_speakers_from_both(original: Path, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "anonymized", lists=False)
    random = np.random.default_rng(0)
    for path in sorted((folder / "wav").iterdir()):
        soundfile.write(path, recording(int(random.integers(0, 4)), int(path.stem[-1])), 16000)
    found = eers(evaluated(original, folder))
    assert found["ignorant"] > 0.3
    assert found["lazy_informed"] > 0.3


def test_other_words_are_errors_against_text_and_original(original: Path, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "anonymized")
    soundfile.write(folder / "wav" / "s0-0.wav", recording(0, 3), 16000)  # "ten" in place of "one two three"
    made = evaluated(original, folder, only=["intelligibility"])["measures"]["intelligibility"]
    assert made["original"]["wer"]["rate"] == 0
    assert made["anonymized"]["wer"]["rate"] == made["to_transcript"]["wer"]["rate"] == 3 / (4 * 10)
    assert made["anonymized"]["wer"]["interval"][1] > 3 / 40


def test_trials_and_enrolments_are_those_of_the_lists(original: Path, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "speech")
    (folder / "enrolls").write_text("s0-0\ns1-0\n")
    (folder / "trials").write_text("s0 s0-1 target\ns0 s1-1 nontarget\ns1 s0-1 nontarget\ns1 s1-2 target\n")
    made = evaluated(folder, original)["measures"]["privacy"]
    assert made["trials"] == "list"
    assert made["models"] == 2
    assert {(each["targets"], each["nontargets"]) for each in made["verifications"].values()} == {(2, 2)}
    (folder / "trials").unlink()
    made = evaluated(folder, original)["measures"]["privacy"]
    assert made["verifications"]["original"]["targets"] == 6, "the listed utterances enrol, the others are tried"
    assert made["verifications"]["original"]["nontargets"] == 6 + 2 * 8


def test_enrolment_may_be_recordings_of_their_own_as_in_the_challenges_sets(tmp_path: Path) -> None:
    enrolls, trials = write_set(tmp_path / "enrolls"), write_set(tmp_path / "trials", lists=True)
    names = [f"s{speaker}-{sentence}" for speaker in range(4) for sentence in range(4)]
    for number, folder in enumerate((enrolls, trials)):
        half = [name for name in names if int(name[-1]) % 2 == number]
        (folder / "wav.scp").write_text("".join(f"{name} wav/{name}.wav\n" for name in half))
    (trials / "trials").write_text(
        "".join(
            f"s{model} {name} {'target' if name.startswith(f's{model}-') else 'nontarget'}\n"
            for name in names
            if int(name[-1]) % 2
            for model in range(4)
        )
    )
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "wav.scp").write_text(f"x {enrolls}/wav/s0-0.wav\n")
    with pytest.raises(ListError, match="none of its 4 speakers has a recording"):
        evaluated(trials, trials, enrolment=tmp_path / "few")
    draw = write_set(tmp_path / "draw", shift=1.5)
    record = evaluated(trials, trials, enrolment=enrolls, enrolment_anonymized=draw)
    made = record["measures"]["privacy"]
    assert made["enrolment_anonymized"] == "recordings of their own, another draw"
    assert made["verifications"]["original"]["targets"] == 8
    assert eers(record)["original"] == eers(record)["ignorant"] == 0
    assert eers(record)["lazy_informed"] > 0, "that enrolment has other voices"


def test_folders_are_matched_by_path_without_ending_and_outputs_of_a_run_are_recordings(
    original: Path, tmp_path: Path
) -> None:
    for folder, ending in (("before", "wav"), ("after", "flac")):
        (tmp_path / folder / "a").mkdir(parents=True)
        soundfile.write(tmp_path / folder / "a" / f"one.{ending}", recording(0, 0), 16000)
    (tmp_path / "after" / "manifest.jsonl").write_text('{"type": "run"}\n')
    given = Given(recognizer=recognize, quality=rate, pitch=track)
    record = evaluate(tmp_path / "before", tmp_path / "after", given=given).record
    assert record["recordings"]["utterances"] == 1
    assert re.search("has no utt2spk|needs", record["not_measured"]["privacy"])
    assert record["measures"]["intelligibility"]["reference"] == "transcript of the original"
    with pytest.raises(ListError, match="has no utt2spk"):
        evaluated(tmp_path / "before", tmp_path / "after", only=["privacy"])
    (tmp_path / "speakers").write_text("a/one s\n")
    with pytest.raises(ListError, match="needs two speakers"):
        evaluated(tmp_path / "before", tmp_path / "after", only=["privacy"], utt2spk=tmp_path / "speakers")


def test_speech_without_an_utterance_in_common_is_refused(original: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "other.wav", recording(0, 0), 16000)
    with pytest.raises(ListError, match=r"no utterance in common; one has 's0-0', the other 'other'"):
        evaluated(original, tmp_path)
    with pytest.raises(ListError, match="no such data directory"):
        evaluated(original, tmp_path / "gone")


def test_recordings_that_cannot_be_read_are_named_and_the_others_measured(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "anonymized")
    (folder / "wav" / "s0-1.wav").write_bytes(b"RIFF")
    (folder / "wav" / "s1-2.wav").unlink()
    lines = (folder / "wav.scp").read_text().splitlines(keepends=True)
    (folder / "wav.scp").write_text("".join(lines[:-1]))
    assert main(["evaluate", str(original), str(folder), "--only", "duration", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert re.search(r"failed: s0-1: .*s0-1.wav: not readable as audio", said.err)
    assert re.search(r"failed: s1-2: .*s1-2.wav: no such file", said.err)
    assert "warning: 1 of 16 utterances" in said.err
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["recordings"] | {"heard": 13, "failed": 2, "without_anonymized": 1} == record["recordings"]
    assert record["measures"]["duration"]["ratio"]["mean"] == 1


def test_a_recording_that_a_model_refuses_is_named_and_left_out_of_its_measure(original: Path) -> None:
    from mkc_fast.errors import AudioError

    def picky(waveform: np.ndarray) -> np.ndarray:
        if recognize(waveform) == WORDS[3]:
            raise AudioError("too short for a speaker")
        return embed(waveform)

    made = evaluate(original, original, given=Given(verifier=picky), only=["privacy", "duration"], resamples=0)
    assert len(made.failed) == 4
    assert all(reason.endswith("too short for a speaker") for reason in made.failed.values())
    assert made.record["measures"]["privacy"]["verifications"]["original"]["targets"] == 12
    assert made.record["measures"]["privacy"]["trials_without_score"] == 16
    assert made.record["measures"]["duration"]["ratio"] == {"mean": 1, "interval": None}


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_embedding_without_a_direction_is_refused(original: Path, value: float) -> None:
    def sometimes(waveform: np.ndarray) -> np.ndarray:
        return np.full(2, value, np.float32) if recognize(waveform) == WORDS[3] else embed(waveform)

    made = evaluate(original, original, given=Given(verifier=sometimes), only=["privacy"], resamples=0)
    assert len(made.failed) == 4
    assert all(reason.endswith("its embedding is zero, or not finite") for reason in made.failed.values())


def test_trials_that_do_not_fit_leave_the_other_measures(original: Path, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "speech")
    (folder / "trials").write_text("nobody s0-1 nontarget\n")
    assert main(["evaluate", str(folder), str(original), "--only", "privacy", "--asv", str(tmp_path / "no")]) == 2
    record = evaluate(folder, original, given=Given(recognizer=recognize), skip=["quality", "pitch"]).record
    assert set(record["measures"]) == {"intelligibility", "duration"}
    if "needs" not in record["not_measured"]["privacy"]:
        assert "--enrolment names the recordings" in record["not_measured"]["privacy"]


def test_outputs_of_infer_are_evaluated(original: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "data" / "set", speakers=2)
    models = ["--model", str(artifacts.model), "--bank", str(artifacts.bank), "--quiet"]
    assert main(["infer", "--data-dir", str(folder), "--anon-suffix", "_mkc", "--seed", "1", *models]) == 0
    assert main(["infer", str(folder / "wav"), "-o", str(tmp_path / "out"), "--seed", "1", *models]) == 0
    for before, after in ((folder, tmp_path / "data" / "set_mkc"), (folder / "wav", tmp_path / "out")):
        record = evaluate(before, after, only=["duration"]).record
        assert record["recordings"] | {"heard": 8, "without_original": 0} == record["recordings"]
        assert 0.9 < record["measures"]["duration"]["ratio"]["mean"] <= 1


def test_the_record_and_the_page_hold_everything_and_load_nothing(original: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the page needs matplotlib")
    made = evaluate(original, original, tmp_path / "out", given=STAND_INS, resamples=50, seed=3)
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record == made.record
    assert (record["format"], record["version"]) == ("mkc-fast evaluation", 1)
    assert record["intervals"]["seed"] == 3
    assert record["measures"]["privacy"]["model"]["name"] == "function embed"
    assert [path.name for path in made.files] == ["evaluation.json", "evaluation.html"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.html", "evaluation.json"]
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "No attacker is trained here" in page
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 3
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|@import|<script', page)


def test_the_page_shows_what_a_record_says_as_text(original: Path) -> None:
    pytest.importorskip("matplotlib", reason="the page needs matplotlib")
    from mkc_fast.evaluation.page import build_page

    hostile = "<script>alert('1')</script>"
    record = evaluated(original, original)
    record["failed"] = {hostile: hostile}
    record["not_measured"] = {"quality": hostile}
    record["recordings"]["original"] = hostile
    record["measures"]["privacy"]["model"] = {"name": hostile, "package": hostile, "files": []}
    page = build_page(record)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_a_script_needs_no_guard(original: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from mkc_fast.evaluation import evaluate\n"
        f"made = evaluate({str(original)!r}, {str(original)!r}, only=['duration'], resamples=0)\n"
        "print(made.record['recordings']['heard'])\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout == "16\n", f"{done.stderr}: 32 recordings are enough for several processes"


def test_several_processes_hear_what_one_hears(original: Path) -> None:
    models = Models(verifier=Function(embed, "embed"), recognizer=Function(recognize, "recognize"))
    utterances = list(read_speech(original).utterances.values())[:6]
    tasks = [Task(("side", each.id), each, ("verifier", "recognizer")) for each in utterances]
    counts: list[tuple[int, int]] = []
    one = listen_to_all(tasks, models, 1, lambda *count: counts.append(count))
    two = listen_to_all(tasks, models, 2, lambda *count: counts.append(count))
    assert counts == 2 * [(done, 6) for done in range(1, 7)]
    for key, heard in one.items():
        other = two[key]
        assert isinstance(heard, Heard)
        assert isinstance(other, Heard)
        assert heard.words == other.words
        assert np.array_equal(heard.embedding, other.embedding)  # type: ignore[arg-type]


def test_a_model_that_cannot_be_opened_is_one_line_in_several_processes(original: Path, tmp_path: Path) -> None:
    from mkc_fast.evaluation.verifiers import OnnxVerifier

    pytest.importorskip("onnxruntime", reason="opens a graph")
    utterance = next(iter(read_speech(original).utterances.values()))
    with pytest.raises(MkcError, match="no such file"):
        listen_to_all(
            [Task(("side", utterance.id), utterance, ("verifier",))],
            Models(verifier=OnnxVerifier(tmp_path / "gone.onnx")),
            2,
            lambda *_: None,
        )


def test_a_process_that_dies_is_one_line(original: Path) -> None:
    utterances = list(read_speech(original).utterances.values())[:3]
    tasks = [Task(("side", each.id), each, ("verifier",)) for each in utterances]
    with pytest.raises(MkcError, match="a process that listens died"):
        listen_to_all(tasks, Models(verifier=Function(die, "die")), 2, lambda *_: None)


def test_what_is_not_installed_is_one_line_and_the_rest_is_measured(
    original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("webrtcvad", "pocketsphinx", "jiwer", "speechmos", "swift_f0", "resemblyzer"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["evaluate", str(original), str(original), "--resamples", "10"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"duration ratio +1\.000 \(1\.000 to 1\.000\)", said)
    assert re.search(
        r"no privacy: needs webrtcvad: pip install 'mkc-fast\[.*evaluate\]'; resemblyzer: pip install", said
    )
    assert "no intelligibility: needs JiWER, PocketSphinx: pip install 'mkc-fast[evaluate]'" in said
    assert "no pitch: needs swift-f0: pip install --no-deps swift-f0" in said
    assert "No attacker is trained here" in said
    for measure in ("privacy", "intelligibility", "quality", "pitch"):
        assert main(["evaluate", str(original), str(original), "--only", measure]) == 2
        assert capsys.readouterr().err.startswith(f"error: {measure} needs ")


def test_the_record_is_printed_as_json(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(original), str(original), "--only", "duration", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["measures"]["duration"]["least"] == 1


def test_impossible_arguments_are_refused(original: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="measure 'speed' is not known"):
        evaluated(original, original, only=["speed"])
    with pytest.raises(ArgumentError, match="no measure is left"):
        evaluated(original, original, only=["pitch"], skip=["pitch"])
    with pytest.raises(ArgumentError, match="jobs 0"):
        evaluated(original, original, jobs=0)


def test_an_output_that_cannot_be_written_is_known_before_the_work(original: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    heard: list[tuple[int, int]] = []
    with pytest.raises(OutputError):
        evaluate(original, original, tmp_path / "file", only=["duration"], progress=lambda *count: heard.append(count))
    assert not heard
