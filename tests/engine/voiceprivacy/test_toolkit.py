"""A toolkit runs mkc-fast as its pipeline, over the sets, devices and levels it asks for; and is left as it was."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mkc_fast.engine.voiceprivacy.checkout import recognize
from mkc_fast.engine.voiceprivacy.config import Settings
from mkc_fast.engine.voiceprivacy.sets import known_sets
from mkc_fast.engine.voiceprivacy.toolkit import PIPELINE, install, remove
from mkc_fast.errors import ArgumentError, ArtifactError, OutputError
from tests.conftest import ROOT, Artifacts
from tests.fakes.toolkits import calls, make_checkout, make_command, make_example, run_toolkit, tree


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A command in a folder with an odd name."""
    return make_command(tmp_path / "it's: <bin> #1")


@pytest.fixture
def settings(artifacts: Artifacts, command: Path) -> Settings:
    """Settings of small artifacts and the command that records."""
    return Settings(artifacts.model, artifacts.bank, artifacts.bank, [str(command), "--odd word"], seed=7)


def values(arguments: object, option: str) -> list[str]:
    assert isinstance(arguments, list)
    return [arguments[place + 1] for place, word in enumerate(arguments) if word == option]


def installed(root: Path, settings: Settings, **changes: object) -> Path:
    return install(recognize(root), settings, **changes).configs[-1]  # type: ignore[arg-type]


def arguments_of(command: Path) -> list[str]:
    (call,) = calls(command)
    assert isinstance(call["arguments"], list)
    return call["arguments"]


def test_the_pipeline_is_of_python_3_8_and_of_the_standard_library() -> None:
    code = ast.parse((ROOT / "engine/voiceprivacy/template_pipeline.py.txt").read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(code) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"os", "shlex", "subprocess"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(code))


def test_the_toolkit_anonymizes_all_its_sets_with_one_call(tmp_path: Path, settings: Settings, command: Path) -> None:
    root = make_checkout(tmp_path / "a checkout")
    config = installed(root, settings)
    assert config == root / "configs" / "anon_mkc.yaml"
    ran = run_toolkit(root, "--config", "configs/anon_mkc.yaml")
    assert (ran.returncode, ran.stderr) == (0, "progress\n")
    (call,) = calls(command)
    said = call["arguments"]
    assert isinstance(said, list)
    assert said[:5] == ["--odd word", "vpc", "run", "--data", "data"]
    assert sorted(values(said, "--set")) == sorted(known_sets(2024, 1))
    expected = {
        "--model": str(settings.model), "--bank-user": str(settings.bank_user),
        "--bank-attacker": str(settings.bank_attacker), "--mode": "frame", "--stride": "1", "--seed": "7",
        "--level": "utterance", "--anon-suffix": "_mkc", "--results-dir": "wav", "--gpus": "cuda:0",
    }  # fmt: skip
    assert {option: values(said, option) for option in expected} == {key: [value] for key, value in expected.items()}
    assert not {"--kmeans-num", "--overwrite", "--pad", "--level-of", "--role-of"} & set(said)
    environment = call["environment"]
    assert isinstance(environment, dict)
    assert "PYTHONPATH" not in environment, "the toolkit's packages would be loaded"
    assert call["cwd"] == str(root)


def test_each_track_of_2026_has_a_config(tmp_path: Path, settings: Settings, command: Path) -> None:
    root = make_checkout(tmp_path / "checkout", "track1", "track2")
    done = install(recognize(root), settings)
    assert done.configs == (root / "configs/track2/anon_mkc.yaml", root / "configs/track1/anon_mkc.yaml")
    for config, track in zip(done.configs, (2, 1), strict=True):
        assert run_toolkit(root, "--config", str(config)).returncode == 0
        said = calls(command)[-1]["arguments"]
        assert sorted(values(said, "--set")) == sorted(known_sets(2026, track))


def test_sets_that_data_does_not_have_are_left_out_and_named(tmp_path: Path, settings: Settings, command: Path) -> None:
    root = make_checkout(tmp_path / "a checkout")
    present = ["libri_dev_enrolls", "libri_dev_trials_f", "IEMOCAP_test"]
    for name in present:
        (root / "data" / name).mkdir(parents=True)
    done = install(recognize(root), settings)
    (note,) = done.notes
    for name in known_sets(2024, 1):
        assert (name in note) == (name not in present), name
        assert f"{name.split('_trials')[0].split('_enrolls')[0]}" in done.configs[-1].read_text()
    assert run_toolkit(root, "--config", "configs/anon_mkc.yaml").returncode == 0
    assert sorted(values(arguments_of(command), "--set")) == sorted(present)


