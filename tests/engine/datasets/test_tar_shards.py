"""Shards are read in their place; hostile, damaged and compressed archives are refused in one line."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mkc_fast import ListError, OutputError
from mkc_fast.engine.datasets.tar_shards import expanded, read_tar_shards

FLAC = b"fLaC" + bytes(60)


def shard(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def ids(path: Path) -> list[str]:
    return [each.id for each in read_tar_shards([str(path)], Path("elsewhere")).utterances]


def refused(path: Path, words: str) -> None:
    with pytest.raises(ListError, match=words) as error:
        ids(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def other(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_recording_of_a_shard_is_an_utterance(form: int, tmp_path: Path) -> None:
    long = "/".join(["folder" * 8] * 3) + "/" + "n" * 90 + ".flac"
    sound = [("a.flac", FLAC), ("./x/b.0.wav", b"RIFF"), ("x/b.1.WAV", b"RIFF"), (long, FLAC + b"!")]
    members = [("a.json", b"{}"), *sound, ("b.cls", b"1"), other("dir", tarfile.DIRTYPE)]
    path = shard(tmp_path / "s-0.tar", *members, form=form)
    dataset = read_tar_shards([str(path)], tmp_path / "out")
    assert [each.id for each in dataset.utterances] == ["s-0/a", "s-0/x/b.0", "s-0/x/b.1", f"s-0/{long[:-5]}"]
    content = path.read_bytes()
    spans = [each.span for each in dataset.utterances if each.span is not None]
    assert [content[offset : offset + size] for offset, size in spans] == [FLAC, b"RIFF", b"RIFF", FLAC + b"!"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("s-{8..10}.tar", ["s-8.tar", "s-9.tar", "s-10.tar"]),
        ("{b,a}/s-{1..0}.tar", ["b/s-1.tar", "b/s-0.tar", "a/s-1.tar", "a/s-0.tar"]),
        ("s-{09..11}.tar", ["s-09.tar", "s-10.tar", "s-11.tar"]),
        ("s.tar", ["s.tar"]),
        ("{a}.tar", ["{a}.tar"]),
    ],
)
def test_patterns_with_braces(pattern: str, names: list[str]) -> None:
    assert expanded(pattern) == names


@pytest.mark.parametrize("pattern", ["s-{0..99999999}.tar", "{0..999}{0..999}{0..999}"])
def test_patterns_that_stand_for_too_many_are_refused(pattern: str) -> None:
    with pytest.raises(ListError, match="more than 1,000,000 names"):
        expanded(pattern)


def test_folders_and_patterns_of_shards(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / "in" / f"s-{number}.tar", (f"k{number}.flac", FLAC))
    for inputs in (["in"], ["in/s-{0..2}.tar"], ["in/s-*.tar"], ["in/s-0.tar", "in/s-[12].tar"]):
        dataset = read_tar_shards([str(tmp_path / name) for name in inputs], tmp_path / "out")
        assert [each.name for each in dataset.sources] == ["s-0.tar", "s-1.tar", "s-2.tar"]
    with pytest.raises(ListError, match=r"s-3\.tar: cannot be read"):
        read_tar_shards([str(tmp_path / "in" / "s-{2..3}.tar")], tmp_path / "out")
    for name, words in (("in/t-*.tar", "no such file"), (".", r"no \.tar files")):
        with pytest.raises(ListError, match=words):
            read_tar_shards([str(tmp_path / name)], tmp_path / "out")
    shard(tmp_path / "s-0.tar", ("a.flac", FLAC))
    with pytest.raises(ListError, match="would have one name"):
        read_tar_shards([str(tmp_path / "s-0.tar"), str(tmp_path / "in" / "s-0.tar")], tmp_path / "out")
    with pytest.raises(OutputError, match="would be replaced"):
        read_tar_shards([str(tmp_path / "in" / "s-0.tar")], tmp_path / "in")


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (other("a.flac", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (other("a.flac", tarfile.LNKTYPE, "b.flac"), "a link"),
        (other("a.flac", tarfile.CHRTYPE), "a device"),
        (other("a.flac", tarfile.FIFOTYPE), "a device"),
        (("../a.flac", FLAC), "leads out of the folder"),
        (("x/../../a.flac", FLAC), "leads out of the folder"),
        (("/etc/a.flac", FLAC), "leads out of the folder"),
        (("a\nb.flac", FLAC), "cannot name an output file"),
        (("a.m4z", b"\0\0\0\x20ftypM4A "), "a recording by its content"),
        (("a", b"RIFF0000WAVE"), "a recording by its content"),
    ],
)
def test_members_that_are_not_plain_files_are_refused(
    member: tuple[str, bytes] | tarfile.TarInfo, words: str, tmp_path: Path
) -> None:
    refused(shard(tmp_path / "s.tar", ("fine.flac", FLAC), member), words)


def test_two_members_with_one_output_are_refused(tmp_path: Path) -> None:
    for first, second in (("a.flac", "a.wav"), ("a.flac", "./a.flac")):
        refused(shard(tmp_path / "s.tar", (first, FLAC), (second, FLAC)), "would have one output")


def cut(content: bytes) -> bytes:
    return content[:700]


def without_end(content: bytes) -> bytes:
    return content[: 4 * 512]


def of_any_size(content: bytes) -> bytes:
    header = tarfile.TarInfo("b.flac")
    header.size = 1 << 50
    return content[: 2 * 512] + header.tobuf(tarfile.GNU_FORMAT) + content[2 * 512 :]


def extended(content: bytes) -> bytes:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    return header.tobuf() + content


def long_name(content: bytes) -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    return header.tobuf(tarfile.GNU_FORMAT) + content


def negative(content: bytes) -> bytes:
    header = bytearray(tarfile.TarInfo("b.flac").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"  # a size below zero, in binary: readers would go back for ever
    header[148:156] = b"        "
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return content[: 2 * 512] + bytes(header) + content[2 * 512 :]


def damaged(content: bytes) -> bytes:
    return content[: 2 * 512] + b"\x7f" * 512 + content[3 * 512 :]


def two(content: bytes) -> bytes:
    return content + content


@pytest.mark.parametrize("harm", [cut, without_end, of_any_size, extended, long_name, negative, damaged, two])
def test_damaged_archives_are_refused(harm: Callable[[bytes], bytes], tmp_path: Path, no_waiting: None) -> None:
    path = shard(tmp_path / "s.tar", ("a.flac", FLAC), ("b.json", b"{}"))
    path.write_bytes(harm(path.read_bytes()))
    refused(path, r"s\.tar: (damaged|cut off|not a tar|more follows)")


def test_what_is_no_archive_is_refused(tmp_path: Path, no_waiting: None) -> None:
    path = shard(tmp_path / "s.tar", ("a.flac", FLAC))
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    refused(tmp_path / "s.tar.gz", "compressed with gzip; unpack it first")
    (tmp_path / "text.tar").write_text("speech\n" * 1000)
    refused(tmp_path / "text.tar", "not a tar archive|damaged")
    (tmp_path / "nothing.tar").touch()
    refused(tmp_path / "nothing.tar", "not a tar archive")
    os.mkfifo(tmp_path / "pipe.tar")
    refused(tmp_path / "pipe.tar", "not a regular file")
    refused(shard(tmp_path / "texts.tar", ("a.txt", b"no speech")), "no recordings in this shard")
    refused(shard(tmp_path / "zeros.tar"), "no recordings in this shard")


def test_a_recording_that_cannot_be_decoded_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mkc_fast.engine.datasets.tar_shards.decodable", lambda: frozenset({"flac"}))
    refused(
        shard(tmp_path / "s.tar", ("a.flac", FLAC), ("b.m4a", b"")),
        r"b\.m4a cannot be decoded here; install the extra av",
    )
