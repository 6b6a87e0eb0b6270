"""What datasets have in common whose files hold many recordings: the outputs of a file become a file again."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from mkc_fast.engine.datasets.lines import OWN_FOLDER
from mkc_fast.names import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from typing_extensions import Self

    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.engine.datasets.shards import Shard
    from mkc_fast.engine.storage.addresses import Place


@dataclass(frozen=True)
class SourceFile:
    """A file that was read, with its recordings.

    Attributes:
        path: The file, or the address of an object.
        name: Of its output, below the output folder.
        begin: Position of its first utterance.
        end: Position after its last.
    """

    path: Place
    name: str
    begin: int
    end: int


_Source = TypeVar("_Source", bound=SourceFile)


@dataclass(frozen=True)
class GroupedDataset(Generic[_Source]):
    """A ``Dataset`` whose files are the ``Groups`` of its outputs; forms add ``complete``.

    Attributes:
        utterances: The recordings of all files, file after file.
        out: The output folder.
        sources: The files.
    """

    utterances: list[Utterance]
    out: Path
    sources: list[_Source]

    @property
    def record_dir(self) -> Path:
        """A hidden folder in ``out``."""
        return self.out / OWN_FOLDER

    @property
    def audio_dir(self) -> Path:
        """Where outputs wait for the others of their file."""
        return self.record_dir / "waiting"

    @property
    def described(self) -> bool:
        """Yes."""
        return True

    @property
    def groups(self) -> Self:
        """The files."""
        return self

    def part(self, shard: Shard) -> Self:
        """Some of the files, each whole, with an output folder of their own."""
        utterances: list[Utterance] = []
        sources = []
        for group, source in enumerate(self.sources):
            if shard.holds_group(group):
                begin = len(utterances)
                utterances += self.of_group(group)
                sources.append(replace(source, begin=begin, end=len(utterances)))
        return replace(self, utterances=utterances, out=shard.folder(self.out), sources=sources)

    def finish(self, outputs: Mapping[str, Path]) -> None:
        """Do nothing: the files are complete."""

    def unfinish(self) -> None:
        """Do nothing: each file that is there is complete."""

    def __len__(self) -> int:
        return len(self.sources)

    def of(self, position: int) -> int:
        """The file of an utterance."""
        return bisect_right(self.sources, position, key=lambda source: source.begin) - 1

    def of_group(self, group: int) -> list[Utterance]:
        """The utterances of a file."""
        source = self.sources[group]
        return self.utterances[source.begin : source.end]

    def clean(self, group: int) -> None:
        """Remove the outputs that are in their file now."""
        for utterance in self.of_group(group):
            for suffix in FORMATS:
                (self.audio_dir / f"{utterance.id}.{suffix}").unlink(missing_ok=True)