def test_a_track_that_is_not_there_gets_no_config(tmp_path: Path, settings: Settings) -> None:
    root = make_checkout(tmp_path / "checkout", "track1")
    assert install(recognize(root), settings).configs == (root / "configs/track1/anon_mkc.yaml",)
    with pytest.raises(ArgumentError, match="has no track 2 here; it has track 1"):
        install(recognize(root), settings, tracks=[2])


@pytest.mark.parametrize(
    ("options", "environment", "gpus"),
    [
        ([], {}, ["cuda:0"]),
        (["--gpu_ids", "2,3"], {}, ["cuda:0", "cuda:1"]),
        (["--gpu_ids", "3,1"], {}, ["cuda:0", "cuda:1"]),
        (["--gpu_ids", "1"], {}, ["cuda:0"]),
        ([], {"CUDA_VISIBLE_DEVICES": "2,3"}, ["cuda:0", "cuda:1"]),
        ([], {"CUDA_VISIBLE_DEVICES": "1,2"}, ["cuda:0", "cuda:1"]),
        ([], {"CUDA_VISIBLE_DEVICES": "GPU-8a,GPU-9b"}, ["cuda:0", "cuda:1"]),
        (["--cpu"], {}, ["cpu"]),
    ],
)
def test_devices_are_called_as_cuda_counts_them(
    tmp_path: Path, settings: Settings, command: Path, options: list[str], environment: dict[str, str], gpus: list[str]
) -> None:
    root = make_checkout(tmp_path / "checkout")
    config = installed(root, settings)
    assert run_toolkit(root, "--config", str(config), *options, **environment).returncode == 0
    assert sorted(values(arguments_of(command), "--gpus")) == gpus


def test_devices_of_the_toolkit_keep_their_order() -> None:
    gpus = pipeline()["gpus"]
    assert gpus(["cuda:5", "cuda:7"], "7,6,5") == ["cuda:2", "cuda:0"]
    assert gpus(["cuda:1", "cuda:1"], None) == ["cuda:1"]
    assert gpus(["cpu"], "") == ["cpu"]
    assert gpus([0, "cuda"], None) == ["cuda:0"]
    with pytest.raises(RuntimeError, match="cuda:4 is not among CUDA_VISIBLE_DEVICES=2,3"):
        gpus(["cuda:4"], "2,3")


def pipeline() -> dict[str, Any]:
    """What the pipeline's file defines."""
    names: dict[str, Any] = {"__file__": "/c/anonymization/pipelines/template/__init__.py"}
    exec((ROOT / "engine/voiceprivacy/template_pipeline.py.txt").read_text(), names)
    return names


def test_force_compute_starts_over(tmp_path: Path, settings: Settings, command: Path) -> None:
    root = make_checkout(tmp_path / "checkout")
    config = installed(root, settings)
    run_toolkit(root, "--config", str(config), "--force_compute", "True")
    assert "--overwrite" in arguments_of(command)


def test_sets_that_are_left_out_of_the_config_are_left_out(tmp_path: Path, settings: Settings, command: Path) -> None:
    root = make_checkout(tmp_path / "checkout")
    config = installed(root, settings)
    text = config.read_text()
    text = text.replace("  - name: IEMOCAP_dev\n    data: IEMOCAP_dev\n", "").replace(
        "[_trials_f, _trials_m]", "[_trials_f]"
    )
    config.write_text(text)
    run_toolkit(root, "--config", str(config))
    assert sorted(values(arguments_of(command), "--set")) == [
        "IEMOCAP_test", "libri_dev_enrolls", "libri_dev_trials_f", "libri_test_enrolls", "libri_test_trials_f",
        "train-clean-360",
    ]  # fmt: skip


def test_the_levels_of_the_config_are_honoured(tmp_path: Path, settings: Settings, command: Path) -> None:
    root = make_checkout(tmp_path / "checkout")
    config = installed(root, settings)
    with config.open("a") as file:
        file.write(
            "  anon_level_constant: [IEMOCAP_dev, IEMOCAP_test, libri_test_trials_f]\n"
            "  anon_level_random_per_utt: [IEMOCAP_test]\n"
            "  anon_level_utt: [libri_dev_enrolls]\n"
            "  anon_level_spk: [libri_dev, libri_test_trials_f]\n"
        )
    run_toolkit(root, "--config", str(config))
    assert sorted(values(arguments_of(command), "--level-of")) == [
        "IEMOCAP_dev=constant", "libri_dev_enrolls=speaker", "libri_dev_trials_f=speaker",
        "libri_dev_trials_m=speaker", "libri_test_trials_f=speaker",
    ]  # fmt: skip


