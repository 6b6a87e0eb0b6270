"""What a run takes in and gives back: utterances, where their outputs go, and how the output folder is completed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Utterance:
    """A recording, or a part of one, to anonymize.

    A corpus has a million of these, so that the path is kept as text: a ``Path`` is several times as large.

    Attributes:
        id: Names its output and, with a seed, decides its draws if there is no ``draw_id``.
        file: The file, as text; a ``Path`` may be given.
        begin_s: Where the part begins, in seconds.
        end_s: Where it ends; None is the recording's end.
        command: A shell command whose output is the recording, instead of a file; ``path`` then only shows it.
        draw_id: Decides its draws in place of ``id``: utterances that share it share their draws.
    """

    id: str
    file: str | Path
    begin_s: float = 0.0
    end_s: float | None = None
    command: str | None = None
    draw_id: str | None = None

    def __post_init__(self) -> None:
        if type(self.file) is not str:
            object.__setattr__(self, "file", str(self.file))

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file)


class Dataset(Protocol):
    """A form of input and output of a run: a list of recordings, a Kaldi data directory, or another.

    Attributes:
        utterances: To anonymize, each with an id of its own that can name a file.
        out: The output folder.
        audio_dir: Where the anonymized recordings go: ``out`` or a folder inside it.
        record_dir: Where the manifest of the run is kept.
        described: Whether a file beside the manifest says what made the outputs.
    """

    @property
    def utterances(self) -> Sequence[Utterance]: ...

    @property
    def out(self) -> Path: ...

    @property
    def audio_dir(self) -> Path: ...

    @property
    def record_dir(self) -> Path: ...

    @property
    def described(self) -> bool: ...

    def finish(self, outputs: Mapping[str, Path]) -> None:
        """Complete the output folder, after a run that has written the output of every utterance.

        Args:
            outputs: Where the output of each utterance is, by utterance id.

        Raises:
            OutputError: A file cannot be written.
        """
        ...

    def unfinish(self) -> None:
        """Mark the output folder as incomplete again, if it has a mark.

        Raises:
            OutputError: It cannot be removed.
        """
        ...
