"""WebDataset shards: tar archives whose recordings are anonymized, and whose other members are copied.

Python's ``tarfile`` does all that is needed: recordings are read in their place, from an offset of the archive, and an
output archive is the input with other bytes for some members. The package ``webdataset`` would unpack and pack samples,
and would lose the order of members, names and times on the way.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mkc_fast.engine.atomic_files import atomic_file
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.grouped import GroupedDataset, SourceFile
from mkc_fast.engine.datasets.kinds import (
    HEAD_BYTES,
    begins_like_sound,
    decodable,
    ending_of,
    how_to_decode,
    sound,
)
from mkc_fast.engine.datasets.lines import check_id
from mkc_fast.engine.storage.addresses import is_address, place_of
from mkc_fast.engine.storage.listing import matching_objects
from mkc_fast.engine.storage.reading import opened_place, place_size
from mkc_fast.errors import ListError, OutputError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from mkc_fast.engine.storage.addresses import Address, Place

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LIST = re.compile(r"\{([^{},]*(?:,[^{},]*)+)\}")
_MOST_SHARDS = 1_000_000
# Headers that describe a member (long names, extended headers) are read into memory. A recording is never read at once.
_MOST_READ_BYTES = 1 << 20
# Members of these kinds are no recordings, so their beginnings need not be looked at.
_NO_SOUND = frozenset({"json", "txt", "cls", "lang", "id", "spk", "npy", "npz", "pt", "pth", "jpg", "png", "text"})


@dataclass(frozen=True)
class TarShards(GroupedDataset[SourceFile]):
    """WebDataset shards, whose outputs become shards again; an id is the shard's name and the member's."""

    @property
    def audio_dir(self) -> Path:
        """A hidden folder in ``out``, where outputs are until their shard is written."""
        return self.record_dir / "members"

    def name(self, group: int) -> str:
        return self._stem(group)

    def files(self, group: int) -> Sequence[Path]:
        return [self.out / self.sources[group].name]

    def complete(self, group: int, outputs: Mapping[str, Path]) -> None:
        """Write a shard: the members of the source in their order, the recordings by their outputs."""
        shard, (target,) = self.sources[group], self.files(group)
        made = {
            utterance.span: outputs[utterance.id] for utterance in self.of_group(group) if utterance.span is not None
        }
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as temporary, _opened(shard.path) as source:
                with tarfile.TarFile(temporary, "w", format=tarfile.PAX_FORMAT, copybufsize=_MOST_READ_BYTES) as tar:
                    for member in _members(source, shard.path):
                        output = made.pop((member.offset_data, member.size), None) if member.isreg() else None
                        _copy(source, member, tar, output)
                if made:
                    raise OutputError(f"{shard.path}: was changed during the run; run the same command again")
        except ListError as error:
            raise OutputError(str(error)) from None
        except (OSError, tarfile.TarError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"{target}: cannot be written ({reason})") from None

    def clean(self, group: int) -> None:
        """Remove the outputs of a shard that is written."""
        shutil.rmtree(self.audio_dir / self._stem(group), ignore_errors=True)

    def finish(self, outputs: Mapping[str, Path]) -> None:  # noqa: ARG002
        """Remove the folder of outputs, which is empty."""
        shutil.rmtree(self.audio_dir, ignore_errors=True)

    def _stem(self, group: int) -> str:
        """What the ids of a shard's utterances begin with."""
        return self.sources[group].name.removesuffix(".tar")


def read_tar_shards(inputs: Sequence[str], out: Path, remote: Address | None = None) -> TarShards:
    """Find the recordings of shards, without unpacking them.

    Args:
        inputs: Archives (files, or addresses of objects), patterns of them (``shards-{000..010}.tar``,
            ``shards-*.tar``), and folders of them.
        out: The output folder; a shard keeps its name there.
        remote: Its address, if it is at one.

    Raises:
        ListError: An archive is missing, compressed, cut off or damaged, holds links, devices or members that lead out
            of a folder, or has no recording; two have one name.
        OutputError: A shard would be replaced.
    """
    utterances: list[Utterance] = []
    shards: list[SourceFile] = []
    named: dict[str, Place] = {}
    for path, name in _shards_of(inputs):
        earlier = named.setdefault(name, path)
        if earlier is not path:
            raise ListError(f"{path} and {earlier}: would have one name in the output folder")
        check_id(name, str(path))
        begin = len(utterances)
        utterances += _utterances_of(path, name)
        target = out / name
        if path == (remote and remote / name):
            raise OutputError(f"{path}: is in the output folder, and would be replaced; choose another")
        if isinstance(path, Path) and target.exists() and target.samefile(path):
            raise OutputError(f"{path}: is in the output folder, and would be replaced; choose another")
        shards.append(SourceFile(path, name, begin, len(utterances)))
    return TarShards(utterances, out, shards)


