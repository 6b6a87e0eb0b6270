"""Privacy: the equal error rates of three speaker verifications with one verifier and the same trials."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import ListError
from mkc_fast.evaluation.equal_error_rate import ranked
from mkc_fast.evaluation.inputs import read_trials
from mkc_fast.evaluation.trials import MOST_OTHERS, Trials, all_trials, listed_trials
from mkc_fast.evaluation.verification import members, scorable, score
from mkc_fast.text import printable

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
_NOT_MEASURED = {"eer": None, "interval": None, "targets": 0, "nontargets": 0, "histogram": None}
_logger = logging.getLogger("mkc_fast")


@dataclass(frozen=True)
class Enrolment:
    """Recordings that speakers are enrolled with.

    Attributes:
        speech: Where they come from.
        apart: Whether they are other recordings than those of the trials.
    """

    speech: Speech
    apart: bool


@dataclass(frozen=True)
class Plan:
    """What the verifications compare, as far as it is known before a recording is heard.

    Attributes:
        trials: Of all verifications.
        speakers: Of all utterances.
        members: For each verification that is possible, the enrolment utterances of each model.
        not_measured: Why a verification is not possible.
    """

    trials: Trials
    speakers: Mapping[str, str]
    members: Mapping[str, Mapping[str, Sequence[str]]]
    not_measured: Mapping[str, str]


def plan_privacy(
    original: Speech,
    enrolment: Enrolment,
    enrolment_anonymized: Enrolment,
    matched: Sequence[str],
    speakers: Mapping[str, str],
    seed: int,
) -> Plan:
    """The trials, the enrolment of each verification, and which verifications are possible.

    Args:
        original: The original speech.
        enrolment: Of original speech.
        enrolment_anonymized: Of anonymized speech.
        matched: The utterances that are there as original and as anonymized speech.
        speakers: Of all utterances.
        seed: For ``all_trials``.

    Raises:
        ListError: The trials do not fit the recordings, or too few of them can be scored for any verification.
    """
    trials = plan_trials(original, enrolment, matched, speakers, seed)
    enrolls = enrolls_of(original, enrolment)
    members_of: dict[str, dict[str, list[str]]] = {}
    not_measured: dict[str, str] = {}
    common = np.ones(len(trials.target), np.bool_)
    for name, side in ((ORIGINAL, enrolment), (IGNORANT, enrolment), (LAZY_INFORMED, enrolment_anonymized)):
        names = side.speech.utterances if side.apart else dict.fromkeys(matched)
        enrolled = {utterance: speakers.get(utterance, utterance) for utterance in names}
        of = members(trials.models, enrolled, enrolls)
        possible = common & scorable(trials, of, names, dict.fromkeys(matched))
        lack = _lack(trials, possible)
        if lack is None:
            members_of[name], common = of, possible
        elif name != LAZY_INFORMED:
            raise ListError(f"{side.speech.path}: {lack}")
        elif side.apart or not enrolment.apart:
            not_measured[name] = f"{printable(side.speech.path.resolve().name)}: {lack}"
        else:
            not_measured[name] = "--enrolment-anonymized names the attacker's recordings"
    if enrolment_anonymized.apart and LAZY_INFORMED in members_of:
        sides = [
            (side, {one for each in members_of[name].values() for one in each})
            for name, side in ((ORIGINAL, enrolment), (LAZY_INFORMED, enrolment_anonymized))
        ]
        _warn_of_lacks(*sides)
        _warn_of_lacks(*reversed(sides))
    return Plan(trials, speakers, members_of, not_measured)


def _warn_of_lacks(one: tuple[Enrolment, set[str]], other: tuple[Enrolment, set[str]]) -> None:
    lacking = sorted(one[1] - other[1])
    if lacking:
        _logger.warning(
            "%d of %d enrolment utterances of %s are not in %s, such as '%s': speakers are not enrolled alike there",
            *(len(lacking), len(one[1]), printable(str(one[0].speech.path), 300)),
            *(printable(str(other[0].speech.path), 300), printable(lacking[0])),
        )


def _lack(trials: Trials, kept: NDArray[np.bool_]) -> str | None:
    """What the trials that are kept lack for an equal error rate; None: nothing."""
    targets = int(np.count_nonzero(trials.target & kept))
    nontargets = int(np.count_nonzero(kept)) - targets
    if targets and nontargets:
        return None
    return (
        f"{targets} target and {nontargets} nontarget trials can be scored; both are needed, so two speakers, and one "
        "of them with two utterances"
    )


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
    plan: Plan, embeddings: Mapping[str, tuple[Embeddings, Embeddings]], bootstrap: Bootstrap
) -> dict[str, Any]:
    """The equal error rate of each verification, for the record; all of them rank the same trials.

    Args:
        plan: What is compared.
        embeddings: For each verification those of the enrolment and those of the trials, by utterance; that of
            original speech first.
        bootstrap: For the intervals.

    Raises:
        ListError: The verification of original speech or of the ignorant attacker has no target or no nontarget trial.
    """
    trials, not_measured = plan.trials, dict(plan.not_measured)
    scored = {}
    common = np.ones(len(trials.target), np.bool_)
    for name, (enrolment, tested) in embeddings.items():
        if name in not_measured:
            continue
        one = score(trials, enrolment, plan.members[name], tested)
        possible = np.zeros_like(common)
        possible[one.kept] = True
        possible &= common
        lack = _lack(trials, possible)
        if lack is None:
            scored[name], common = one, possible
        elif name == LAZY_INFORMED:
            not_measured[name] = lack
        else:
            raise ListError(f"the verification {name}: {lack}")
    kept = np.flatnonzero(common)
    target = trials.target[kept]
    scores = {name: one.scores[common[one.kept]] for name, one in scored.items()}
    every = np.concatenate(list(scores.values()))
    edges = np.linspace(every.min(), max(every.max(), every.min() + 1e-6), _BINS + 1)
    of_model, of_trial = (of[kept] for of in _speakers_of(trials, plan.speakers))
    found: dict[str, Any] = {}
    for name in embeddings:
        if name in not_measured:
            found[name] = _NOT_MEASURED | {"not_measured": not_measured[name]}
            continue
        ranking = ranked(scores[name], target)
        found[name] = {
            "eer": ranking.equal_error_rate(),
            "interval": bootstrap.of_speakers(ranking, of_model, of_trial),
            "targets": int(np.count_nonzero(target)),
            "nontargets": int(np.count_nonzero(~target)),
            "histogram": {
                "targets": np.histogram(scores[name][target], edges)[0].tolist(),
                "nontargets": np.histogram(scores[name][~target], edges)[0].tolist(),
            },
            "not_measured": None,
        }
    return {
        "verifications": found,
        "trials": "list" if trials.listed else "all pairs",
        "trials_without_score": len(trials.target) - len(kept),
        "most_other_speakers": None if trials.listed or len(trials.models) <= MOST_OTHERS + 1 else MOST_OTHERS,
        "models": len(np.unique(trials.model[kept])),
        "speakers": len(np.unique(np.concatenate([of_model, of_trial]))),
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
