"""Divides a corpus into shards that machines run on their own: by a hash of the utterance id, without coordination."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.errors import ArgumentError
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

_FORM = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
_FOLDER = re.compile(r"(.+)\.shard-([0-9]{1,6})-of-([0-9]{1,6})", re.DOTALL)


@dataclass(frozen=True)
class Shard:
    """One of the parts of a corpus.

    Attributes:
        number: From 1 up.
        count: How many parts there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard as ``2/4``.

        Raises:
            ArgumentError: It has another form, or its number is not in 1 to the count.
        """
        match = _FORM.fullmatch(text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ArgumentError(f"shard is {printable(text)!r}; expected NUMBER/COUNT, such as 1/4 to 4/4")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of(cls, utterance_id: str, count: int) -> Shard:
        """The one of so many shards that an utterance is in: its id alone decides, the same on every machine."""
        digest = hashlib.sha256(utterance_id.encode("utf-8", "surrogatepass")).digest()
        return cls(int.from_bytes(digest[:8], "big") % count + 1, count)

    @classmethod
    def of_group(cls, group: int, count: int) -> Shard:
        """The one of so many shards that a group of outputs is in: by its number, so that few are divided evenly."""
        return cls(group % count + 1, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, utterance_id: str) -> bool:
        """Whether an utterance is in this shard."""
        return Shard.of(utterance_id, self.count) == self

    def holds_group(self, group: int) -> bool:
        """Whether a group of outputs is in this shard."""
        return Shard.of_group(group, self.count) == self

    def folder(self, out: Path) -> Path:
        """Where this shard's outputs go, beside the folder for all."""
        named = _named(out)
        return named.with_name(f"{named.name}.shard-{self.number}-of-{self.count}")


def _named(out: Path) -> Path:
    """A folder by a path that ends in its name: "." and ".." are no names."""
    return out if out.name not in {"", ".."} else Path(os.path.realpath(out))


def parsed_folder(name: str) -> tuple[str, Shard] | None:
    """The name of the folder for all, and the shard, by the name of a shard's folder; None for another name."""
    match = _FOLDER.fullmatch(name)
    return None if match is None else (match[1], Shard(int(match[2]), int(match[3])))


def find_shards(out: Path) -> dict[Shard, Path]:
    """The folders of shards beside the folder for all.

    Raises:
        OSError: The folder above cannot be read.
    """
    named, found = _named(out), {}
    for path in sorted(named.parent.iterdir()) if named.parent.is_dir() else []:
        parsed = parsed_folder(path.name)
        if parsed is not None and parsed[0] == named.name and path.is_dir():
            found[parsed[1]] = path
    return found


def shared_salt(shard: Shard, utterance_ids: Iterable[str]) -> str:
    """A salt for the digests in the manifests of all shards of one corpus: 32 hexadecimal digits.

    With one salt the manifests can be compared and joined. A salt is no secret; it only has to differ from corpus to
    corpus.
    """
    digest = hashlib.sha256(f"mkc-fast shards 1\0{shard.count}".encode())
    for utterance_id in utterance_ids:
        digest.update(b"\0" + utterance_id.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]
