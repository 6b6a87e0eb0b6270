"""Which recordings a training takes, and who speaks in each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from mkc_fast.engine.datasets.kaldi import read_data_directory
from mkc_fast.engine.datasets.path_lists import read_audio_list
from mkc_fast.engine.datasets.speakers import read_utt2spk
from mkc_fast.errors import ArgumentError, ListError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from mkc_fast.engine.datasets.dataset import Utterance

# Whether the speakers must be known, are read where a list of them is there, or are of no use.
NEEDED: Final = "needed"
IF_THERE: Final = "if there"
UNUSED: Final = "unused"


def read_speech(
    audio_list: str | PathLike[str] | None,
    data_dirs: Sequence[str | PathLike[str]],
    utt2spk: str | PathLike[str] | None,
    *,
    speakers: str = NEEDED,
    allow_commands: bool = False,
    otherwise: str = "",
) -> tuple[list[Utterance], dict[str, str]]:
    """The utterances of a list or of data directories, and the speaker of each, by utterance id.

    Args:
        audio_list: List of ``path`` or ``utt-id path`` a line.
        data_dirs: Kaldi data directories, instead of it; each has its own ``utt2spk``.
        utt2spk: List of ``utt-id speaker`` a line, for ``audio_list``. Default: the file ``utt2spk`` beside it.
        speakers: ``NEEDED``, ``IF_THERE`` or ``UNUSED``; a list that is given is read in the first two cases.
        allow_commands: Run the commands (lines that end in ``|``) of a list.
        otherwise: When speakers are not needed, for the error's end.

    Raises:
        ArgumentError: Not exactly one form of input is given, or ``utt2spk`` with data directories.
        ListError: A list is missing, unreadable or contradictory.
    """
    if (audio_list is None) == (not data_dirs):
        raise ArgumentError("give audio_list, or data_dirs")
    if audio_list is not None:
        path = Path(audio_list)
        utterances = read_audio_list(path, allow_commands=allow_commands)
        if utt2spk is None:
            return utterances, _speakers(path.parent / "utt2spk", speakers, otherwise)
        return utterances, _speakers(Path(utt2spk), UNUSED if speakers == UNUSED else NEEDED, otherwise)
    if utt2spk is not None:
        raise ArgumentError("utt2spk is for audio_list; data directories have their own")
    utterances, known, by_id = [], set(), {}
    for each in data_dirs:
        directory = read_data_directory(Path(each), ".training", allow_commands=allow_commands)
        for utterance in directory.utterances:
            if utterance.id in known:
                raise ListError(f"{each}: the utterance '{printable(utterance.id)}' is in another directory, too")
            known.add(utterance.id)
        utterances += directory.utterances
        by_id.update(_speakers(Path(each) / "utt2spk", speakers, otherwise))
    return utterances, by_id


def _speakers(path: Path, wanted: str, otherwise: str) -> dict[str, str]:
    if wanted == UNUSED or (wanted == IF_THERE and not path.is_file()):
        return {}
    if not path.is_file():
        raise ListError(f"{path}: not there; it must say who speaks{otherwise}")
    return read_utt2spk(path)
