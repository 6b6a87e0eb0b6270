"""Lists beside recordings: what is read for which measure, and what is said where they do not fit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import soundfile

from mkc_fast.errors import ListError
from mkc_fast.evaluation import Given, evaluate
from mkc_fast.evaluation.inputs import read_speech, read_text
from tests.evaluation.speakers import embed, recognize, recording, write_set

GIVEN = Given(verifier=embed, recognizer=recognize)


def test_a_named_text_without_any_of_the_utterances_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "speech")
    (tmp_path / "words").write_text("foo BAR\n")
    with pytest.raises(ListError, match=r"words: has no transcript of an utterance .* one of 'foo', .* is 's0-0'$"):
        evaluate(folder, folder, given=GIVEN, only=["intelligibility"], text=tmp_path / "words")


def test_utterances_that_a_list_lacks_are_counted_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_set(tmp_path / "speech")
    for name, left in (("text", 3), ("utt2spk", 2)):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[: 4 * left]))
    with caplog.at_level(logging.WARNING, "mkc_fast"):
        evaluate(folder, folder, given=GIVEN, only=["privacy", "intelligibility"], resamples=0)
    assert "4 of 16 utterances are not in text, such as 's3-0'" in caplog.text
    assert "8 of 16 utterances are not in utt2spk, such as 's2-0'" in caplog.text


def test_folders_that_are_called_like_lists_hold_recordings(tmp_path: Path) -> None:
    for number, name in enumerate(("text", "trials", "enrolls", "utt2spk", "wav.scp")):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "x.wav", recording(number, 0), 16000)
    found = read_speech(tmp_path)
    assert sorted(found.utterances) == ["enrolls/x", "text/x", "trials/x", "utt2spk/x", "wav.scp/x"]
    assert found.trials is found.enrolls is None


def test_a_list_is_read_for_its_measures_alone(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "speech")
    (folder / "text").write_text("")
    (folder / "enrolls").write_text("")
    assert evaluate(folder, folder, only=["duration"], resamples=0).record["recordings"]["heard"] == 16
    with pytest.raises(ListError, match="text: the list is empty"):
        read_speech(folder, measures=["intelligibility"])
    with pytest.raises(ListError, match="enrolls: the list is empty"):
        read_speech(folder, measures=["privacy"])


def test_a_transcript_may_be_that_of_hours(tmp_path: Path) -> None:
    long = "WORD " * 200_000
    (tmp_path / "text").write_text(f"\ufeff# of a lecture\na \t {long}\n\nb\nc\tONE  TWO\r\n", encoding="utf-8")
    assert read_text(tmp_path / "text") == {"a": long.strip(), "b": "", "c": "ONE  TWO"}
    (tmp_path / "text").write_text("a x\na " + "WORD " * 1_000_000)
    with pytest.raises(ListError, match="line 2: too long for a transcript"):
        read_text(tmp_path / "text")
    (tmp_path / "text").write_bytes(b"a \xff\n")
    with pytest.raises(ListError, match="not a text file in UTF-8"):
        read_text(tmp_path / "text")
    (tmp_path / "text").write_text("a x\na y\n")
    with pytest.raises(ListError, match="line 2: the utterance 'a' is there twice"):
        read_text(tmp_path / "text")
    with pytest.raises(ListError, match="gone: cannot be read"):
        read_text(tmp_path / "gone")
