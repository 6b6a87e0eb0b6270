"""A conformer + vocoder checkpoint that is a bare state dict, and the YAML file of its sizes."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch

from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.published import VoiceCheckpoint, load_voice
from mkc_fast.export.checkpoints.sizes_file import read_sizes
from mkc_fast.export.random_checkpoints import write_voice

SMALL = "feature_dim: 64\nconformer_num_heads: 4\nffn_dim: 128\nconformer_num_layers: 3\n"


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    (tmp_path / "sizes.yaml").write_text(SMALL)
    return tmp_path / "sizes.yaml"


@pytest.fixture
def hifi(tmp_path: Path) -> Path:
    write_voice(tmp_path / "whole.pt")
    own = torch.load(tmp_path / "whole.pt", weights_only=True)["extra"]["model_config"]["hifi_config"]
    (tmp_path / "hifi.json").write_text(json.dumps(own))
    return tmp_path / "hifi.json"


def assert_same(found: VoiceCheckpoint, expected: VoiceCheckpoint) -> None:
    assert (found.conformer, found.hifigan) == (expected.conformer, expected.hifigan)
    for part in ("conformer_weights", "hifigan_weights"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_a_bare_state_dict_is_the_checkpoint_without_its_sizes(
    prefix: str, tmp_path: Path, sizes: Path, hifi: Path
) -> None:
    write_voice(tmp_path / "bare.pt", bare=True, prefix=prefix)
    assert_same(load_voice(tmp_path / "bare.pt", hifi, sizes), load_voice(tmp_path / "whole.pt"))


def test_sizes_may_be_given_for_a_checkpoint_that_lost_them(tmp_path: Path, sizes: Path, hifi: Path) -> None:
    loaded = torch.load(tmp_path / "whole.pt", weights_only=True)
    torch.save({"model_state_dict": loaded["model_state_dict"]}, tmp_path / "lost.pt")
    assert_same(load_voice(tmp_path / "lost.pt", hifi, sizes), load_voice(tmp_path / "whole.pt"))
    with pytest.raises(CheckpointError, match=r"expected keys extra\.model_config"):
        load_voice(tmp_path / "lost.pt", hifi)


def test_without_sizes_they_are_the_published_ones_and_every_difference_is_said(tmp_path: Path, hifi: Path) -> None:
    write_voice(tmp_path / "bare.pt", bare=True)
    with pytest.raises(CheckpointError) as error:
        load_voice(tmp_path / "bare.pt", hifi)
    for words in (
        "feature_dim 64, not 1024",
        "ffn_dim 128, not 4096",
        "conformer_num_layers 3, not 12",
        "(the published size)",
        "--config",
    ):
        assert words in str(error.value)
    assert "kernel_size" not in str(error.value)


def test_a_size_that_the_weights_do_not_have_is_refused(tmp_path: Path, sizes: Path, hifi: Path) -> None:
    write_voice(tmp_path / "bare.pt", bare=True)
    for line in ("ffn_dim: 256", "conformer_num_layers: 2", "kernel_size: 5", "feature_dim: 32"):
        sizes.write_text(f"{SMALL}{line}\n")
        name, value = line.split(": ")
        with pytest.raises(CheckpointError, match=rf"{name} \d+, not {value} .*sizes\.yaml"):
            load_voice(tmp_path / "bare.pt", hifi, sizes)
    sizes.write_text(f"{SMALL}conformer_num_heads: 5\n")
    with pytest.raises(CheckpointError, match="do not divide into 5 heads"):
        load_voice(tmp_path / "bare.pt", hifi, sizes)


def test_a_vocoder_alone_takes_no_sizes(tmp_path: Path, sizes: Path, hifi: Path) -> None:
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)["model_state_dict"]
    vocoder = {k.removeprefix("hifi.model."): v for k, v in whole.items() if k.startswith("hifi.")}
    torch.save({"generator": vocoder}, tmp_path / "vocoder.pt")
    assert load_voice(tmp_path / "vocoder.pt", hifi).conformer.num_layers == 0
    with pytest.raises(CheckpointError, match="no conformer"):
        load_voice(tmp_path / "vocoder.pt", hifi, sizes)


def test_a_state_dict_of_something_else_is_no_conformer(tmp_path: Path, sizes: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "other.pt")
    for given in (None, sizes):
        with pytest.raises(CheckpointError, match="not a conformer checkpoint"):
            load_voice(tmp_path / "other.pt", None, given)


def test_the_published_file_of_sizes_is_read(tmp_path: Path) -> None:
    # Of the LJSpeech model: its other sizes are the published ones.
    (tmp_path / "k_1024.yaml").write_text("ffn_dim: 2048\nconformer_num_layers: 6")
    assert read_sizes(tmp_path / "k_1024.yaml") == {"ffn_dim": 2048, "conformer_num_layers": 6}


def test_other_entries_of_a_training_configuration_are_not_looked_at(sizes: Path) -> None:
    sizes.write_text("dropout: 0.1\noptim: {lr: 1.0e-4, betas: [0.9, 0.98]}\nname: x\n7: y\n? [a]\n: b\n" + SMALL)
    assert read_sizes(sizes) == {"feature_dim": 64, "conformer_num_heads": 4, "ffn_dim": 128, "conformer_num_layers": 3}


def test_tags_and_aliases_of_a_file_of_sizes_have_no_effect(sizes: Path) -> None:
    bomb = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
    sizes.write_text(f"{bomb}run: !!python/object/apply:os.system ['touch {sizes.parent}/ran']\n{SMALL}")
    assert read_sizes(sizes)["ffn_dim"] == 128
    assert not (sizes.parent / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "ffn_dim",
        "ffn_dim: {",
        "ffn_dim: 2048.0",
        "ffn_dim: '2048'",
        "ffn_dim: [2048]",
        "ffn_dim: 0x10",
        "ffn_dim: !!python/object/apply:os.system ['true']",
        "ffn_dim: " + "9" * 5000,
        "ffn_dim: 1\n---\nffn_dim: 2",
        "x: " + "[" * 30000,
        "ffn_dim: \x00",
        "# " + "x" * 70000,
        "a: *b",
    ],
)
def test_a_file_of_other_things_is_refused_in_one_line(text: str, sizes: Path) -> None:
    sizes.write_text(text)
    with pytest.raises(CheckpointError) as error:
        read_sizes(sizes)
    assert str(error.value).startswith(f"{sizes}: ")
    assert "\n" not in str(error.value)


def test_a_pickle_or_a_folder_is_no_file_of_sizes(sizes: Path) -> None:
    for make in (lambda: sizes.write_bytes(pickle.dumps({"ffn_dim": 1})), lambda: (sizes.unlink(), sizes.mkdir())):
        make()
        with pytest.raises(CheckpointError):
            read_sizes(sizes)


def test_every_field_of_the_conformer_is_compared(tmp_path: Path, sizes: Path, hifi: Path) -> None:
    write_voice(tmp_path / "bare.pt", bare=True)
    loaded = load_voice(tmp_path / "bare.pt", hifi, sizes).conformer
    assert dataclasses.asdict(loaded) == {"dim": 64, "num_heads": 4, "ffn_dim": 128, "num_layers": 3, "kernel_size": 3}
