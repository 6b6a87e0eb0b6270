"""Lhotse Shar: cuts and the recordings of each shard in a tar archive, in and out, shard by shard."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.datasets.cuts import anonymized_cut, channel_of, read_cuts, utterance_of, write_lines
from mkc_fast.engine.datasets.grouped import GroupedDataset, SourceFile
from mkc_fast.engine.datasets.kaldi import record_dir_of
from mkc_fast.errors import ListError, OutputError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mkc_fast.engine.datasets.dataset import Utterance
    from mkc_fast.engine.datasets.shards import Shard

_CUTS = re.compile(r"cuts(\.[0-9]+)?\.jsonl(\.gz)?")
_NO_DATA = ".nodata"
_MAX_JSON = 1 << 20
_PLACEHOLDER = {"type": "shar", "source": ""}


@dataclass(frozen=True)
class SharShard(SourceFile):
    """One shard of Shar, whose file is the manifest of its cuts.

    Attributes:
        recordings: Its archive.
    """

    recordings: Path


@dataclass(frozen=True)
class Shar(GroupedDataset[SharShard]):
    """A directory in the Shar format to anonymize; the output directory gets shards of the same names.

    Attributes:
        is_part: Whether it is a shard of the corpus.
    """

    is_part: bool = False

    @property
    def record_dir(self) -> Path:
        """Beside ``out``: Lhotse takes every file in it for data. The shards of a corpus are only joined."""
        return super().record_dir if self.is_part else record_dir_of(self.out)

    def part(self, shard: Shard) -> Shar:
        """Some of the shards, with an output directory of their own."""
        return replace(super().part(shard), is_part=True)

    def name(self, group: int) -> str:
        """The name of its manifest."""
        return self.sources[group].path.name

    def files(self, group: int) -> Sequence[Path]:
        """Its archive and its manifest."""
        shard = self.sources[group]
        return [self.out / shard.recordings.name, self.out / shard.name]

    def complete(self, group: int, outputs: Mapping[str, Path]) -> None:
        """Write the archive of a shard, and then its manifest."""
        shard = self.sources[group]
        assert isinstance(shard.path, Path)
        archive, manifest = self.files(group)
        cuts: list[dict[str, Any]] = []
        target = archive
        try:
            with atomic_file(archive) as temporary, tarfile.open(temporary, "w") as tar:
                for utterance, (_, cut) in zip(self.of_group(group), read_cuts(shard.path), strict=True):
                    if cut.get("id") != utterance.id:
                        raise ValueError
                    cuts.append(_add(tar, cut, outputs[utterance.id]))
            target = manifest
            with atomic_file(manifest) as temporary, temporary.open("wb") as file:
                write_lines(file, iter(cuts))
        except OSError as error:
            raise OutputError(f"{error.filename or target}: cannot be read or written ({error.strerror})") from None
        except soundfile.SoundFileError:
            raise OutputError(f"{archive}: an output of this shard was written and cannot be read") from None
        except (ValueError, ListError):
            raise OutputError(f"{shard.path}: changed during the run; run the same command again") from None


def is_shar(text: str) -> bool:
    """Whether an input is a directory in the Shar format."""
    try:
        return any(_CUTS.fullmatch(name) for name in os.listdir(text))  # noqa: PTH208
    except OSError:
        return False


def read_shar(path: Path, out: Path, *, by_speaker: bool = False) -> Shar:
    """Read a directory in the Shar format: ``cuts.*.jsonl.gz`` and ``recording.*.tar``.

    The archives are not unpacked. Other fields (features, arrays, other recordings) are data of the original speech;
    they are left out. Nothing is written.

    Args:
        path: The directory.
        out: The output directory.
        by_speaker: The cuts of a speaker share their draws; each cut has one in its supervisions.

    Raises:
        ListError: There are no shards, a file is unreadable, cuts and recordings do not fit, a cut is of another kind,
            or an id is there twice or cannot name a file.
    """
    try:
        found = sorted(each for each in path.iterdir() if _CUTS.fullmatch(each.name))
    except OSError as error:
        raise ListError(f"{path}: cannot be read ({error.strerror})") from None
    if not found:
        raise ListError(f"{path}: holds no cuts.000000.jsonl.gz, as Lhotse Shar has them")
    utterances: list[Utterance] = []
    ids: set[str] = set()
    shards = []
    for cuts in found:
        recordings = path / f"recording{(_CUTS.fullmatch(cuts.name) or ('', ''))[1] or ''}.tar"
        begin = len(utterances)
        members = _members(recordings)
        for number, cut in read_cuts(cuts):
            where = f"{cuts}, line {number}"
            utterance = utterance_of(cut, where, by_speaker=by_speaker)
            member = next(members, None)
            if member is None or member.name != utterance.id:
                found_id = "nothing" if member is None else f"'{printable(member.name)}'"
                raise ListError(f"{where}: is '{printable(utterance.id)}', and {recordings} has {found_id} there")
            channel = channel_of(cut, member.channels, where)
            end_s = utterance.end_s
            if not utterance.begin_s and end_s is not None and member.duration_s < end_s + 1e-3:
                end_s = None
            utterance = replace(utterance, file=str(recordings), span=member.span, channel=channel, end_s=end_s)
            if utterance.id in ids:
                raise ListError(f"{where}: the id '{printable(utterance.id)}' is there twice")
            ids.add(utterance.id)
            utterances.append(utterance)
        if (more := next(members, None)) is not None:
            raise ListError(f"{recordings}: has '{printable(more.name)}', which {cuts} has not")
        # The manifest is compressed, whatever it was.
        name = cuts.name if cuts.name.endswith(".gz") else cuts.name + ".gz"
        shards.append(SharShard(cuts, name, begin, len(utterances), recordings))
    if not utterances:
        raise ListError(f"{path}: its shards are empty")
    return Shar(utterances, out, shards)


@dataclass(frozen=True)
class _Member:
    name: str
    span: tuple[int, int]
    channels: list[int]
    duration_s: float


def _members(archive: Path) -> Iterator[_Member]:
    """The recordings of an archive: each has its data, followed by what Lhotse says of it in JSON."""
    try:
        whole = archive.stat().st_size
        with tarfile.open(archive, "r:") as tar:
            data: tarfile.TarInfo | None = None
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
                if not info.isreg() or info.issparse():
                    raise ListError(f"{archive}: '{printable(info.name)}' is not a plain file")
                if info.offset_data + info.size > whole:
                    raise ListError(f"{archive}: truncated in '{printable(info.name)}'")
                if data is None:
                    data = info
                    continue
                name = data.name.rpartition(".")[0]
                if data.name.endswith(_NO_DATA):
                    raise ListError(f"{archive}: '{printable(name)}' has no recording")
                if info.name != f"{name}.json" or info.size > _MAX_JSON:
                    raise ListError(f"{archive}: '{printable(data.name)}' is not followed by its manifest")
                content = tar.extractfile(info)
                said = json.loads(content.read()) if content is not None else {}
                channels = said.get("channel_ids")
                if channels is None:
                    channels = said["sources"][0].get("channels")
                if not isinstance(channels, list):
                    raise ListError(f"{archive}: '{printable(info.name)}' is no recording of Lhotse")
                yield _Member(name, (data.offset_data, data.size), channels, float(said.get("duration", 0.0)))
                data = None
    except OSError as error:
        raise ListError(f"{archive}: cannot be read ({error.strerror})") from None
    except (tarfile.TarError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        if isinstance(error, ListError):
            raise
        raise ListError(f"{archive}: not an archive of Lhotse Shar ({printable(str(error), 120)})") from None


def _add(tar: tarfile.TarFile, cut: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Add an output and its manifest to an archive; its cut is returned."""
    name = str(cut["id"])
    facts = soundfile.info(output)
    made = anonymized_cut(cut, _PLACEHOLDER, facts.frames, facts.samplerate)
    member = tarfile.TarInfo(name + output.suffix)
    member.size = output.stat().st_size
    with output.open("rb") as file:
        tar.addfile(member, file)
    content = json.dumps(made["recording"], ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    member = tarfile.TarInfo(f"{name}.json")
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    return made