def test_lists_can_bring_sets_back_to_utterances(tmp_path: Path, settings: Settings, command: Path) -> None:
    root = make_checkout(tmp_path / "checkout")
    config = installed(root, replace(settings, level="speaker"))
    with config.open("a") as file:
        file.write("  anon_level_utt: [train-clean-360]\n  roles: {train-clean-360: user}\n")
    run_toolkit(root, "--config", str(config))
    said = arguments_of(command)
    assert values(said, "--level") == ["speaker"]
    assert values(said, "--level-of") == ["train-clean-360=utterance"]
    assert values(said, "--role-of") == ["train-clean-360=user"]


def test_paths_and_texts_are_both_taken_and_each_folder_has_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    names = pipeline()
    ran: list[list[str]] = []
    monkeypatch.setitem(names, "run", ran.append)
    modules = {"command": ["x", "y"], "model": Path("/m"), "bank_user": "/u", "bank_attacker": "/a"}
    config = {"modules": modules, "anon_suffix": "_z", "results_dir": Path("wav"), "data_dir": Path("data")}
    made = names["TemplatePipeline"](config=config, force_compute=False, devices=[])
    made.run_anonymization_pipeline({"a": "/one/a", "b": Path("/two/b"), "c": "/one/c/"})
    assert [(values(words, "--data"), values(words, "--set")) for words in ran] == [
        (["/one"], ["a", "c"]),
        (["/two"], ["b"]),
    ]
    assert ran[0][:4] == ["x", "y", "vpc", "run"]
    assert values(ran[0], "--anon-suffix") == ["_z"]


def test_the_toolkit_stops_if_the_command_fails(tmp_path: Path, settings: Settings) -> None:
    root = make_checkout(tmp_path / "checkout")
    config = installed(root, settings)
    ran = run_toolkit(root, "--config", str(config), FAKE_EXIT="3")
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: mkc-fast ended with exit code 3")
    assert "run the same command again" in last


def test_the_toolkit_stops_if_the_command_is_gone(tmp_path: Path, settings: Settings, command: Path) -> None:
    root = make_checkout(tmp_path / "checkout")
    config = installed(root, settings)
    command.unlink()
    ran = run_toolkit(root, "--config", str(config))
    assert ran.returncode == 1
    assert "cannot be run (No such file or directory): install mkc-fast there" in ran.stderr.splitlines()[-1]


def test_a_config_of_another_pipeline_is_refused(tmp_path: Path, settings: Settings) -> None:
    root = make_checkout(tmp_path / "checkout")
    config = installed(root, settings)
    config.write_text("pipeline: template\ndata_dir: data\ndatasets: []\nmodules: {x: 1}\n")
    ran = run_toolkit(root, "--config", str(config))
    assert "has no command, model, bank_user, bank_attacker under 'modules'" in ran.stderr.splitlines()[-1]


def without_caches(found: dict[str, str]) -> dict[str, str]:
    """A tree without what Python caches of the toolkit's own packages."""
    return {name: what for name, what in found.items() if "__pycache__" not in name}


@pytest.mark.parametrize("tracks", [(), ("track1", "track2")])
def test_remove_leaves_the_checkout_as_it_was(tmp_path: Path, settings: Settings, tracks: tuple[str, ...]) -> None:
    root = make_checkout(tmp_path / "checkout", *tracks)
    before = tree(root)
    installed(root, settings)
    config = installed(root, replace(settings, suffix="_other", mode="audio"))
    assert run_toolkit(root, "--config", str(config)).returncode == 0
    assert any("template/__pycache__" in name for name in tree(root))
    assert remove(recognize(root)).notes == ()
    after = tree(root)
    assert without_caches(after) == before
    assert not any("template" in name for name in after)


def test_remove_says_which_files_were_changed(tmp_path: Path, settings: Settings) -> None:
    root = make_checkout(tmp_path / "checkout")
    before = tree(root)
    installed(root, settings).write_text("changed")
    notes = remove(recognize(root)).notes
    assert notes == ("configs/anon_mkc.yaml: was changed since it was installed, and is removed all the same",)
    assert tree(root) == before


