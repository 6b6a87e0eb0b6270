"""Shards of a corpus are even and disjoint, and what ``merge`` makes of them is what one run makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import ArgumentError, MkcError, OutputError, anonymize_corpus
from mkc_fast.cli import main
from mkc_fast.engine.corpus import merge
from mkc_fast.engine.corpus.manifest import locked_manifest
from mkc_fast.engine.datasets.shards import Shard, find_shards
from mkc_fast.engine.voiceprivacy.merge import merge_sets
from tests.conftest import Artifacts

IDS = [f"s{number % 3}-{number:03d}" for number in range(9)]
Run = Callable[..., int]


@pytest.fixture
def corpus(tmp_path: Path, clip: np.ndarray) -> Path:
    """A list and a data directory of nine short recordings."""
    data = tmp_path / "data"
    data.mkdir()
    lines = []
    for number, name in enumerate(IDS):
        path = tmp_path / f"r{number}.wav"
        soundfile.write(path, clip[: 4000 + 400 * number], 16000)
        lines.append(f"{name} {path}\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    (tmp_path / "utt2spk").write_text("".join(f"{name} {name[:2]}\n" for name in IDS))
    for name in ("wav.scp", "utt2spk"):
        shutil.copy(tmp_path / name, data / name)
    (data / "utt2dur").write_text("".join(f"{name} 1.0\n" for name in IDS))
    return tmp_path


@pytest.fixture
def infer(artifacts: Artifacts, corpus: Path) -> Run:
    """Runs ``infer`` over the list, into ``out``, with a seed."""

    def run(*more: str, out: str = "out", seed: str = "7") -> int:
        arguments = ["infer", "--audio-scp", str(corpus / "wav.scp"), "-o", str(corpus / out), "--gpus", "cpu"]
        arguments += ["--model", str(artifacts.model), "--bank", str(artifacts.bank), "--quiet"]
        return main([*arguments, *(["--seed", seed] if seed else []), *more])

    return run


def join(corpus: Path, *more: str, out: str = "out") -> int:
    return main(["merge", "--audio-scp", str(corpus / "wav.scp"), "-o", str(corpus / out), *more])


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: content for name, content in found.items() if name != "manifest.jsonl"}


def test_each_id_is_in_one_shard_and_shards_are_even() -> None:
    ids = [f"utterance-{number}" for number in range(10_000)]
    shards = [Shard(number, 7) for number in range(1, 8)]
    sizes = [sum(shard.holds(name) for name in ids) for shard in shards]
    assert sum(sizes) == len(ids)
    # The standard deviation of a share of 1/7 is 35.
    assert all(abs(size - len(ids) / 7) < 5 * 35 for size in sizes)
    assert all(sum(shard.holds(name) for shard in shards) == 1 for name in ids[:100])


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="expected NUMBER/COUNT"):
        Shard.parse(text)


def test_merged_shards_are_what_one_run_writes(infer: Run, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer(out="whole") == 0
    for number in (2, 1, 3):
        assert infer("--shard", f"{number}/3") == 0
    folders = find_shards(corpus / "out")
    assert [len(list(folder.glob("*.wav"))) for folder in folders.values()] == [
        sum(shard.holds(name) for name in IDS) for shard in folders
    ]
    assert join(corpus) == 0
    assert "9 recordings of 3 shards" in capsys.readouterr().out
    assert contents(corpus / "out") == contents(corpus / "whole")
    assert not find_shards(corpus / "out")
    before = (corpus / "out" / "manifest.jsonl").read_bytes()
    assert infer() == 0, "one run goes on where the merge has ended"
    assert (corpus / "out" / "manifest.jsonl").read_bytes() == before
    assert infer(seed="8") == 2


def test_merged_data_directories_are_what_one_run_writes(artifacts: Artifacts, corpus: Path) -> None:
    (corpus / "data" / "segments").write_text("".join(f"{name}-seg {name} 0 0.2\n" for name in IDS))
    (corpus / "data" / "utt2spk").write_text("".join(f"{name}-seg {name[:2]}\n" for name in IDS))
    arguments = ["infer", "--data-dir", str(corpus / "data"), "--gpus", "cpu", "--seed", "7", "--quiet"]
    arguments += ["--model", str(artifacts.model), "--bank", str(artifacts.bank), "--level", "speaker"]
    assert main([*arguments, "--anon-suffix", "_whole"]) == 0
    for number in (1, 2):
        assert main([*arguments, "--shard", f"{number}/2"]) == 0
    assert not (corpus / "data_mkc").exists()
    assert main(["merge", "--data-dir", str(corpus / "data")]) == 0
    made, whole = contents(corpus / "data_mkc"), contents(corpus / "data_whole")
    made["wav.scp"] = made["wav.scp"].replace(b"data_mkc", b"data_whole")
    assert made == whole
    provenance = json.loads((corpus / ".mkc-fast" / "data_mkc" / "provenance.json").read_text())
    assert provenance == json.loads((corpus / ".mkc-fast" / "data_whole" / "provenance.json").read_text())
    assert (corpus / ".mkc-fast" / "data_mkc" / "manifest.jsonl").exists()
    assert sorted(path.name for path in corpus.glob("data*")) == ["data", "data_mkc", "data_whole"]
    assert main(arguments) == 0


@pytest.mark.parametrize("step", ["_write_manifest", "_move", "_rename", "_remove", "_write_provenance"])
def test_a_merge_that_is_killed_goes_on(infer: Run, corpus: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert infer(out="whole") == 0
    for number in (1, 2):
        assert infer("--shard", f"{number}/2") == 0
    real, calls = getattr(merge, step), []

    def killed(*arguments: object) -> object:
        calls.append(arguments)
        if step in ("_rename", "_remove") and len(calls) == 1:
            return real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merge, step, killed)
        with pytest.raises(KeyboardInterrupt):
            merge.merge_corpus(audio_list=corpus / "wav.scp", out=corpus / "out")
    assert join(corpus) == 0
    assert contents(corpus / "out") == contents(corpus / "whole")
    assert not find_shards(corpus / "out")


def test_a_shard_that_is_missing_unfinished_failed_or_at_work_is_named(
    infer: Run, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert join(corpus) == 2
    assert "there are no shards of it" in capsys.readouterr().err
    assert infer("--shard", "1/2") == 0
    assert join(corpus) == 2
    assert "the shard 2/2 is not there" in capsys.readouterr().err
    held = next(number for number, name in enumerate(IDS) if Shard(2, 2).holds(name))
    sound = (corpus / f"r{held}.wav").read_bytes()
    (corpus / f"r{held}.wav").write_bytes(b"no audio")
    assert infer("--shard", "2/2") == 1
    assert join(corpus) == 2
    assert f"{IDS[held]} failed; run the shard 2/2 again" in capsys.readouterr().err
    (corpus / f"r{held}.wav").write_bytes(sound)
    assert infer("--shard", "2/2") == 0
    (corpus / "out.shard-2-of-2" / f"{IDS[held]}.wav").unlink()
    assert join(corpus) == 2
    assert f"{IDS[held]} not finished; run the shard 2/2 again" in capsys.readouterr().err
    assert infer("--shard", "2/2") == 0
    with locked_manifest(corpus / "out.shard-2-of-2"):
        assert join(corpus) == 2
    assert "another run is writing there" in capsys.readouterr().err
    assert join(corpus) == 0


def test_shards_of_other_settings_or_another_division_are_not_joined(
    infer: Run, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer("--shard", "1/2") == 0
    assert infer("--shard", "2/2", seed="8") == 0
    assert join(corpus) == 2
    assert "its outputs were made with seed" in capsys.readouterr().err
    assert infer("--shard", "2/2", "--overwrite") == 0
    assert infer("--shard", "1/3") == 0
    assert join(corpus) == 2
    assert "shards of two divisions" in capsys.readouterr().err
    shutil.rmtree(corpus / "out.shard-1-of-3")
    assert infer(out="out") == 0
    (corpus / "out" / "manifest.jsonl").write_text('{"type": "run"}\n')
    assert join(corpus) == 2
    assert "there is another manifest" in capsys.readouterr().err


def test_an_earlier_complete_folder_is_not_taken_for_the_joined_one(
    infer: Run, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(seed="1") == 0
    before = contents(corpus / "out")
    for number in (1, 2):
        assert infer("--shard", f"{number}/2", seed="2") == 0
    assert join(corpus) == 2
    assert "there is another manifest" in capsys.readouterr().err
    assert contents(corpus / "out") == before
    assert len(find_shards(corpus / "out")) == 2
    shutil.rmtree(corpus / "out")
    assert join(corpus) == 0
    assert contents(corpus / "out").keys() == before.keys()
    assert contents(corpus / "out") != before


@pytest.mark.parametrize("more", [[], ["--on-failure", "copy-silence"]])
def test_a_data_directory_of_one_run_with_a_failure_is_not_completed(
    artifacts: Artifacts, corpus: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "r0.wav").write_bytes((corpus / "r0.wav").read_bytes()[:-1000])
    arguments = ["infer", "--data-dir", str(corpus / "data"), "--gpus", "cpu", "--seed", "7", "--quiet"]
    main([*arguments, "--model", str(artifacts.model), "--bank", str(artifacts.bank), *more])
    before = contents(corpus / "data_mkc")
    capsys.readouterr()
    assert main(["merge", "--data-dir", str(corpus / "data")]) == 2
    assert "there are no shards of it" in capsys.readouterr().err
    assert contents(corpus / "data_mkc") == before


def test_a_run_in_the_output_folder_keeps_merge_out(
    infer: Run, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    for number in (1, 2):
        assert infer("--shard", f"{number}/2") == 0
    with monkeypatch.context() as patch:
        patch.setattr(merge, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            merge.merge_corpus(audio_list=corpus / "wav.scp", out=corpus / "out")
    with locked_manifest(corpus / "out"):
        assert join(corpus) == 2
    assert "another run is writing there" in capsys.readouterr().err
    assert join(corpus) == 0


def test_what_other_versions_computed_is_joined_only_if_asked(
    infer: Run, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        assert infer("--shard", f"{number}/2") == 0
    manifest = corpus / "out.shard-2-of-2" / "manifest.jsonl"
    header, *rest = manifest.read_text().splitlines(keepends=True)
    said = json.loads(header)
    said["ran"]["onnxruntime"] = "0.0"
    manifest.write_text("".join([json.dumps(said) + "\n", *rest]))
    assert join(corpus) == 2
    assert "other onnxruntime" in capsys.readouterr().err
    assert join(corpus, "--allow-mixed") == 0
    lines = [json.loads(line) for line in (corpus / "out" / "manifest.jsonl").read_text().splitlines()]
    assert lines[1]["ran"]["onnxruntime"] == "0.0"
    assert {line["id"] for line in lines[2:] if line.get("ran") == 1} == {n for n in IDS if Shard(2, 2).holds(n)}


def test_silence_is_joined_and_the_next_run_tries_the_recording_again(infer: Run, corpus: Path) -> None:
    sound = (corpus / "r0.wav").read_bytes()
    (corpus / "r0.wav").write_bytes(sound[:-1000])
    for number in (1, 2):
        assert infer("--shard", f"{number}/2", "--on-failure", "copy-silence") == 0
    assert join(corpus) == 0
    assert not soundfile.read(corpus / "out" / f"{IDS[0]}.wav")[0].any()
    (corpus / "r0.wav").write_bytes(sound)
    assert infer() == 0
    assert soundfile.read(corpus / "out" / f"{IDS[0]}.wav")[0].any()


def test_private_manifests_are_joined(infer: Run, corpus: Path) -> None:
    for number in (1, 2):
        assert infer("--shard", f"{number}/2", "--private-manifest") == 0
    assert join(corpus) == 0
    assert str(corpus) not in (corpus / "out" / "manifest.jsonl").read_text()
    assert infer("--private-manifest") == 0


def test_more_shards_than_utterances_are_joined(infer: Run, corpus: Path, artifacts: Artifacts) -> None:
    assert infer(out="whole") == 0
    for number in range(1, 41):
        if not any(Shard(number, 40).holds(name) for name in IDS):
            assert infer("--shard", f"{number}/40") == 0, "a shard without an utterance is no error"
            break
    for name in IDS:
        number = next(number for number in range(1, 41) if Shard(number, 40).holds(name))
        assert infer("--shard", f"{number}/40") == 0
    assert join(corpus) == 0
    assert contents(corpus / "out") == contents(corpus / "whole")
    assert not find_shards(corpus / "out")


@pytest.mark.parametrize("options", [{"level": "speaker"}, {"level": "constant"}, {"kmeans_num": 2}])
def test_draws_that_shards_share_need_a_seed(artifacts: Artifacts, corpus: Path, options: dict[str, object]) -> None:
    def run(seed: int | None) -> None:
        anonymize_corpus(
            artifacts.model,
            artifacts.bank,
            audio_list=corpus / "wav.scp",
            out=corpus / "out",
            shard=Shard(1, 2),
            seed=seed,
            devices=["cpu"],
            **options,  # type: ignore[arg-type]
        )

    with pytest.raises(ArgumentError, match="need the same seed"):
        run(None)
    assert not (corpus / "out.shard-1-of-2").exists()
    run(3)


def test_vpc_run_is_sharded_too(artifacts: Artifacts, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = corpus / "checkout" / "data"
    for name in ("libri_dev_enrolls", "libri_dev_trials_f"):
        shutil.copytree(corpus / "data", root / name)
    arguments = ["vpc", "run", "--data", str(root), "--model", str(artifacts.model), "--gpus", "cpu", "--quiet"]
    arguments += ["--bank-user", str(artifacts.bank), "--bank-attacker", str(artifacts.bank), "--seed", "7"]
    for number in (1, 2):
        assert main([*arguments, "--shard", f"{number}/2"]) == 0
    assert main(["merge", "--data", str(root)]) == 0
    assert main([*arguments, "--anon-suffix", "_whole"]) == 0
    for name in ("libri_dev_enrolls", "libri_dev_trials_f"):
        made, whole = contents(root / f"{name}_mkc"), contents(root / f"{name}_whole")
        made["wav.scp"] = made["wav.scp"].replace(b"_mkc/", b"_whole/")
        assert made == whole
    assert main(["vpc", "check", str(root)]) == 0
    capsys.readouterr()
    with pytest.raises(MkcError, match="no shards"):
        merge_sets(root)


def test_an_output_folder_that_is_called_by_a_dot_has_shards_beside_it(
    artifacts: Artifacts, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus / "here").mkdir()
    monkeypatch.chdir(corpus / "here")
    for number in (1, 2):
        anonymize_corpus(
            artifacts.model,
            artifacts.bank,
            audio_list=corpus / "wav.scp",
            out=".",
            shard=Shard(number, 2),
            seed=1,
            devices=["cpu"],
        )
    merge.merge_corpus(audio_list=corpus / "wav.scp", out=".")
    assert len(list((corpus / "here").glob("*.wav"))) == len(IDS)
    with pytest.raises(OutputError, match="no shards"):
        merge.merge_corpus(audio_list=corpus / "wav.scp", out=corpus / "nowhere")
