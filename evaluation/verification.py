"""Scores trials: the cosine of an utterance's embedding and a speaker's mean embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from mkc_fast.evaluation.trials import Trials

_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Scores:
    """Scores of the trials that can be scored.

    Attributes:
        scores: Cosines, (M,) float64.
        kept: Which of the trials they are of, (M,) int64, rising.
    """

    scores: NDArray[np.float64]
    kept: NDArray[np.int64]


def members(
    models: Sequence[str], utterances: Mapping[str, str], enrolls: frozenset[str] | None
) -> dict[str, list[str]]:
    """The enrolment utterances of each model.

    Args:
        models: Speakers, or utterances that are a model by themselves.
        utterances: The speaker of each enrolment utterance.
        enrolls: Of these alone; None is all.
    """
    found: dict[str, list[str]] = {}
    for name, speaker in utterances.items():
        if enrolls is None or name in enrolls:
            found.setdefault(speaker, []).append(name)
    return {model: found.get(model) or ([model] if model in utterances else []) for model in models}


def scorable(
    trials: Trials, members_of: Mapping[str, Sequence[str]], enrolled: Collection[str], tested: Collection[str]
) -> NDArray[np.bool_]:
    """Which trials have an utterance, and a model with another one, (N,): those that ``score`` scores.

    Args:
        trials: What is compared.
        members_of: The enrolment utterances of each model.
        enrolled: The enrolment utterances that are there, by id.
        tested: The utterances of the trials that are there, by id.
    """
    counts = np.array([sum(name in enrolled for name in members_of[model]) for model in trials.models], np.int64)
    has_utterance = np.array([name in tested for name in trials.utterances], np.bool_)
    others = counts[trials.model] - _held(trials, members_of, enrolled)
    return np.asarray(has_utterance[trials.utterance] & (others > 0))


def _held(trials: Trials, members_of: Mapping[str, Sequence[str]], enrolled: Collection[str]) -> NDArray[np.bool_]:
    """Whether the model of each trial holds the trial's own utterance, (N,)."""
    places = {name: position for position, name in enumerate(trials.utterances)}
    inside = [
        position * len(places) + places[member]
        for position, name in enumerate(trials.models)
        for member in members_of[name]
        if member in enrolled and member in places
    ]
    return np.isin(trials.model * len(places) + trials.utterance, np.array(inside, np.int64))


def score(
    trials: Trials,
    enrolment: Mapping[str, NDArray[np.float32]],
    members_of: Mapping[str, Sequence[str]],
    tested: Mapping[str, NDArray[np.float32]],
) -> Scores:
    """The score of each trial: the cosine of the utterance and the mean of the model's embeddings of length 1.

    An utterance is never compared with itself: if a model holds the utterance of a trial, under the same id, the mean
    is of the model's other utterances. So every utterance can be a trial and be enrolled, too. Trials whose utterance
    has no embedding, or whose model has no other, have no score.

    Args:
        trials: What is compared.
        enrolment: Embeddings of enrolment utterances, (E,) float32 each, by utterance id.
        members_of: The enrolment utterances of each model.
        tested: Embeddings of the utterances of the trials.
    """
    size = next((len(one) for one in (*tested.values(), *enrolment.values())), 0)
    utterances = np.zeros((len(trials.utterances), size))
    own = np.zeros((len(trials.utterances), size))  # the same utterance as it is enrolled
    for position, name in enumerate(trials.utterances):
        if name in tested:
            utterances[position] = _unit(tested[name])
        if name in enrolment:
            own[position] = _unit(enrolment[name])
    sums = np.zeros((len(trials.models), size))
    for position, name in enumerate(trials.models):
        for member in members_of[name]:
            if member in enrolment:
                sums[position] += _unit(enrolment[member])
    held = _held(trials, members_of, enrolment)
    possible = np.flatnonzero(scorable(trials, members_of, enrolment, tested))
    scores, kept = [], []
    for begin in range(0, len(possible), _AT_ONCE):
        part = possible[begin : begin + _AT_ONCE]
        model, utterance = trials.model[part], trials.utterance[part]
        means = sums[model] - np.where(held[part, None], own[utterance], 0.0)
        norms = np.linalg.norm(means, axis=1)
        usable = norms > 0
        scores.append(np.einsum("ij,ij->i", means[usable], utterances[utterance[usable]]) / norms[usable])
        kept.append(part[usable])
    none = np.zeros(0)
    return Scores(np.concatenate(scores or [none]), np.concatenate(kept or [none]).astype(np.int64))


def _unit(embedding: NDArray[np.float32]) -> NDArray[np.float64]:
    return embedding.astype(np.float64) / np.linalg.norm(embedding)
