"""The manifest of an output folder: what it binds a later run to, what it keeps to itself, and what it survives."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mkc_fast import OutputError, WriteError
from mkc_fast.engine.corpus.manifest import MANIFEST_FILE, Manifest
from mkc_fast.engine.datasets.dataset import Utterance

SETTINGS = {"mode": "frame", "seed": 7, "kmeans_num": 8}
RAN = {"provider": "cpu", "operators": "native AVX-512"}
OTHER = {"provider": "cpu", "operators": "onnxruntime", "threads": 2}
U1 = Utterance("u1", Path("/audio/one.wav"))
DONE = {"file": "u1.wav", "bytes": 4, "seconds": 1.0, "frames": 49}


def opened(folder: Path, **options: bool) -> Manifest:
    return Manifest(folder, SETTINGS, **options)


def record(folder: Path, *utterances: Utterance, ran: Mapping[str, object] = RAN, **options: bool) -> None:
    """What a run records that finishes these."""
    with closing(opened(folder, **options)) as manifest:
        manifest.check_sources(utterances)
        manifest.check_ran(ran)
        manifest.begin(ran)
        for utterance in utterances:
            manifest.append(utterance, {**DONE, "file": f"{utterance.id}.wav"}, ran)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / MANIFEST_FILE).read_text().splitlines()]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (U1, replace(U1, file=Path("/audio/two.wav")), "/audio/one.wav, this run has /audio/two.wav"),
        (U1, replace(U1, end_s=2.5), "/audio/one.wav, this run has /audio/one.wav, 0.0 s to 2.5 s"),
        (replace(U1, begin_s=1.0), replace(U1, begin_s=2.0), "1.0 s to its end, this run has /audio/one.wav, 2.0 s to"),
        (replace(U1, command="sox a -"), replace(U1, command="sox b -"), "sox a - |, this run has sox b - |"),
        (replace(U1, command="sox a -"), U1, "sox a - |, this run has /audio/one.wav"),
    ],
)
@pytest.mark.parametrize("failed", [False, True])
def test_another_recording_under_a_known_id_is_refused_with_both(
    before: Utterance, after: Utterance, words: str, failed: bool, tmp_path: Path
) -> None:
    manifest = opened(tmp_path)
    manifest.begin(RAN)
    manifest.append(before, {"error": "no"} if failed else DONE, RAN)
    manifest.close()
    again = opened(tmp_path)
    again.check_sources([before])
    with pytest.raises(OutputError) as raised:
        again.check_sources([after])
    assert f"{tmp_path}: the output u1 was made of " in str(raised.value)
    assert words in str(raised.value)


def test_a_relative_path_means_the_file_and_not_its_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    relative = Utterance("u1", Path("one.wav"))
    record(tmp_path / "out", relative)
    monkeypatch.chdir(tmp_path / "there")
    manifest = opened(tmp_path / "out")
    manifest.check_sources([Utterance("u1", tmp_path / "here" / "one.wav")])
    with pytest.raises(OutputError, match=r"here/one\.wav, this run has .*there/one\.wav"):
        manifest.check_sources([relative])


def test_a_private_manifest_has_no_paths_and_still_knows_them(tmp_path: Path) -> None:
    command = Utterance("c", Path("secret |"), command="cat secret")
    part = Utterance("p", Path("/audio/secret.wav"), 1.0, 2.0)
    record(tmp_path, replace(U1, file=Path("/audio/secret.wav")), command, part, private=True)
    manifest = opened(tmp_path, private=True)
    manifest.begin(RAN)
    manifest.append(Utterance("f", Path("/audio/secret.wav")), {"error": "/audio/secret.wav: no"}, RAN)
    manifest.close()
    text = (tmp_path / MANIFEST_FILE).read_text()
    assert "secret" not in text
    assert "audio" not in text
    assert [line.get("id") for line in lines(tmp_path)] == [None, "u1", "c", "p", "f"]
    again = opened(tmp_path, private=True)
    again.check_sources([replace(U1, file=Path("/audio/secret.wav")), command, part])
    for other in (replace(part, end_s=3.0), replace(command, command="cat x"), U1):
        with pytest.raises(OutputError, match=r"was made of another recording .*digest"):
            again.check_sources([other])
    again.close()
    # One digest for one source, and another in another folder: two manifests tell nothing of each other.
    record(tmp_path / "other", replace(U1, file=Path("/audio/secret.wav")), private=True)
    assert lines(tmp_path / "other")[1]["source_digest"] != lines(tmp_path)[1]["source_digest"]


@pytest.mark.parametrize("private", [False, True])
def test_private_and_open_manifests_are_not_mixed(private: bool, tmp_path: Path) -> None:
    record(tmp_path, U1, private=private)
    with pytest.raises(OutputError, match=f"written {'with' if private else 'without'} --private-manifest"):
        opened(tmp_path, private=not private)


def test_what_is_not_equal_to_the_last_bit_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    record(tmp_path, U1)
    with pytest.raises(OutputError) as raised:
        record(tmp_path, replace(U1, id="u2"), ran=OTHER)
    assert str(raised.value) == (
        f"{tmp_path}: its outputs were made with operators native AVX-512, threads none; this run has operators "
        "onnxruntime, threads 2, which is not equal to the last bit; choose another folder, --overwrite, or "
        "--allow-mixed"
    )
    assert len(lines(tmp_path)) == 2
    record(tmp_path, replace(U1, id="u2"), ran=OTHER, allow_mixed=True)
    # Both are known now, and each utterance says which of them it is of.
    record(tmp_path, replace(U1, id="u3"))
    record(tmp_path, replace(U1, id="u4"), ran=OTHER)
    found = lines(tmp_path)
    assert found[0]["ran"] == RAN
    assert found[2] == {"type": "ran", "ran": OTHER}
    assert [(line["id"], line.get("ran", 0)) for line in found if "id" in line] == [
        ("u1", 0), ("u2", 1), ("u3", 0), ("u4", 1),
    ]  # fmt: skip
    with pytest.raises(OutputError, match="allow-mixed"):
        record(tmp_path, U1, ran={**RAN, "package": "9"})


def test_nothing_is_written_before_something_runs(tmp_path: Path) -> None:
    manifest = opened(tmp_path)
    assert (tmp_path / MANIFEST_FILE).read_bytes() == b""
    manifest.close()
    assert not list(tmp_path.iterdir())
    # So a run that was to start over and could not start has destroyed nothing.
    record(tmp_path, U1)
    before = (tmp_path / MANIFEST_FILE).read_bytes()
    opened(tmp_path, overwrite=True).close()
    assert (tmp_path / MANIFEST_FILE).read_bytes() == before
    record(tmp_path, replace(U1, id="u2"), overwrite=True)
    assert [line.get("id") for line in lines(tmp_path)] == [None, "u2"]


def test_a_manifest_of_the_earlier_version_is_refused(tmp_path: Path) -> None:
    header = {"type": "run", "version": 1, **SETTINGS}
    text = json.dumps(header) + "\n"
    (tmp_path / MANIFEST_FILE).write_text(text)
    opened(tmp_path).close()  # nothing is recorded, so nothing binds
    (tmp_path / MANIFEST_FILE).write_text(text + '{"id": "u1", "file": "u1.wav"}\n')
    with pytest.raises(
        OutputError, match="made by an earlier version; choose another folder or suffix, or --overwrite"
    ):
        opened(tmp_path)


LONE = "\ud800"


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed_salt", LONE), ("seed", LONE), ("mode", LONE), ("version", LONE), ("ran", {LONE: LONE}), ("ran", LONE)],
)
def test_lone_surrogates_in_a_header_are_one_line(field: str, value: object, tmp_path: Path) -> None:
    record(tmp_path, U1)
    header, *rest = lines(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("\n".join(json.dumps(line) for line in [{**header, field: value}, *rest]))
    with pytest.raises(OutputError) as raised:
        record(tmp_path, U1)
    str(raised.value).encode()  # it can be printed


def test_lone_surrogates_in_records_are_kept(tmp_path: Path) -> None:
    odd = [
        Utterance("u", Path(f"/audio/{LONE}.wav")),
        Utterance("v", Path("/audio/\udcff.wav")),
        Utterance(LONE, U1.path),
    ]
    record(tmp_path, *odd)
    (tmp_path / MANIFEST_FILE).read_bytes().decode()  # it is UTF-8
    again = opened(tmp_path)
    again.check_sources(odd)
    with pytest.raises(OutputError) as raised:
        again.check_sources([replace(U1, id=LONE, file=Path(LONE))])
    str(raised.value).encode()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_manifest_that_is_removed_meanwhile_is_noticed(replaced: bool, tmp_path: Path) -> None:
    manifest = opened(tmp_path)
    manifest.begin(RAN)
    manifest.append(U1, DONE, RAN)
    manifest.check_there()
    (tmp_path / MANIFEST_FILE).unlink()
    if replaced:
        (tmp_path / MANIFEST_FILE).write_text("another's")
    manifest.append(U1, DONE, RAN)
    for act in (manifest.flush, manifest.check_there):
        with pytest.raises(WriteError, match="removed or replaced during the run"):
            act()
    manifest.close()
    assert replaced == (tmp_path / MANIFEST_FILE).exists()


def test_recorded_draws_are_not_kept_in_memory(tmp_path: Path) -> None:
    # 2,000 utterances of 630 frames: their draws are 6 MB of text and 10 MB as Python's numbers.
    draws = [1000 + frame % 165 for frame in range(630)]
    utterances = [Utterance(f"u{number}", Path(f"/audio/u{number}.wav")) for number in range(2000)]
    tracemalloc.start()
    manifest = opened(tmp_path)
    manifest.begin(RAN)
    for utterance in utterances:
        manifest.append(utterance, {**DONE, "bank_ids": list(draws)}, RAN)
    manifest.close()
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    again = opened(tmp_path)
    again.check_sources(utterances)
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / MANIFEST_FILE).stat().st_size > 6_000_000
    assert written < 1_000_000
    assert read < 2_500_000  # id, source, file and size of each


def test_the_entries_drawn_from_are_recorded_where_that_is_asked(tmp_path: Path) -> None:
    manifest = opened(tmp_path)
    manifest.begin(RAN, [1, 5, 6])
    manifest.append(U1, DONE, RAN)
    manifest.close()
    again = opened(tmp_path)
    assert again.entries == [1, 5, 6]
    assert again.continues


def test_lines_are_written_together_and_none_is_lost(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as manifest:
        manifest.begin(RAN)
        manifest.append(U1, DONE, RAN)
        assert len(lines(tmp_path)) == 1
        manifest.flush()
        assert len(lines(tmp_path)) == 2
        manifest.append(replace(U1, id="u2"), DONE, RAN)
    assert [line["id"] for line in lines(tmp_path)[1:]] == ["u1", "u2"]
