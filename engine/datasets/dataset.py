"""What a run takes in and gives back: utterances, where their outputs go, and how the output folder is completed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mkc_fast.engine.datasets.shards import Shard


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
        span: Offset and size, in bytes, of the recording in ``file``, which is an archive; None is the whole file.
        channel: Of the file's channels this one, counted from 0; None is the mean of all.
        row: Of a Parquet file, the row group, the row in it, and the column (``audio.bytes``) that has the recording.
    """

    id: str
    file: str | Path
    begin_s: float = 0.0
    end_s: float | None = None
    command: str | None = None
    draw_id: str | None = None
    span: tuple[int, int] | None = None
    channel: int | None = None
    row: tuple[int, int, str] | None = None

    def __post_init__(self) -> None:
        if type(self.file) is not str:
            object.__setattr__(self, "file", str(self.file))

    def __reduce__(self) -> tuple[type[Utterance], tuple[object, ...]]:
        """Pickled as its values, which takes a fifth of the time that a frozen class with slots takes by itself."""
        part = (self.begin_s, self.end_s, self.command, self.draw_id, self.span, self.channel, self.row)
        return Utterance, (self.id, self.file, *part)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file)

    @property
    def shown(self) -> str:
        """What messages call it: its file, and of an archive or a table its id, too."""
        return str(self.file) if self.span is None and self.row is None else f"{self.file}: {self.id}"


class Groups(Protocol):
    """Outputs that become files together, such as the members of a tar archive; the groups follow one another.

    A group is completed during the run, as soon as it has all its outputs. Then these may be removed.
    """

    def __len__(self) -> int:
        """How many groups there are."""
        ...

    def of(self, position: int) -> int:
        """The group of the utterance at a position of ``Dataset.utterances``; it grows with the position."""
        ...

    def name(self, group: int) -> str:
        """The name that records have for a group: another for each, the same in every run."""
        ...

    def files(self, group: int) -> Sequence[Path]:
        """The files that a complete group has; a run that starts over replaces them."""
        ...

    def complete(self, group: int, outputs: Mapping[str, Path]) -> None:
        """Write the files of a group, each atomically, and last the one that says that the group is there.

        It is called in a thread of its own while other groups are computed, and again if the process was killed in it.

        Args:
            group: Its number.
            outputs: Where the output of each utterance is, by utterance id; those of the group are there.

        Raises:
            OutputError: A file cannot be read or written.
        """
        ...

    def clean(self, group: int) -> None:
        """Remove the outputs of a complete group, which are in its files now; nothing is done if they are gone."""
        ...


def files_of(groups: Groups | None) -> Iterator[Path]:
    """The files that groups of outputs become."""
    if groups is not None:
        for group in range(len(groups)):
            yield from groups.files(group)


class Dataset(Protocol):
    """A form of input and output of a run: a list of recordings, a Kaldi data directory, or another.

    Attributes:
        utterances: To anonymize, each with an id of its own that can name a file. An id may hold folders (``spk/utt``).
        out: The output folder.
        audio_dir: Where the anonymized recordings go: ``out`` or a folder inside it.
        record_dir: Where the manifest of the run is kept.
        described: Whether a file beside the manifest says what made the outputs.
        groups: Which outputs become files together; None: each stays a file of its own.
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

    @property
    def groups(self) -> Groups | None: ...

    def part(self, shard: Shard) -> Dataset:
        """The utterances of one part of the corpus, with an output folder of its own; groups stay together."""
        ...

    def finish(self, outputs: Mapping[str, Path]) -> None:
        """Complete the output folder, after a run that has written the output of every utterance, and every group.

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
