"""Draws of one utterance, one speaker or one run: what shares a draw, and what a run that continues may share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import ListError, OutputError, anonymize_corpus
from mkc_fast.cli import main
from mkc_fast.engine.draws import CONSTANT_DRAW, speaker_draw
from mkc_fast.names import LEVELS
from tests.conftest import Artifacts

SPEAKERS = {"u0": "anna", "u1": "ben", "u2": "anna", "u3": "ben"}


@pytest.fixture
def audio_list(tmp_path: Path, clip: np.ndarray) -> Path:
    """Four recordings of other lengths and two speakers; the speakers are in ``utt2spk`` beside the list."""
    lines = []
    for number, name in enumerate(SPEAKERS):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, clip[: 12000 + 3000 * number], 16000)
        lines.append(f"{name} {path}\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    (tmp_path / "utt2spk").write_text("".join(f"{name} {speaker}\n" for name, speaker in SPEAKERS.items()))
    return tmp_path / "wav.scp"


@pytest.fixture
def draws(artifacts: Artifacts, audio_list: Path, tmp_path: Path) -> Callable[..., dict[str, list[int]]]:
    """Anonymizes the list and returns the recorded draws of each utterance."""

    def run(out: str, **options: object) -> dict[str, list[int]]:
        given: dict[str, object] = {"audio_list": audio_list, "seed": 7, "devices": ["cpu"], "record_draws": True}
        given.update(options)
        anonymize_corpus(artifacts.model, artifacts.bank, out=tmp_path / out, **given)  # type: ignore[arg-type]
        lines = [json.loads(line) for line in (tmp_path / out / "manifest.jsonl").read_text().splitlines()]
        return {line["id"]: line["bank_ids"] for line in lines if "bank_ids" in line}

    return run


def begins_alike(first: list[int], second: list[int]) -> bool:
    shared = min(len(first), len(second))
    return first[:shared] == second[:shared]


def test_utterances_of_a_speaker_share_one_sequence_of_entries(draws: Callable[..., dict[str, list[int]]]) -> None:
    drawn = draws("out", level="speaker")
    assert begins_alike(drawn["u0"], drawn["u2"])
    assert begins_alike(drawn["u1"], drawn["u3"])
    assert not begins_alike(drawn["u0"], drawn["u1"])


def test_at_the_constant_level_all_share_one_sequence(draws: Callable[..., dict[str, list[int]]]) -> None:
    drawn = draws("out", level="constant")
    assert all(begins_alike(drawn["u0"], other) for other in drawn.values())


def test_at_the_utterance_level_none_share(draws: Callable[..., dict[str, list[int]]]) -> None:
    drawn = list(draws("out", level="utterance").values())
    assert not any(begins_alike(first, second) for i, first in enumerate(drawn) for second in drawn[:i])


@pytest.mark.parametrize("level", LEVELS)
def test_draws_depend_on_seed_and_speaker_alone(
    draws: Callable[..., dict[str, list[int]]], level: str, audio_list: Path, tmp_path: Path
) -> None:
    """Not on the order, the number of workers, the batches or the other utterances."""
    drawn = draws("out", level=level)
    lines = audio_list.read_text().splitlines(keepends=True)
    (tmp_path / "part.scp").write_text("".join(lines[:0:-1]))
    again = draws("part", audio_list=tmp_path / "part.scp", level=level, num_proc=2)
    assert again == {name: drawn[name] for name in ("u3", "u2", "u1")}
    assert draws("other", level=level, seed=8) != drawn


def test_the_api_draws_what_the_command_draws(
    artifacts: Artifacts, draws: Callable[..., dict[str, list[int]]], tmp_path: Path
) -> None:
    speech = soundfile.read(tmp_path / "u2.wav", dtype="int16")[0]
    alone = artifacts.anonymizer.anonymize(speech, seed=7, utterance_id="u2", draw_id=speaker_draw("anna"))
    assert alone.bank_ids.tolist() == draws("speaker", level="speaker")["u2"]
    (batch,) = artifacts.anonymizer.anonymize_batch([speech], seed=7, draw_ids=[CONSTANT_DRAW])
    assert batch.bank_ids.tolist() == draws("constant", level="constant")["u2"]


def test_in_audio_mode_a_speaker_has_one_entry(draws: Callable[..., dict[str, list[int]]]) -> None:
    drawn = draws("out", level="speaker", mode="audio")
    assert len({*drawn["u0"], *drawn["u2"]}) == 1
    assert len({*drawn["u1"], *drawn["u3"]}) == 1


def test_without_a_seed_speakers_still_share_and_no_run_repeats_another(
    draws: Callable[..., dict[str, list[int]]],
) -> None:
    drawn, again = draws("out", level="speaker", seed=None), draws("again", level="speaker", seed=None)
    assert begins_alike(drawn["u0"], drawn["u2"])
    assert not begins_alike(drawn["u0"], drawn["u1"])
    assert drawn["u0"] != again["u0"]


def test_shared_draws_without_a_seed_are_not_continued(
    draws: Callable[..., dict[str, list[int]]], tmp_path: Path
) -> None:
    draws("out", level="speaker", seed=None)
    (tmp_path / "out" / "u0.wav").unlink()
    with pytest.raises(OutputError, match="without a seed"):
        draws("out", level="speaker", seed=None)
    drawn = draws("out", level="speaker", seed=None, overwrite=True)
    assert begins_alike(drawn["u0"], drawn["u2"])


def test_another_level_or_another_speaker_is_not_continued(
    draws: Callable[..., dict[str, list[int]]], tmp_path: Path
) -> None:
    draws("out", level="speaker")
    with pytest.raises(OutputError, match="level speaker, this run has utterance"):
        draws("out")
    (tmp_path / "utt2spk").write_text("u0 anna\nu1 ben\nu2 ben\nu3 ben\n")
    with pytest.raises(OutputError, match="draws of speaker:anna"):
        draws("out", level="speaker")


def test_a_manifest_from_before_levels_is_of_the_utterance_level(
    draws: Callable[..., dict[str, list[int]]], tmp_path: Path
) -> None:
    draws("out")
    manifest = tmp_path / "out" / "manifest.jsonl"
    header, *rest = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([header.replace(', "level": "utterance"', ""), *rest]))
    assert "level" not in manifest.read_text()
    draws("out")
    with pytest.raises(OutputError, match="level utterance, this run has constant"):
        draws("out", level="constant")


def test_speakers_come_from_beside_the_list_from_an_option_or_are_asked_for(
    draws: Callable[..., dict[str, list[int]]], tmp_path: Path
) -> None:
    (tmp_path / "utt2spk").rename(tmp_path / "speakers")
    with pytest.raises(ListError, match="no utt2spk"):
        draws("out", level="speaker")
    drawn = draws("out", level="speaker", utt2spk=tmp_path / "speakers")
    assert begins_alike(drawn["u0"], drawn["u2"])
    (tmp_path / "speakers").write_text("u0 anna\nu1 ben\n")
    with pytest.raises(ListError, match="no speaker for the utterance 'u2' and 1 more"):
        draws("other", level="speaker", utt2spk=tmp_path / "speakers")
    (tmp_path / "speakers").write_text("u0 anna\nu0 ben\n")
    with pytest.raises(ListError, match="line 2: the utterance 'u0' has another speaker"):
        draws("other", level="speaker", utt2spk=tmp_path / "speakers")


def test_a_data_directory_has_its_own_speakers(
    artifacts: Artifacts, audio_list: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("wav.scp", "utt2spk"):
        (data / name).write_bytes((tmp_path / name).read_bytes())
    given = ["infer", "--data-dir", str(data), "--level", "speaker", "--seed", "7", "--record-draws", "--gpus", "cpu"]
    assert main([*given, "--model", str(artifacts.model), "--bank", str(artifacts.bank)]) == 0
    assert "level speaker" in capsys.readouterr().err
    lines = (tmp_path / ".mkc-fast" / "data_mkc" / "manifest.jsonl").read_text().splitlines()
    drawn = {line["id"]: line["bank_ids"] for line in map(json.loads, lines) if "bank_ids" in line}
    assert begins_alike(drawn["u0"], drawn["u2"])
    assert not begins_alike(drawn["u0"], drawn["u1"])
