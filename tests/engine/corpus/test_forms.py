"""Each form of corpus makes a round trip with real speech: what goes in comes out in the same form, with all else."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import OutputError, anonymize_corpus
from mkc_fast.cli import main
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.audio.waveform import to_pcm16
from mkc_fast.engine.corpus.anonymize import open_corpus
from mkc_fast.engine.corpus.manifest import locked_manifest
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.corpus.run import Run, run_corpus
from tests.conftest import Artifacts
from tests.fakes.anonymizers import factory

TIMEOUT_S = 300
Infer = Callable[..., int]


@pytest.fixture
def words(speech: Path) -> list[np.ndarray]:
    """Eight parts of real speech, of 0.6 s and more."""
    whole = read_waveform(speech / "jfk_16k_mono.flac", 16000)
    return [whole[number * 4000 :][: 10000 + 800 * number] for number in range(8)]


@pytest.fixture
def tree(tmp_path: Path, words: list[np.ndarray]) -> Path:
    """Folders of speakers, of several formats and rates."""
    root = tmp_path / "tree"
    for number, samples in enumerate(words):
        path = root / f"spk {number % 3}" / f"ü{number}.{('wav', 'flac', 'ogg')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, 16000 if number % 2 else 22050)
    return root


@pytest.fixture
def manifest(tmp_path: Path, tree: Path) -> Path:
    """A JSONL manifest of it: relative and absolute paths, parts, and two lines about one recording."""
    lines: list[dict[str, object]] = []
    for number, path in enumerate(sorted(tree.rglob("*.*"))):
        shown = str(path) if number % 2 else str(path.relative_to(tmp_path))
        lines.append({"audio_filepath": shown, "duration": 0.4, "text": f"é {number}", "speaker": path.parent.name})
    lines.append({**lines[0], "target_lang": "de"})
    lines.append({"id": 9, "offset": 0.1, **lines[0], "duration": 0.25})
    path = tmp_path / "train.json"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


@pytest.fixture
def shards(tmp_path: Path, words: list[np.ndarray]) -> list[Path]:
    """Four WebDataset shards of two samples each, with texts and other members between the recordings."""
    paths = []
    for shard in range(4):
        paths.append(tmp_path / f"shard-{shard:03d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            add(tar, "__meta__.json", b'{"made": "here"}')
            for number in (2 * shard, 2 * shard + 1):
                file = io.BytesIO()
                soundfile.write(file, words[number], 16000, format="FLAC")
                add(tar, f"./s/{number:06d}.txt", f"text {number}".encode())
                add(tar, f"./s/{number:06d}.audio.flac", file.getvalue())
                add(tar, f"./s/{number:06d}.cls", bytes(40_000))
    return paths


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.uname = len(content), 1_700_000_000 + len(content), "someone"
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def infer(artifacts: Artifacts, tmp_path: Path) -> Infer:
    """Runs ``infer`` over inputs, into ``out``, with a seed."""

    def run(*arguments: object, out: str = "out", seed: str = "7") -> int:
        common = ["--gpus", "cpu", "--seed", seed, "--quiet", "-o", str(tmp_path / out)]
        model = ["--model", str(artifacts.model), "--bank", str(artifacts.bank)]
        return main(["infer", *map(str, arguments), *common, *model])

    return run


def join(tmp_path: Path, *arguments: object, out: str = "out") -> int:
    return main(["merge", *map(str, arguments), "-o", str(tmp_path / out)])


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name != "manifest.jsonl"}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]


def expected(artifacts: Artifacts, samples: np.ndarray, name: str) -> np.ndarray:
    """The output of a recording, as written in 16 bits."""
    return to_pcm16(artifacts.anonymizer.anonymize(samples, seed=7, utterance_id=name).waveform)


def test_a_tree_comes_back_as_a_tree(infer: Infer, artifacts: Artifacts, tree: Path, tmp_path: Path) -> None:
    assert infer(tree) == 0
    given = {str(path.relative_to(tree).with_suffix("")) for path in tree.rglob("*.*")}
    assert {name[:-4] for name in contents(tmp_path / "out")} == given
    name = "spk 1/ü1"
    made, rate = soundfile.read(tmp_path / "out" / f"{name}.wav", dtype="int16")
    assert rate == 16000
    np.testing.assert_array_equal(made, expected(artifacts, read_waveform(tree / f"{name}.flac", 16000), name))
    assert infer("--input", tree, out="second") == 0
    assert contents(tmp_path / "second") == contents(tmp_path / "out")
    called = anonymize_corpus(
        artifacts.model, artifacts.bank, input=tree, out=tmp_path / "out", seed=7, devices=["cpu"]
    )
    assert (called.written, called.present) == (0, 8)


def test_an_output_folder_within_the_input_is_no_input(infer: Infer, tree: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert infer(tree, out="tree/anonymized") == 0
        assert len(contents(tree / "anonymized")) == 8
    assert infer(tree, out="another") == 0
    assert len(contents(tmp_path / "another")) == 8


def test_a_manifest_comes_back_with_new_paths_and_durations(infer: Infer, manifest: Path, tmp_path: Path) -> None:
    assert infer(manifest) == 0
    before = [json.loads(line) for line in manifest.read_text().splitlines()]
    after = [json.loads(line) for line in (tmp_path / "out" / "train.json").read_text().splitlines()]
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert list(new) == list(old)
        changed = {"audio_filepath", "duration", "offset"}
        assert {key: new[key] for key in new if key not in changed} == {k: old[k] for k in old if k not in changed}
        assert new["audio_filepath"].startswith("/") == old["audio_filepath"].startswith("/")
        info = soundfile.info(tmp_path / "out" / new["audio_filepath"])
        assert new["duration"] == pytest.approx(info.duration, abs=1e-6)
        assert 0 <= old["duration"] - new["duration"] < 0.025
        assert new.get("offset", 0) == 0
    assert after[0]["audio_filepath"] == after[8]["audio_filepath"] != after[9]["audio_filepath"]
    assert "é" in (tmp_path / "out" / "train.json").read_text()
    written = (tmp_path / "out" / "train.json").read_bytes()
    assert infer(manifest) == 0
    assert (tmp_path / "out" / "train.json").read_bytes() == written
    # What comes out goes in again, from wherever the folder is.
    shutil.move(tmp_path / "out", tmp_path / "moved")
    relative = [line for line in written.decode().splitlines() if '"audio/' in line]
    (tmp_path / "moved" / "train.json").write_text("\n".join(relative))
    assert infer(tmp_path / "moved" / "train.json", out="twice") == 0


def test_lines_of_one_speaker_share_their_draws(infer: Infer, manifest: Path) -> None:
    assert infer(manifest, "--level", "speaker") == 0


def test_shards_come_back_as_shards(
    infer: Infer, artifacts: Artifacts, shards: list[Path], words: list[np.ndarray], tmp_path: Path
) -> None:
    assert infer(tmp_path / "shard-{000..003}.tar") == 0
    assert sorted(contents(tmp_path / "out")) == [".mkc-fast/provenance.json", *(path.name for path in shards)]
    for number, path in enumerate(shards):
        old, new = members(path), members(tmp_path / "out" / path.name)
        assert [name.replace(".flac", ".wav") for name in old] == list(new)
        for (name, content), made in zip(old.items(), new.values(), strict=True):
            if not name.endswith(".flac"):
                assert made == content
                continue
            sample = 2 * number + int(name[4:10]) % 2
            samples = np.clip(np.rint(words[sample] * 32768), -32768, 32767).astype(np.int16)
            output = expected(artifacts, samples, f"{path.stem}/s/{sample:06d}.audio")
            np.testing.assert_array_equal(soundfile.read(io.BytesIO(made), dtype="int16")[0], output)
        with tarfile.open(path) as source, tarfile.open(tmp_path / "out" / path.name) as target:
            for given, found in zip(source, target, strict=True):
                assert (given.mtime, given.mode, given.uname) == (found.mtime, found.mode, found.uname)
    before = contents(tmp_path / "out")
    assert infer(tmp_path / "shard-*.tar") == 0
    assert contents(tmp_path / "out") == before
    assert infer(*shards, "--format", "flac", out="flac") == 0
    assert list(members(tmp_path / "flac" / "shard-001.tar")) == list(members(shards[1]))


def test_the_package_webdataset_reads_what_comes_out(infer: Infer, shards: list[Path], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    assert infer(*shards) == 0
    given, made = (
        list(webdataset.WebDataset(str(folder / "shard-{000..003}.tar"), shardshuffle=False))
        for folder in (tmp_path, tmp_path / "out")
    )
    assert sum(sample["__key__"].startswith("./s/") for sample in given) == 8
    for old, new in zip(given, made, strict=True):
        assert {name.replace(".flac", ".wav") for name in old} == new.keys()
        kept = [name for name in old if name not in {"__url__", "__local_path__"} and not name.endswith(".flac")]
        assert {name: new[name] for name in kept} == {name: old[name] for name in kept}


@pytest.mark.parametrize("form", ["tree", "manifest", "shards"])
def test_merged_parts_of_each_form_are_what_one_run_writes(
    form: str, infer: Infer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    given = request.getfixturevalue(form)
    inputs = given if isinstance(given, list) else [given]
    if form == "manifest":  # absolute paths hold the output folder's name
        lines = [line for line in given.read_text().splitlines() if str(tmp_path) not in line]
        given.write_text("\n".join(lines) + "\n")
    assert infer(*inputs, out="whole") == 0
    for number in (3, 1, 2):
        assert infer(*inputs, "--shard", f"{number}/3") == 0
    assert not (tmp_path / "out").exists()
    assert join(tmp_path, *inputs) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list(tmp_path.glob("out.shard*"))
    assert infer(*inputs) == 0
    assert join(tmp_path, *inputs) == 0


@pytest.mark.parametrize("form", ["tree", "manifest", "shards"])
def test_a_run_of_each_form_that_is_killed_goes_on(
    form: str, artifacts: Artifacts, infer: Infer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    given = request.getfixturevalue(form)
    inputs = [str(path) for path in (given if isinstance(given, list) else [given])]
    assert infer(*inputs, out="whole") == 0
    code = (
        "import sys; from pathlib import Path\n"
        "from mkc_fast.engine.corpus import anonymize, groups\n"
        "groups._IN_A_PART = 2\n"
        "anonymize.Run.factory = 'tests.fakes.anonymizers:SlowAnonymizer'\n"
        "model, bank, out, *given = sys.argv[1:]\n"
        "anonymize.anonymize_corpus(model, bank, input=given, out=out, seed=7, devices=['cpu'])\n"
    )
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", code, str(artifacts.model), str(artifacts.bank), str(out), *inputs]
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(root)])}
    process = subprocess.Popen(arguments, env=environment, start_new_session=True)
    record = out / "manifest.jsonl" if form == "tree" else out / ".mkc-fast" / "manifest.jsonl"
    deadline = time.monotonic() + TIMEOUT_S
    while not (record.exists() and record.read_bytes().count(b'"frames"') >= 3) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, "it was to be killed in the middle"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for path in out.glob("*.tar"):
        assert members(path), "a shard is there, and is not whole"
    assert not (out / "train.json").exists()
    while infer(*inputs) == 2:  # the workers notice that their parent is gone, and let go of the folder
        assert time.monotonic() < deadline
        time.sleep(0.2)
    whole = {name: content.replace(b"whole", b"out") if name.endswith(".json") else content
             for name, content in contents(tmp_path / "whole").items()}  # fmt: skip
    assert contents(out) == whole


def test_two_runs_at_once_are_kept_apart(
    infer: Infer, shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(*shards) == 0
    with locked_manifest(tmp_path / "out" / ".mkc-fast"):
        assert infer(*shards) == 2
    assert "another run is writing there" in capsys.readouterr().err


def test_a_shard_with_a_recording_that_fails_waits(
    infer: Infer, shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = members(shards[1])
    name = next(name for name in old if name.endswith(".flac"))
    with tarfile.open(shards[1], "w") as tar:
        for each, content in old.items():
            add(tar, each, b"no audio" if each == name else content)
    assert infer(*shards) == 1
    assert f"failed: shard-001/{name[2:-5]}: {shards[1]}: " in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == [shards[n].name for n in (0, 2, 3)]
    assert infer(*shards, "--on-failure", "copy-silence") == 0
    made = members(tmp_path / "out" / shards[1].name)[name.replace(".flac", ".wav")]
    assert not soundfile.read(io.BytesIO(made))[0].any()
    assert infer(*shards) == 0, "a shard that is complete is not made again"


def test_what_is_there_and_not_ours_is_kept(infer: Infer, shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / shards[2].name).write_bytes(b"mine")
    assert infer(*shards) == 2
    assert (out / shards[2].name).read_bytes() == b"mine"
    assert infer(*shards, "--overwrite") == 0
    assert members(out / shards[2].name)


def test_a_tree_and_shards_need_little_more_than_their_outputs(
    artifacts: Artifacts, shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs of a shard are removed once it is written, so few are there beside the shards."""
    monkeypatch.setattr("mkc_fast.engine.corpus.groups._IN_A_PART", 2)
    corpus = open_corpus(input=[str(path) for path in shards], out=tmp_path / "out")
    most = 0

    def watch(status: object) -> None:
        nonlocal most
        most = max(most, len(list((tmp_path / "out" / ".mkc-fast" / "members").rglob("*.wav"))))

    run_corpus(Run(corpus.folders, artifacts.model, artifacts.bank, Settings(), factory=factory("Slow")), watch=watch)
    assert 0 < most <= 5


def test_a_folder_that_cannot_be_written_is_one_line(
    infer: Infer, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert infer(tree, out="file") == 2
    assert infer(tree, out="file/below") == 2
    assert infer(tree, out="tree/spk 0/ü0.wav/x") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


def test_an_input_and_a_list_are_not_given_together(
    infer: Infer, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(tree, "--audio-scp", "x") == 2
    assert main(["infer", str(tree)]) == 2
    said = capsys.readouterr().err
    assert "give --input or --audio-scp, not both" in said
    assert "give -o FOLDER" in said
    with pytest.raises(OutputError, match="is the input itself"):
        open_corpus(input=tree, out=tree)
