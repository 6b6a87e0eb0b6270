"""Reads what is evaluated: recordings, their speakers and transcripts, and the lists that say who is compared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mkc_fast.engine.datasets.folders import read_folder
from mkc_fast.engine.datasets.kaldi import read_directory_utterances
from mkc_fast.engine.datasets.lines import check_regular, numbered_lines, read_lines
from mkc_fast.engine.datasets.path_lists import read_audio_list
from mkc_fast.engine.datasets.speakers import read_utt2spk
from mkc_fast.errors import ListError
from mkc_fast.evaluation.measures import INTELLIGIBILITY, MEASURES, PRIVACY
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from mkc_fast.engine.datasets.dataset import Utterance

_RECORDINGS, _SPEAKERS, _TEXT, _TRIALS, _ENROLLS = "wav.scp", "utt2spk", "text", "trials", "enrolls"
_LABELS = {"target": True, "nontarget": False}
_MOST_TEXT_BYTES = 1 << 22  # a million characters, whatever the script: hours of speech
_BLANKS = re.compile(r"[ \t]+")
_OTHER_LIST = re.compile(r"[_.-]\w*")  # what follows the name of a list in trials_f or enrolls.txt


@dataclass(frozen=True)
class Speech:
    """Recordings of a data directory, a folder or a list.

    Attributes:
        path: Where they are.
        utterances: By id, in the order of their list.
        speakers: The speaker of each utterance; empty where no list says it.
        transcripts: What is said, by utterance; empty where no list says it.
        enrolls: The utterances that speakers are enrolled with; None: no list says it.
        trials: The list of trials; None: there is none.
    """

    path: Path
    utterances: Mapping[str, Utterance]
    speakers: Mapping[str, str] = field(default_factory=dict)
    transcripts: Mapping[str, str] = field(default_factory=dict)
    enrolls: frozenset[str] | None = None
    trials: Path | None = None


def read_speech(
    path: Path,
    *,
    utt2spk: Path | None = None,
    text: Path | None = None,
    trials: Path | None = None,
    enrolls: Path | None = None,
    measures: Collection[str] = MEASURES,
    allow_commands: bool = False,
) -> Speech:
    """Read recordings, and the lists beside them: ``utt2spk``, ``text``, ``enrolls`` and ``trials``.

    Args:
        path: A Kaldi data directory, which has a ``wav.scp``; a folder of recordings, whose ids are their paths below
            it without endings; or a list of ``path`` or ``utt-id path`` a line.
        utt2spk: The list of speakers, in place of the one beside the recordings.
        text: The list of transcripts, in place of the one beside the recordings.
        trials: The list of trials, in place of the one beside the recordings; it is not read here.
        enrolls: The list of enrolment utterances, in place of the one beside the recordings.
        measures: What the lists are for; those of other measures are not read.
        allow_commands: Admit recordings that are another command's output.

    Raises:
        ListError: Nothing is there, or a list is unreadable, empty or contradictory.
    """
    if path.is_dir():
        if (path / _RECORDINGS).is_file():
            found = read_directory_utterances(path, allow_commands=allow_commands)
        else:
            found = read_folder(path)
    elif path.exists():
        found = read_audio_list(path, allow_commands=allow_commands)
    else:
        raise ListError(f"{printable(str(path), 300)}: no such data directory, folder or list")

    def list_of(measure: str, named: Path | None, name: str) -> Path | None:
        beside = _folder_of(path) / name
        if measure not in measures:
            return None
        return named or (beside if beside.is_file() else None)

    speakers, transcripts = list_of(PRIVACY, utt2spk, _SPEAKERS), list_of(INTELLIGIBILITY, text, _TEXT)
    enrolling = list_of(PRIVACY, enrolls, _ENROLLS)
    return Speech(
        path,
        {utterance.id: utterance for utterance in found},
        read_utt2spk(speakers) if speakers else {},
        read_text(transcripts) if transcripts else {},
        read_enrolls(enrolling) if enrolling else None,
        list_of(PRIVACY, trials, _TRIALS),
    )


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def unread_lists(path: Path, name: str) -> list[str]:
    """Files beside recordings whose names begin with that of a list, such as ``trials_f``: they are not read.

    Args:
        path: The data directory, folder or list of recordings.
        name: Of the list.
    """
    return sorted(
        each.name
        for each in _folder_of(path).glob(f"{name}*")
        if _OTHER_LIST.fullmatch(each.name.removeprefix(name)) and each.is_file()
    )


def read_text(path: Path) -> dict[str, str]:
    """The transcript of each utterance of a list of ``utt-id words`` a line; an utterance without words is silent.

    Raises:
        ListError: The list is unreadable or empty, has an utterance twice, or a transcript of more than 4 MB.
    """
    transcripts: dict[str, str] = {}
    try:
        check_regular(path)
        with path.open("rb") as file:
            for number, raw in numbered_lines(file, str(path), _MOST_TEXT_BYTES, "too long for a transcript"):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \t\r\n")
                name, *words = _BLANKS.split(line, 1)
                if not name or name[0] == "#":
                    continue
                if name in transcripts:
                    raise ListError(f"{path}, line {number}: the utterance '{printable(name)}' is there twice")
                transcripts[name] = "".join(words)
    except OSError as error:
        raise ListError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ListError(f"{path}: not a text file in UTF-8") from None
    if not transcripts:
        raise ListError(f"{path}: the list is empty")
    return transcripts


def read_enrolls(path: Path) -> frozenset[str]:
    """The utterances of a list whose lines begin with an utterance id.

    Raises:
        ListError: The list is unreadable or empty.
    """
    found = frozenset(line.partition(" ")[0] for _, line in read_lines(path, standard_input=False))
    if not found:
        raise ListError(f"{path}: the list is empty")
    return found


def read_trials(path: Path) -> list[tuple[str, str, bool]]:
    """Who is compared with which utterance, and whether they are one speaker.

    A line is ``speaker utt-id target`` or ``speaker utt-id nontarget``, as the VoicePrivacy toolkits have it. In place
    of a speaker there may be an utterance, which then is the whole enrolment.

    Raises:
        ListError: The list is unreadable or empty, or a line has another form.
    """
    trials = []
    for number, line in read_lines(path, standard_input=False):
        fields = line.split()
        if len(fields) != 3 or fields[2] not in _LABELS:
            raise ListError(
                f"{path}, line {number}: expected 'speaker utt-id target' or '… nontarget', found '{printable(line)}'"
            )
        trials.append((fields[0], fields[1], _LABELS[fields[2]]))
    if not trials:
        raise ListError(f"{path}: the list is empty")
    return trials
