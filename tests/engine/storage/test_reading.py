"""A recording at an address is the recording of the file; what goes wrong is one line."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mkc_fast import AudioError, ListError, MkcError
from mkc_fast.engine.audio import read
from mkc_fast.engine.audio.read import Recording, duration_s, read_utterance
from mkc_fast.engine.corpus.anonymize import open_corpus
from mkc_fast.engine.datasets.dataset import Utterance
from mkc_fast.engine.datasets.tar_shards import read_tar_shards
from mkc_fast.engine.storage.file_systems import file_system

RATE = 16000


@pytest.mark.parametrize("ending", ["flac", "wav", "ogg", "mp3"])
def test_a_recording_at_an_address_is_that_of_the_file(
    memory: Any, speech: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, rate = soundfile.read(speech / "jfk_44k_stereo.flac")
    file = tmp_path / f"a.{ending}"
    soundfile.write(file, samples, rate)
    memory.put_file(str(file), "/bucket/a")
    here, there = Utterance("a", file), Utterance("a", "memory://bucket/a")
    expected = read_utterance(here, RATE, 400)
    assert np.array_equal(read_utterance(there, RATE, 400), expected)
    assert duration_s(there) == pytest.approx(duration_s(here))
    part = {"begin_s": 0.5, "end_s": 1.25, "channel": 1}
    assert np.array_equal(
        read_utterance(Utterance("a", "memory://bucket/a", **part), RATE, 400),
        read_utterance(Utterance("a", file, **part), RATE, 400),
    )
    # A long one is copied to a file without a name, and decoded from there each time it is read.
    monkeypatch.setattr(read, "MOST_IN_MEMORY_BYTES", 1000)
    long = read_utterance(there, RATE, 400, most_samples=1000)
    assert isinstance(long, Recording)
    assert np.array_equal(long.forward()[0 : len(long)], expected)
    assert np.array_equal(long.forward()[1000:2000], expected[1000:2000])


def test_members_of_shards_are_read_in_their_place(memory: Any, speech: Path, tmp_path: Path) -> None:
    file = tmp_path / "shard-0.tar"
    with tarfile.open(file, "w") as tar:
        for name in ("jfk_16k_mono", "jfk_44k_stereo"):
            tar.add(speech / f"{name}.flac", f"{name}.flac")
    memory.put_file(str(file), "/bucket/shard-0.tar")
    here = read_tar_shards([str(file)], tmp_path / "out").utterances
    for url in ("memory://bucket/shard-0.tar", "memory://bucket/shard-{0..0}.tar", "memory://bucket/shard-*.tar"):
        there = read_tar_shards([url], tmp_path / "out").utterances
        assert [(each.id, each.span) for each in there] == [(each.id, each.span) for each in here]
    for one, other in zip(there, here, strict=True):
        assert np.array_equal(read_utterance(one, RATE, 400), read_utterance(other, RATE, 400))
        assert duration_s(one) == pytest.approx(duration_s(other))


def test_a_cut_recording_is_refused(memory: Any, clip: np.ndarray, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", clip[:16000], RATE)
    memory.pipe_file("/bucket/a.wav", (tmp_path / "a.wav").read_bytes()[:-1000])
    with pytest.raises(AudioError, match=r"memory://bucket/a.wav: truncated"):
        read_utterance(Utterance("a", "memory://bucket/a.wav"), RATE, 400)


def test_an_object_that_vanished_is_one_line(memory: Any) -> None:
    gone = Utterance("a", "memory://bucket/gone.wav")
    with pytest.raises(AudioError, match=r"^memory://bucket/gone.wav: no such object, or no such bucket$"):
        read_utterance(gone, RATE, 400)
    assert duration_s(gone) == 0.0


def test_a_list_may_lie_in_the_store_and_name_what_lies_there(memory: Any, tmp_path: Path) -> None:
    memory.pipe_file("/bucket/list.scp", b"# a comment\na memory://bucket/x/one.wav\nmemory://bucket/x/t w o.wav\n")
    corpus = open_corpus(audio_list="memory://bucket/list.scp", out=tmp_path / "out")
    assert [(each.id, each.file) for each in corpus.datasets[0].utterances] == [
        ("a", "memory://bucket/x/one.wav"),
        ("t w o", "memory://bucket/x/t w o.wav"),
    ]


def test_jsonl_manifests_name_objects(memory: Any, tmp_path: Path) -> None:
    lines = b'{"audio_filepath": "memory://b/x/one.wav"}\n{"audio_filepath": "memory://b/y/two.wav", "duration": 2}\n'
    memory.pipe_file("/b/train.jsonl", lines)
    (tmp_path / "train.jsonl").write_bytes(lines)
    for manifest in (str(tmp_path / "train.jsonl"), "memory://b/train.jsonl"):
        corpus = open_corpus(input=manifest, out=tmp_path / "out")
        assert [(each.id, each.file, each.end_s) for each in corpus.datasets[0].utterances] == [
            ("x/one", "memory://b/x/one.wav", None),
            ("y/two", "memory://b/y/two.wav", 2.0),
        ]


def test_a_folder_in_the_store_is_a_tree_of_recordings(memory: Any, tmp_path: Path) -> None:
    for name in ("one.wav", "spk/two.flac", "notes.txt", ".hidden/three.wav"):
        memory.pipe_file(f"/bucket/{name}", b"")
    corpus = open_corpus(input="memory://bucket", out=tmp_path / "out")
    assert [each.id for each in corpus.datasets[0].utterances] == ["one", "spk/two"]


def test_secrets_in_lists_are_refused_with_their_line_and_not_shown(tmp_path: Path) -> None:
    scp = tmp_path / "list.scp"
    scp.write_text("a s3://key:SECRET@bucket/a.wav\n")
    with pytest.raises(ListError, match=r"list.scp: s3://…@bucket/a.wav: it holds a password") as refused:
        open_corpus(audio_list=scp, out=tmp_path / "out")
    assert "SECRET" not in str(refused.value)


def test_what_must_be_installed_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scp = tmp_path / "list.scp"
    scp.write_text("a foo://bucket/a.wav\n")
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra remote)")
    with pytest.raises(MkcError, match=r"foo:// cannot be used"):
        open_corpus(audio_list=scp, out=tmp_path / "out")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MkcError, match=r"foo://.* needs fsspec: pip install 'mkc-fast\[.*remote.*\]'"):
        open_corpus(audio_list=scp, out=tmp_path / "out")


def test_a_protocol_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pytest.importorskip("fsspec.registry", reason="fsspec is not installed (extra remote)")
    monkeypatch.setitem(
        registry.known_implementations, "absent", {"class": "no_such_module.Files", "err": "Install no_such_module"}
    )
    with pytest.raises(MkcError, match=r"absent:// needs another package .*Install no_such_module"):
        file_system("absent://bucket/a.wav")
