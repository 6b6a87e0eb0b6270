"""Speakers of utterances (Kaldi ``utt2spk``), and draws that utterances of one speaker, or all, share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mkc_fast.engine.datasets.lines import read_lines, shown_list
from mkc_fast.engine.draws import CONSTANT_DRAW, speaker_draw
from mkc_fast.errors import ArgumentError, ListError
from mkc_fast.names import CONSTANT, LEVELS, UTTERANCE
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.names import Level


def read_utt2spk(path: Path) -> dict[str, str]:
    """The speaker of each utterance of a list of ``utt-id speaker`` a line.

    Raises:
        ListError: The list is unreadable or empty, a line has another form, or gives an utterance a second speaker.
    """
    speakers: dict[str, str] = {}
    for number, line in read_lines(path, standard_input=False):
        name, _, speaker = line.partition(" ")
        if not speaker or " " in speaker:
            raise ListError(f"{path}, line {number}: expected 'utt-id speaker', found '{printable(line)}'")
        if speakers.setdefault(name, speaker) != speaker:
            raise ListError(f"{path}, line {number}: the utterance '{printable(name)}' has another speaker above")
    if not speakers:
        raise ListError(f"{path}: the list is empty")
    return speakers


def with_draw_ids(
    utterances: Sequence[Utterance], level: Level, utt2spk: Path | None, speakers: Mapping[str, str] | None = None
) -> list[Utterance]:
    """The utterances with what decides their draws: each its own, its speaker, or the same for all.

    Args:
        utterances: As they were read.
        level: ``utterance``, ``speaker`` or ``constant``.
        utt2spk: The list of speakers, for ``speaker``.
        speakers: Or the speaker of each utterance, where there is no list.

    Raises:
        ArgumentError: The level is unknown.
        ListError: Speakers are needed and the list is missing, unreadable, or lacks an utterance.
    """
    if level not in LEVELS:
        raise ArgumentError(f"level is {level!r}; expected one of {', '.join(LEVELS)}")
    if level == UTTERANCE:
        return list(utterances)
    if level == CONSTANT:
        return [replace(utterance, draw_id=CONSTANT_DRAW) for utterance in utterances]
    if utt2spk is not None:
        if not utt2spk.exists():
            raise ListError(f"{utt2spk}: not there; the level speaker needs it")
        speakers = read_utt2spk(utt2spk)
    elif not speakers:
        raise ListError("the level is speaker, and no utt2spk says which speaker an utterance is of")
    missing = [utterance.id for utterance in utterances if utterance.id not in speakers]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        where = "the input" if utt2spk is None else shown_list(utt2spk)
        raise ListError(f"{where}: has no speaker for the utterance '{printable(missing[0])}'{others}")
    return [replace(utterance, draw_id=speaker_draw(speakers[utterance.id])) for utterance in utterances]