def test_remove_needs_something_that_is_installed(tmp_path: Path) -> None:
    root = make_checkout(tmp_path / "checkout")
    make_example(root)
    before = tree(root)
    with pytest.raises(OutputError, match="nothing of mkc-fast is installed"):
        remove(recognize(root))
    assert tree(root) == before


def test_the_toolkits_own_example_gets_its_place_back(tmp_path: Path, settings: Settings, command: Path) -> None:
    root = make_checkout(tmp_path / "checkout")
    make_example(root)
    before = tree(root)
    done = install(recognize(root), settings)
    assert "template is now anonymization/pipelines/template.before-mkc-fast" in done.notes[0]
    assert run_toolkit(root, "--config", str(done.configs[-1])).returncode == 0
    assert calls(command)
    assert install(recognize(root), settings).notes == ()
    assert remove(recognize(root)).notes == ("anonymization/pipelines/template is back in its place",)
    assert without_caches(tree(root)) == before


def test_a_pipeline_of_others_is_not_replaced_and_comes_back(tmp_path: Path, settings: Settings) -> None:
    root = make_checkout(tmp_path / "checkout")
    (root / PIPELINE).parent.mkdir()
    (root / PIPELINE).write_text("class TemplatePipeline: ...\n")
    before = tree(root)
    with pytest.raises(OutputError, match="mkc-fast did not write it; --overwrite keeps it"):
        install(recognize(root), settings)
    assert tree(root) == before
    installed(root, settings, overwrite=True)
    remove(recognize(root))
    assert tree(root) == before


def test_a_config_of_others_is_not_replaced_and_comes_back(tmp_path: Path, settings: Settings) -> None:
    root = make_checkout(tmp_path / "checkout")
    (root / "configs/anon_mkc.yaml").write_text("mine: true\n")
    before = tree(root)
    with pytest.raises(OutputError, match=r"anon_mkc\.yaml: is there, and mkc-fast did not write it; choose another"):
        install(recognize(root), settings)
    assert tree(root) == before
    installed(root, settings, overwrite=True)
    installed(root, settings)
    assert remove(recognize(root)).notes == ("configs/anon_mkc.yaml is back in its place",)
    assert tree(root) == before


def test_a_changed_config_is_replaced_only_if_asked(tmp_path: Path, settings: Settings) -> None:
    root = make_checkout(tmp_path / "checkout")
    before = tree(root)
    config = installed(root, settings)
    text = config.read_text()
    config.write_text(text + "# mine\n")
    with pytest.raises(OutputError, match="was changed since it was installed; --overwrite replaces it"):
        install(recognize(root), settings)
    installed(root, settings, overwrite=True)
    assert config.read_text() == text
    remove(recognize(root))
    assert tree(root) == before


def test_files_that_others_put_into_the_folder_stay(tmp_path: Path, settings: Settings) -> None:
    root = make_checkout(tmp_path / "checkout")
    before = tree(root)
    installed(root, settings)
    mine = (root / PIPELINE).with_name("notes.txt")
    mine.write_text("mine")
    assert "stays, since it holds other things: notes.txt" in remove(recognize(root)).notes[0]
    assert mine.read_text() == "mine"
    mine.unlink()
    mine.parent.rmdir()
    assert tree(root) == before


def test_a_record_that_names_other_files_removes_nothing(tmp_path: Path, settings: Settings) -> None:
    root = make_checkout(tmp_path / "checkout")
    installed(root, settings)
    record = (root / PIPELINE).with_name("installed.json")
    for name in ("../outside", "/etc/x", "configs/eval_pre.yaml", "configs/anon/../../x.yaml"):
        record.write_text(json.dumps({"written_by": "mkc-fast", "files": {name: "0"}}))
        before = tree(root)
        with pytest.raises(OutputError, match="is no record of what mkc-fast installed"):
            remove(recognize(root))
        assert tree(root) == before


def test_artifacts_that_do_not_fit_write_nothing(tmp_path: Path, settings: Settings) -> None:
    root = make_checkout(tmp_path / "checkout")
    before = tree(root)
    for wrong in ({"model": tmp_path / "none"}, {"bank_user": settings.model}, {"bank_attacker": tmp_path}):
        with pytest.raises(ArtifactError):
            install(recognize(root), replace(settings, **wrong))
    assert tree(root) == before
