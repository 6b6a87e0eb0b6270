"""The research scripts' command lines run with only the script's name changed: each row of docs/scripts.md."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mkc_fast import Anonymizer
from mkc_fast.cli import main
from mkc_fast.cli.arguments import normalized
from mkc_fast.engine.artifacts import open_bank
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.audio.waveform import to_pcm16
from mkc_fast.export import build_bank
from mkc_fast.export.checkpoints import configs
from mkc_fast.export.random_checkpoints import Checkpoints, write_voice
from tests.conftest import ROOT, Artifacts, MakeOnce

SMALL = {"feature_dim": 64, "conformer_num_heads": 4, "ffn_dim": 128, "conformer_num_layers": 3, "kernel_size": 3}
SINGLE = "ckpt/LibriSpeech_wavlm_k1000_L7.pt"
_EXP = "exp/multiple_kmeans_train_one_conformer"
# What the scripts' own texts say: default checkpoint, mode.
SCRIPTS = {
    "sef-mk inference_audio_multi_kmeans.py": ("librispeech_conformer_e_50.pth", "audio"),
    "inference_audio.py": ("step160000_model.pth", "audio"),
    "inference_audio_multi_kmeans.py": ("step160000_model.pth", "audio"),
    "inference_audio_fusion.py": ("", ""),
    "exp/kmeans_random_frame/inference_audio.py": ("step160000_model.pth", "frame"),
    "exp/multiple_kmeans/inference_audio_multi_kmeans.py": ("librispeech_conformer_e_43.pth", "audio"),
    f"{_EXP}/inference_audio_multi_kmeans.py": ("librispeech_conformer_e_50.pth", "audio"),
    f"{_EXP}/inference_audio_multi_kmeans_xx.py": ("step160000_model.pth", "audio"),
    f"{_EXP}/inference_audio_random_frame.py": ("librispeech_conformer_e_50.pth", "frame"),
}


def rows() -> list[tuple[str, str]]:
    """Script and command of each row of the table; a script of sef-mk is named with it."""
    section = (ROOT / "docs" / "scripts.md").read_text().partition("## The scripts")[2].partition("\n## ")[0]
    found, repository = [], ""
    for first, second in re.findall(r"^\| (.+?) \| (.*?) \|", section, re.MULTILINE):
        if first.startswith("**"):
            repository = "sef-mk " if "sef-mk" in first else ""
        elif first.startswith("`"):
            found.append((repository + first.strip("`"), second.strip("`")))
    return found


COMMANDS = [row for row in rows() if row[1].startswith("mkc-fast")]


@pytest.fixture
def here(
    checkpoints: Checkpoints, clip: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_once: MakeOnce
) -> Path:
    """A working directory as the scripts expect it, without the conformer; conversions are kept for all tests."""
    monkeypatch.setenv("MKC_FAST_CACHE", str(make_once("scripts-cache", lambda _: None)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpt" / "LJSpeech").mkdir(parents=True)
    (tmp_path / "kmeans").mkdir()
    models = sorted((checkpoints.kmeans_scp.parent / "kmeans").iterdir())
    shutil.copy(checkpoints.wavlm, "ckpt/WavLM-Large.pt")
    shutil.copy(models[3], SINGLE)
    shutil.copy(models[4], "ckpt/LJSpeech/kmeans-cluster-1024-k_1024.pt")
    for model, name in zip(models, "abcde", strict=False):
        shutil.copy(model, f"kmeans/{name}.pt")
    Path("kmeans.scp").write_text("".join(f"spk_{name} kmeans/{name}.pt\n" for name in "abcde"))
    Path("ckpt/LJSpeech/k_1024.yaml").write_text("".join(f"{key}: {value}\n" for key, value in SMALL.items()))
    own = torch.load(checkpoints.ckpt, weights_only=True)["extra"]["model_config"]["hifi_config"]
    Path("hifigan_config_v1_wavlm.json").write_text(json.dumps(own))
    write_voice(Path("bare.pt"), bare=True)
    shutil.copy("bare.pt", "ckpt/LJSpeech/LJSpeech_k_1024_model.pt")
    for index in range(3):
        soundfile.write(f"{index}.wav", clip[index * 9000 : (index + 1) * 9000], 16000)
    Path("audio.scp").write_text("0.wav\n1.wav\n2.wav\n")
    return tmp_path


@pytest.fixture
def small_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in SMALL.items():
        monkeypatch.setitem(configs.CONFORMER_PUBLISHED, name, size)  # type: ignore[arg-type]


def put_conformer(name: str, checkpoints: Checkpoints) -> None:
    """The scripts' default checkpoint: a bare state dict for the older ones."""
    shutil.copy("bare.pt" if name.startswith("step") else checkpoints.ckpt, f"ckpt/{name}")


