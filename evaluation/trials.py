"""Trials of speaker verification: from a list, or of every utterance against the models of all speakers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.errors import ListError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

# Of speakers whose models an utterance is compared with, without a list: more tell no more, and cost time.
MOST_OTHERS = 100


@dataclass(frozen=True)
class Trials:
    """Which models and utterances are compared.

    Attributes:
        models: Ids: speakers, or utterances that are a model by themselves.
        utterances: Ids.
        model: The model of each trial, as a position in ``models``, (N,) int64.
        utterance: The utterance of each trial, as a position in ``utterances``, (N,) int64.
        target: Whether a trial is of one speaker, (N,) bool.
        listed: Whether they come from a list.
    """

    models: Sequence[str]
    utterances: Sequence[str]
    model: NDArray[np.int64]
    utterance: NDArray[np.int64]
    target: NDArray[np.bool_]
    listed: bool


def listed_trials(lines: Iterable[tuple[str, str, bool]], speakers: Mapping[str, str], where: str) -> Trials:
    """Trials as a list has them.

    Args:
        lines: Model, utterance, and whether they are one speaker.
        speakers: Of utterances, to compare the list with where it has them.
        where: The list, for messages.

    Raises:
        ListError: A line says that two utterances are of one speaker who have two, or the other way round.
    """
    models: dict[str, int] = {}
    utterances: dict[str, int] = {}
    rows = []
    for model, utterance, target in lines:
        known = speakers.get(utterance)
        if known is not None and (speakers.get(model, model) == known) != target:
            raise ListError(
                f"{where}: '{printable(model)} {printable(utterance)}' is a {'' if target else 'non'}target, but the "
                f"utterance is of '{printable(known)}'"
            )
        rows.append((models.setdefault(model, len(models)), utterances.setdefault(utterance, len(utterances)), target))
    columns = np.array(rows, np.int64).reshape(-1, 3)
    return Trials(
        list(models), list(utterances), columns[:, 0], columns[:, 1], columns[:, 2].astype(np.bool_), listed=True
    )


def all_trials(utterances: Sequence[str], speakers: Mapping[str, str], models: Sequence[str], seed: int) -> Trials:
    """Every utterance against the model of its speaker and those of all other speakers, or of ``MOST_OTHERS`` of them.

    Args:
        utterances: Ids.
        speakers: Of the utterances.
        models: The speakers that have a model.
        seed: Draws the other speakers, where they are more.
    """
    known = {name: position for position, name in enumerate(models)}
    random = np.random.default_rng(seed)
    model: list[NDArray[np.int64]] = []
    utterance: list[NDArray[np.int64]] = []
    target: list[NDArray[np.bool_]] = []
    for position, name in enumerate(utterances):
        own = known.get(speakers[name])
        others = np.delete(np.arange(len(models)), [] if own is None else [own])
        if len(others) > MOST_OTHERS:
            others = np.sort(random.choice(others, MOST_OTHERS, replace=False))
        chosen = others if own is None else np.concatenate([[own], others])
        model.append(chosen.astype(np.int64))
        utterance.append(np.full(len(chosen), position, np.int64))
        target.append(chosen == (-1 if own is None else own))
    none = [np.zeros(0, np.int64)]
    return Trials(
        list(models),
        list(utterances),
        np.concatenate(model or none),
        np.concatenate(utterance or none),
        np.concatenate(target or none).astype(np.bool_),
        listed=False,
    )
