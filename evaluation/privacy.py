"""Privacy: the equal error rates of three speaker verifications with one verifier and the same trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import ListError
from mkc_fast.evaluation.equal_error_rate import ranked
from mkc_fast.evaluation.inputs import read_trials
from mkc_fast.evaluation.trials import MOST_OTHERS, Trials, all_trials, listed_trials
from mkc_fast.evaluation.verification import members, score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mkc_fast.evaluation.inputs import Speech
    from mkc_fast.evaluation.intervals import Bootstrap

Embeddings = dict[str, "NDArray[np.float32]"]
# The verifications: of original speech; by an attacker who does not know of the anonymization; by one who anonymizes
# the enrolment, too, but trains nothing.
ORIGINAL, IGNORANT, LAZY_INFORMED = "original", "ignorant", "lazy_informed"
_BINS = 40


@dataclass(frozen=True)
class Enrolment:
    """Recordings that speakers are enrolled with.

    Attributes:
        speech: Where they come from.
        apart: Whether they are other recordings than those of the trials.
    """

    speech: Speech
    apart: bool


def plan_trials(
    original: Speech, enrolment: Enrolment, matched: Sequence[str], speakers: Mapping[str, str], seed: int
) -> Trials:
    """The trials: those of the list ``trials`` of the original speech; without one, see ``all_trials``.

    Args:
        original: The original speech.
        enrolment: Of original speech.
        matched: The utterances that are there as original and as anonymized speech.
        speakers: Of all utterances.
        seed: For ``all_trials``.

    Raises:
        ListError: The list does not fit the recordings, or speakers are not known.
    """
    if original.trials is not None:
        trials = listed_trials(read_trials(original.trials), speakers, str(original.trials))
        enrolled = enrolment.speech.utterances
        known = {speakers[name] for name in enrolled if name in speakers} | set(enrolled)
        if not known.intersection(trials.models):
            raise ListError(
                f"{original.trials}: none of its {len(trials.models)} speakers has a recording in "
                f"{enrolment.speech.path}; --enrolment names the recordings that they are enrolled with"
            )
        if not set(trials.utterances).intersection(matched):
            raise ListError(f"{original.trials}: none of its {len(trials.utterances)} utterances is evaluated here")
        return trials
    if not speakers:
        raise ListError(f"{original.path}: has no utt2spk that says who speaks; --utt2spk names one")
    enrolls = enrolls_of(original, enrolment)
    candidates = [name for name in matched if name in speakers]
    if not enrolment.apart and enrolls is not None:
        candidates = [name for name in candidates if name not in enrolls]
    models = dict.fromkeys(
        speakers[name]
        for name in enrolment.speech.utterances
        if name in speakers and (enrolls is None or name in enrolls)
    )
    if len(models) < 2 or not candidates:
        raise ListError(
            f"{enrolment.speech.path}: has {len(models)} speaker(s) and {len(candidates)} utterance(s) to try; "
            "privacy needs two speakers and an utterance"
        )
    return all_trials(candidates, speakers, list(models), seed)


def enrolls_of(original: Speech, enrolment: Enrolment) -> frozenset[str] | None:
    """The utterances of the list ``enrolls``, beside the enrolment recordings or else the original ones."""
    return enrolment.speech.enrolls if enrolment.speech.enrolls is not None else original.enrolls


def measure_privacy(
    trials: Trials,
    speakers: Mapping[str, str],
    enrolls: frozenset[str] | None,
    embeddings: Mapping[str, tuple[Embeddings, Embeddings]],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """The equal error rate of each verification, for the record.

    Args:
        trials: What is compared.
        speakers: Of all utterances.
        enrolls: The enrolment utterances; None: all.
        embeddings: For each verification those of the enrolment and those of the trials, by utterance.
        bootstrap: For the intervals.

    Raises:
        ListError: A verification has no target or no nontarget trial.
    """
    of_model, of_trial = _speakers_of(trials, speakers)
    scored = {}
    for name, (enrolment, tested) in embeddings.items():
        enrolled = {utterance: speakers[utterance] for utterance in enrolment if utterance in speakers}
        enrolled |= {utterance: utterance for utterance in enrolment if utterance not in speakers}
        scored[name] = score(trials, enrolment, members(trials.models, enrolled, enrolls), tested)
    every = np.concatenate([one.scores for one in scored.values()])
    if not len(every):
        raise ListError("no trial has an enrolment and a recording")
    edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-6), _BINS + 1)
    found: dict[str, Any] = {}
    for name, one in scored.items():
        target = trials.target[one.kept]
        ranking = ranked(one.scores, target)
        rate = ranking.equal_error_rate()
        if rate is None:
            raise ListError(
                f"{name} verification has {np.count_nonzero(target)} target and {np.count_nonzero(~target)} nontarget "
                "trials; both are needed, so two speakers, and one of them with two utterances"
            )
        interval = bootstrap.of_speakers(ranking, of_model[one.kept], of_trial[one.kept])
        found[name] = {
            "eer": rate,
            "interval": interval,
            "targets": int(np.count_nonzero(target)),
            "nontargets": int(np.count_nonzero(~target)),
            "trials_without_score": len(trials.target) - len(one.kept),
            "histogram": {
                "targets": np.histogram(one.scores[target], edges)[0].tolist(),
                "nontargets": np.histogram(one.scores[~target], edges)[0].tolist(),
            },
        }
    return {
        "verifications": found,
        "trials": "list" if trials.listed else "all pairs",
        "most_other_speakers": None if trials.listed else MOST_OTHERS,
        "models": len(trials.models),
        "speakers": len(set(of_trial.tolist()) | set(of_model.tolist())),
        "score": "cosine of the utterance's embedding and the mean of the speaker's other embeddings",
        "histogram_edges": edges.tolist(),
    }


def _speakers_of(trials: Trials, speakers: Mapping[str, str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The speaker of each trial's model and of its utterance, as numbers from 0 on.

    The speaker of an utterance that no list names is that of its target trials, or else one of its own.
    """
    names = {
        trials.utterances[utterance]: speakers.get(trials.models[model], trials.models[model])
        for model, utterance, target in zip(
            trials.model.tolist(), trials.utterance.tolist(), trials.target.tolist(), strict=True
        )
        if target
    }
    names.update({name: speakers[name] for name in trials.utterances if name in speakers})
    of_models = [speakers.get(name, name) for name in trials.models]
    of_utterances = [names.get(name, f"utterance {name}") for name in trials.utterances]
    numbers = {name: number for number, name in enumerate(dict.fromkeys([*of_models, *of_utterances]))}
    model = np.array([numbers[name] for name in of_models], np.int64)
    utterance = np.array([numbers[name] for name in of_utterances], np.int64)
    return model[trials.model], utterance[trials.utterance]