def refused(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused before anything is written."""
    capsys.readouterr()
    assert main(shlex.split(command)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert not Path("out").exists()
    return line


def test_the_table_has_every_script() -> None:
    assert {script for script, _ in rows()} == set(SCRIPTS)
    assert {script for script, _ in COMMANDS} == set(SCRIPTS) - {"inference_audio_fusion.py"}


@pytest.mark.parametrize(
    ("script", "command"), COMMANDS, ids=[f"{number}-{script}" for number, (script, _) in enumerate(COMMANDS)]
)
def test_the_command_gives_what_the_pass_gives_in_the_mode_of_the_script(
    script: str,
    command: str,
    here: Path,
    checkpoints: Checkpoints,
    artifacts: Artifacts,
    request: pytest.FixtureRequest,
) -> None:
    conformer, mode = SCRIPTS[script]
    put_conformer(conformer, checkpoints)
    if ".yaml" not in command:
        request.getfixturevalue("small_is_published")
    arguments = shlex.split(command)[1:]
    assert main([re.sub(r"cuda:\d", "cpu", argument) for argument in arguments] + ["--seed", "7"]) == 0

    given = normalized(arguments)
    values = dict(itertools.pairwise(given))
    files = [value for name, value in itertools.pairwise(given) if name == "--kmeans-path"]
    build_bank(values.get("--kmeans-scp") or files or [SINGLE], "bank", cache=False)
    with Anonymizer.load(artifacts.model, "bank") as anonymizer:
        subset = values.get("--kmeans-num") or values.get("--num-kmeans")
        entries = anonymizer.draw_entries(int(subset), seed=7) if subset else None
        for name in "012":
            expected = anonymizer.anonymize(
                read_waveform(Path(f"{name}.wav"), 16000),
                mode=mode,  # type: ignore[arg-type]
                stride=int(values.get("--stride", 1)),
                seed=7,
                utterance_id=name,
                entries=entries,
            )
            found, rate = soundfile.read(f"out/{name}.wav", dtype="int16")
            assert rate == 16000
            np.testing.assert_array_equal(found, to_pcm16(expected.waveform))


def test_paths_that_are_not_given_are_said(
    here: Path, checkpoints: Checkpoints, small_is_published: None, capsys: pytest.CaptureFixture[str]
) -> None:
    put_conformer("step160000_model.pth", checkpoints)
    assert main(shlex.split("infer --audio_scp audio.scp --output_dir out --gpus cpu")) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("no --")]
    assert said == [
        "no --wavlm-ckpt is given: ckpt/WavLM-Large.pt is used",
        "no --ckpt is given: ckpt/step160000_model.pth is used",
        "no --hifi-config is given: hifigan_config_v1_wavlm.json is used",
        f"no --kmeans-path is given: {SINGLE} is used",
    ]


def test_the_mode_that_is_not_given_is_said(
    here: Path, checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    put_conformer("librispeech_conformer_e_50.pth", checkpoints)
    start = "infer --audio_scp audio.scp --gpus cpu --output_dir "
    assert main(shlex.split(f"{start} a --kmeans_scp kmeans.scp")) == 0
    assert "no --mode is given: it is frame" in capsys.readouterr().err
    assert main(shlex.split(f"{start} b --kmeans_path kmeans/a.pt kmeans/b.pt")) == 0
    assert "no --mode is given: with --kmeans-path it is audio" in capsys.readouterr().err
    assert main(shlex.split(f"{start} c --kmeans_path kmeans/a.pt kmeans/b.pt --mode frame")) == 0
    shown = capsys.readouterr().err
    assert "no --mode" not in shown
    assert "frame mode, stride 1" in shown


def test_without_the_scripts_files_it_says_what_to_give(
    here: Path, checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    start = "infer --audio_scp audio.scp --output_dir out --gpus cpu"
    assert "give --model, or --wavlm-ckpt and --ckpt" in refused(start, capsys)
    put_conformer("librispeech_conformer_e_50.pth", checkpoints)
    put_conformer("step160000_model.pth", checkpoints)
    two = refused(start, capsys)
    assert "ckpt/librispeech_conformer_e_50.pth or ckpt/step160000_model.pth" in two
    Path("ckpt/step160000_model.pth").unlink()
    Path(SINGLE).unlink()
    assert "give --bank, --kmeans-scp or --kmeans-path" in refused(start, capsys)
    Path("ckpt/WavLM-Large.pt").unlink()
    assert "give --model" in refused(f"{start} --kmeans_scp kmeans.scp", capsys)


def test_an_exported_model_never_takes_the_scripts_k_means_model(
    here: Path, artifacts: Artifacts, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"infer --audio_scp audio.scp --output_dir out --gpus cpu --model {artifacts.model}"
    assert "give --bank" in refused(command, capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--ckpt a.pt --ckpt_path b.pt", "not both"),
        ("--model m --ckpt_path a.pt", "not both"),
        ("--model m --bank b --config a.yaml", "has its own"),
        ("--ckpt_path bare.pt --kmeans_scp kmeans.scp --kmeans_path kmeans/a.pt", "--kmeans-path, not two"),
        ("--ckpt_path bare.pt --bank b --kmeans_path kmeans/a.pt", "--kmeans-path, not two"),
        ("--ckpt_path bare.pt --kmeans_path kmeans/a.pt ./kmeans/a.pt", "a.pt is there twice"),
        ("--ckpt_path bare.pt other.pt --config none none --kmeans_path kmeans/a.pt kmeans/b.pt", "split the list"),
        ("--ckpt_path unseen.pt --kmeans_path kmeans/a.pt", "ffn_dim 128, not 4096"),
        ("--ckpt_path bare.pt --kmeans_path kmeans/a.pt --config gone.yaml", "gone.yaml: cannot be read"),
        ("--ckpt_path bare.pt --kmeans_path kmeans/a.pt --config", "--config"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    options: str, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_voice(Path("unseen.pt"), bare=True, seed=1)  # bare.pt may be in the cache
    assert words in refused(f"infer --audio_scp audio.scp --output_dir out --gpus cpu {options}", capsys)


def test_a_checkpoint_with_sizes_takes_no_others(
    here: Path, checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"--ckpt {checkpoints.ckpt} --config ckpt/LJSpeech/k_1024.yaml --kmeans_path kmeans/a.pt"
    line = refused(f"infer --audio_scp audio.scp --output_dir out --gpus cpu {options}", capsys)
    assert "has sizes of its own" in line


def test_a_bare_state_dict_is_exported_with_its_sizes(here: Path) -> None:
    options = "--wavlm-ckpt ckpt/WavLM-Large.pt --ckpt bare.pt --hifi-config hifigan_config_v1_wavlm.json"
    assert main(shlex.split(f"export {options} --out model")) == 2
    assert main(shlex.split(f"export {options} --out model --config ckpt/LJSpeech/k_1024.yaml")) == 0
    assert Path("model/model.json").is_file()


def test_k_means_models_are_named_by_their_files(here: Path) -> None:
    for folder in ("x", "y"):
        Path(folder).mkdir()
        shutil.copy("kmeans/a.pt", f"{folder}/k.pt")
    shutil.copy("kmeans/b.pt", "kmeans/b.bin")
    paths = {
        ("kmeans/a.pt", "kmeans/c.pt"): ["a", "c"],
        ("x/k.pt", "kmeans/a.pt", "y/k.pt"): ["x/k", "kmeans/a", "y/k"],
        ("kmeans/b.pt", "kmeans/b.bin"): ["b.pt", "b.bin"],
    }
    for given, names in paths.items():
        assert build_bank(given, "bank", overwrite=True, cache=False).names == names
        assert open_bank(Path("bank")).info.names == names


def test_a_list_whose_names_recur_is_named_by_its_files(here: Path) -> None:
    # As the repositories' shell commands write it: they cut a character too many off the names of .pt files.
    Path("cut.scp").write_text("spk_47 kmeans/a.pt\nspk_47 kmeans/b.pt\nspk_9 kmeans/c.pt\n")
    assert build_bank("cut.scp", "bank", cache=False).names == ["a", "b", "c"]