def expanded(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for: ``{000..010}`` counts, ``{a,b}`` lists.

    Raises:
        ListError: It stands for more than a million.
    """
    counted, listed = _RANGE.search(pattern), _LIST.search(pattern)
    match = min((each for each in (counted, listed) if each is not None), key=lambda each: each.start(), default=None)
    if match is None:
        return [pattern]
    if match is counted:
        first, last = int(match[1]), int(match[2])
        if abs(last - first) >= _MOST_SHARDS:
            raise ListError(f"{printable(pattern, 200)}: stands for more than {_MOST_SHARDS:,} names")
        width = max(map(len, match.groups())) if any(text.startswith("0") for text in match.groups()) else 0
        step = 1 if first <= last else -1
        choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    else:
        choices = match[1].split(",")
    head, tail = pattern[: match.start()], expanded(pattern[match.end() :])
    if len(choices) * len(tail) > _MOST_SHARDS:
        raise ListError(f"{printable(pattern, 200)}: stands for more than {_MOST_SHARDS:,} names")
    return [head + choice + rest for choice in choices for rest in tail]


def is_pattern(text: str) -> bool:
    """Whether a text has braces, or signs of a pattern as shells have them, and is no file itself."""
    return bool(_RANGE.search(text) or _LIST.search(text) or glob.has_magic(text)) and not os.path.lexists(text)


def _shards_of(inputs: Sequence[str]) -> Iterator[tuple[Place, str]]:
    """Each archive, and its name below the output folder."""
    for text in inputs:
        for name in expanded(text) if is_pattern(text) else [text]:
            if is_address(name):
                yield from _shards_at(name)
            elif is_pattern(name):
                found = sorted(glob.glob(name))  # noqa: PTH207 - as text
                if not found:
                    raise ListError(f"{printable(name, 300)}: no such file")
                yield from ((Path(path), os.path.basename(path)) for path in found)  # noqa: PTH119
            elif os.path.isdir(name):  # noqa: PTH112
                tars = [path for path in sorted(Path(name).iterdir()) if path.suffix == ".tar" and path.is_file()]
                if not tars:
                    raise ListError(f"{printable(name, 300)}: no .tar files")
                yield from ((path, path.name) for path in tars)
            else:
                yield Path(name), os.path.basename(name)  # noqa: PTH119


def _shards_at(url: str) -> Iterator[tuple[Place, str]]:
    """The archives at an address, or at those that match its pattern; and their names below the output folder."""
    found = [url]
    if glob.has_magic(url):
        found = matching_objects(url, ListError)
        if not found:
            raise ListError(f"{printable(url, 300)}: no such object")
    for each in found:
        place = place_of(each)
        yield place, place.name


class _Limited:
    """An archive from which only little is read at once, so that no header makes ``tarfile`` fill the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1, /) -> bytes:
        """Read so many bytes, if they are few."""
        if not 0 <= size <= _MOST_READ_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


class _opened:  # noqa: N801 - used as a function
    """Open an archive to go through its members, once, from the first to the last."""

    def __init__(self, path: Place) -> None:
        self.path = path

    def __enter__(self) -> tarfile.TarFile:
        try:
            if isinstance(self.path, Path) and not stat.S_ISREG(self.path.stat().st_mode):
                raise ListError(f"{self.path}: not a regular file")
            self.file = opened_place(self.path, ListError)
            head = self.file.read(6)
            self.file.seek(0)
            for magic, kind in ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"(\xb5/\xfd", "zstd")):
                if head.startswith(magic):
                    self.file.close()
                    raise ListError(f"{self.path}: compressed with {kind}; unpack it first: members are read in place")
            self.tar = tarfile.TarFile(fileobj=_Limited(self.file), mode="r", errorlevel=2)  # type: ignore[arg-type]
        except OSError as error:
            raise ListError(f"{self.path}: cannot be read ({error.strerror})") from None
        except (tarfile.TarError, ValueError) as error:
            self.file.close()
            raise ListError(f"{self.path}: not a tar archive ({error})") from None
        return self.tar

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


