"""Which utterances a k-means model is trained on: those of a speaker, of several speakers, or all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mkc_fast.errors import ArgumentError, ListError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mkc_fast.engine.datasets.dataset import Utterance

SPEAKER, ALL = "speaker", "all"
REFUSE, MERGE = "refuse", "merge"
_GROUP = re.compile(r"group:([1-9][0-9]{0,6})")
# Speakers that a merged group's name lists.
_NAMED = 3


@dataclass(frozen=True)
class Group:
    """Utterances that one k-means model is trained on.

    Attributes:
        name: Of the model.
        utterances: In the order of the list.
        frames: Of all of them, as far as their headers tell.
    """

    name: str
    utterances: list[Utterance]
    frames: int


def speakers_a_model(per: str) -> int | None:
    """How many speakers ``per`` puts into one model; None: all of them.

    Raises:
        ArgumentError: It is not ``speaker``, ``group:N`` or ``all``.
    """
    if per == SPEAKER:
        return 1
    if per == ALL:
        return None
    found = _GROUP.fullmatch(per)
    if found is None:
        raise ArgumentError(f"per is '{printable(per)}'; expected speaker, group:N (such as group:20), or all")
    return int(found.group(1))


def grouped(
    utterances: Sequence[Utterance], frames: Sequence[int], speakers: Mapping[str, str], per: str
) -> list[Group]:
    """Groups of utterances, each of as many speakers as ``per`` says, in the order in which speakers first occur.

    Args:
        utterances: To train on.
        frames: Of each.
        speakers: Of each, by id; not used for ``all``.
        per: ``speaker``, ``group:N`` or ``all``.

    Raises:
        ArgumentError: ``per`` is none of these.
        ListError: An utterance has no speaker.
    """
    size = speakers_a_model(per)
    if size is None:
        return [Group(ALL, list(utterances), sum(frames))]
    of_speaker: dict[str, list[int]] = {}
    for index, utterance in enumerate(utterances):
        if utterance.id not in speakers:
            raise ListError(f"the utterance '{printable(utterance.id)}' has no speaker; utt2spk must name one")
        of_speaker.setdefault(speakers[utterance.id], []).append(index)
    names = list(of_speaker)
    groups = []
    for number, first in enumerate(range(0, len(names), size), 1):
        chosen = names[first : first + size]
        name = chosen[0] if per == SPEAKER else f"group{number:04d}"
        indices = [index for speaker in chosen for index in of_speaker[speaker]]
        groups.append(_group(name, [utterances[index] for index in indices], (frames[index] for index in indices)))
    return groups


def with_enough(groups: Sequence[Group], least: int, few: str) -> list[Group]:
    """The groups, none of fewer than ``least`` frames.

    Args:
        groups: In their order.
        least: Frames that a model needs.
        few: What becomes of groups with fewer: ``refuse`` raises; ``merge`` joins each with those after it that have
            too few as well, and the last with the group before it.

    Raises:
        ArgumentError: ``few`` is none of these.
        ListError: A group has too few frames, and is refused, or all of them together have too few.
    """
    if few not in {REFUSE, MERGE}:
        raise ArgumentError(f"few is '{printable(few)}'; expected {REFUSE} or {MERGE}")
    short = [group for group in groups if group.frames < least]
    if not short:
        return list(groups)
    if few == REFUSE:
        others = f" and {len(short) - 1} more" if len(short) > 1 else ""
        raise ListError(
            f"{printable(short[0].name)}{others}: {short[0].frames} frames, {least} are needed; leave them out, take "
            f"fewer clusters, or join them with others (--few {MERGE})"
        )
    if sum(group.frames for group in groups) < least:
        raise ListError(f"all speech together has {sum(group.frames for group in groups)} frames, {least} are needed")
    made: list[list[Group]] = []
    waiting: list[Group] = []
    for group in groups:
        if group.frames >= least:
            made.append([group])
            continue
        waiting.append(group)
        if sum(each.frames for each in waiting) >= least:
            made.append(waiting)
            waiting = []
    made[-1] += waiting
    return [_joined(each) for each in made]


def _joined(groups: Sequence[Group]) -> Group:
    if len(groups) == 1:
        return groups[0]
    names = [group.name for group in groups]
    more = len(names) - _NAMED
    name = "+".join(names[:_NAMED]) + (f"+{more}-more" if more > 0 else "")
    utterances = [utterance for group in groups for utterance in group.utterances]
    return Group(name, utterances, sum(group.frames for group in groups))


def _group(name: str, utterances: list[Utterance], frames: Iterable[int]) -> Group:
    return Group(name, utterances, sum(frames))
