"""Trials come from a list or from all pairs, and an utterance is never compared with itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mkc_fast.errors import ListError
from mkc_fast.evaluation.inputs import read_trials
from mkc_fast.evaluation.trials import MOST_OTHERS, all_trials, listed_trials
from mkc_fast.evaluation.verification import members, score

SPEAKERS = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b", "c1": "c"}


def test_a_list_of_trials_is_read_as_the_toolkits_write_it(tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("a a1 target\na b1 nontarget\n\nb1 b2 target\n")
    assert read_trials(tmp_path / "trials") == [("a", "a1", True), ("a", "b1", False), ("b1", "b2", True)]


@pytest.mark.parametrize("line", ["a a1", "a a1 yes", "a a1 target 0.5", "a target a1"])
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "trials").write_text(f"a a2 target\n{line}\n")
    with pytest.raises(ListError, match="line 2: expected"):
        read_trials(tmp_path / "trials")


@pytest.mark.parametrize("line", [("a", "b1", True), ("a", "a1", False), ("a1", "a2", False), ("a1", "b1", True)])
def test_a_list_that_contradicts_the_speakers_is_refused(line: tuple[str, str, bool]) -> None:
    with pytest.raises(ListError, match="but the utterance is of"):
        listed_trials([line], SPEAKERS, "trials")


def test_all_pairs_are_every_utterance_against_every_speaker() -> None:
    trials = all_trials(list(SPEAKERS), SPEAKERS, ["a", "b", "c"], seed=0)
    assert len(trials.target) == 18
    named = {
        (trials.models[model], trials.utterances[utterance]): target
        for model, utterance, target in zip(trials.model, trials.utterance, trials.target, strict=True)
    }
    assert all(target == (SPEAKERS[utterance] == model) for (model, utterance), target in named.items())
    assert len(named) == 18


def test_among_many_speakers_an_utterance_meets_its_own_and_some_others_which_the_seed_draws() -> None:
    speakers = {f"u{number}": f"s{number}" for number in range(300)}
    trials, again, other = (all_trials(list(speakers), speakers, list(speakers.values()), seed) for seed in (1, 1, 2))
    assert np.count_nonzero(trials.target) == 300
    assert len(trials.target) == 300 * (1 + MOST_OTHERS)
    assert np.array_equal(trials.model, again.model)
    assert not np.array_equal(trials.model, other.model)


def test_a_score_is_the_cosine_with_the_mean_of_the_speakers_other_utterances() -> None:
    random = np.random.default_rng(0)
    enrolment = {name: random.normal(size=8).astype(np.float32) for name in SPEAKERS}
    tested = {name: random.normal(size=8).astype(np.float32) for name in SPEAKERS}
    trials = all_trials(list(SPEAKERS), SPEAKERS, ["a", "b", "c"], seed=0)
    found = score(trials, enrolment, members(trials.models, SPEAKERS, None), tested)
    scores = dict(zip(found.kept.tolist(), found.scores, strict=True))
    for trial, (model, utterance) in enumerate(zip(trials.model, trials.utterance, strict=True)):
        name = trials.utterances[utterance]
        others = [each for each, speaker in SPEAKERS.items() if speaker == trials.models[model] and each != name]
        if not others:
            assert trial not in scores, "c has one utterance, and it is not compared with itself"
            continue
        mean = np.mean([enrolment[each] / np.linalg.norm(enrolment[each]) for each in others], axis=0)
        expected = mean @ tested[name] / np.linalg.norm(mean) / np.linalg.norm(tested[name])
        assert scores[trial] == pytest.approx(expected, abs=1e-6)


def test_enrolment_is_of_the_listed_utterances_alone_and_a_model_may_be_an_utterance() -> None:
    assert members(["a", "b"], SPEAKERS, frozenset({"a1", "b2"})) == {"a": ["a1"], "b": ["b2"]}
    assert members(["a2", "z"], SPEAKERS, None) == {"a2": ["a2"], "z": []}


def test_trials_without_a_recording_have_no_score() -> None:
    trials = listed_trials([("a", "a1", True), ("a", "b1", False), ("z", "b1", False)], SPEAKERS, "trials")
    one = np.ones(4, np.float32)
    found = score(trials, {"a2": one}, members(trials.models, {"a2": "a"}, None), {"a1": one})
    assert found.kept.tolist() == [0]
    assert found.scores == pytest.approx([1.0])