def _members(tar: tarfile.TarFile, path: Place) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, each checked.

    Raises:
        ListError: The archive is cut off or damaged, or a member is a link, a device, or not a plain file below a
            folder.
    """
    size, before = place_size(path, ListError), -1
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
            raise ListError(f"{path}: damaged or cut off ({printable(str(error), 100)})") from None
        if member is None:
            break
        _forget(tar)
        name = printable(member.name, 100)
        if member.offset <= before or member.size < 0:
            raise ListError(f"{path}: damaged at the member {name}")
        before = member.offset
        if not (member.isreg() or member.isdir()) or member.issparse():
            kind = "a link" if member.issym() or member.islnk() else "a sparse file or a device"
            raise ListError(f"{path}: the member {name} is {kind}; expected plain files")
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise ListError(f"{path}: the member {name} leads out of the folder that it would be unpacked in")
        if member.isreg() and member.offset_data + member.size > size:
            raise ListError(f"{path}: cut off: the member {name} ends behind the end of the archive")
        yield member
    # Where a header is damaged, tarfile takes it for the end, unless it is the first.
    end, file = tar.offset, tar.fileobj
    assert file is not None
    file.seek(min(end, size))
    rest = file.read(min(_MOST_READ_BYTES, max(0, size - end)))
    if len(rest) < tarfile.BLOCKSIZE or rest[: tarfile.BLOCKSIZE].strip(b"\0"):
        raise ListError(f"{path}: damaged or cut off: no end mark after {end:,} of {size:,} bytes")
    if rest.strip(b"\0"):
        raise ListError(f"{path}: more follows its end mark at {end:,} bytes, which readers of archives would not see")


def _utterances_of(path: Place, name: str) -> list[Utterance]:
    """The recordings of an archive."""
    stem, found = name.removesuffix(".tar"), []
    members: dict[str, str] = {}
    with _opened(path) as tar, opened_place(path, ListError) as file:
        for member in _members(tar, path):
            if not member.isreg() or not _is_recording(member, path, file):
                continue
            key = "/".join(part for part in member.name.split("/") if part not in {"", "."}).rpartition(".")[0]
            utterance_id = f"{stem}/{key}"
            check_id(utterance_id, str(path))
            earlier = members.setdefault(utterance_id, member.name)
            if earlier is not member.name:
                pair = f"{printable(member.name, 100)} and {printable(earlier, 100)}"
                raise ListError(f"{path}: the members {pair} would have one output")
            found.append(Utterance(utterance_id, str(path), span=(member.offset_data, member.size)))
    if not found:
        raise ListError(f"{path}: no recordings in this shard")
    return found


def _is_recording(member: tarfile.TarInfo, path: Place, file: BinaryIO) -> bool:
    """Whether a member is a recording; one that cannot be decoded is an error, since it would be copied as it is."""
    ending = ending_of(member.name)
    if ending in decodable():
        return True
    name = printable(member.name, 100)
    if ending in sound():
        raise ListError(f"{path}: the member {name} cannot be decoded here; {how_to_decode()}")
    if ending not in _NO_SOUND:
        file.seek(member.offset_data)
        if begins_like_sound(file.read(min(HEAD_BYTES, member.size))):
            raise ListError(f"{path}: the member {name} is a recording by its content, and not by its name's ending")
    return False


def _copy(source: tarfile.TarFile, member: tarfile.TarInfo, tar: tarfile.TarFile, output: Path | None) -> None:
    """Add a member to another archive: the bytes of its output, or its own."""
    member.pax_headers = {key: value for key, value in member.pax_headers.items() if key not in {"size", "path"}}
    if not member.isreg():
        tar.addfile(member)
    elif output is None:
        file = source.fileobj
        assert file is not None
        file.seek(member.offset_data)
        tar.addfile(member, file)  # type: ignore[arg-type]
    else:
        with output.open("rb") as made:
            member.name = f"{member.name.rpartition('.')[0]}{output.suffix}"
            member.size = os.fstat(made.fileno()).st_size
            tar.addfile(member, made)
    _forget(tar)


def _forget(tar: tarfile.TarFile) -> None:
    """Free the members that ``tarfile`` keeps."""
    tar.members = []  # type: ignore[attr-defined]
