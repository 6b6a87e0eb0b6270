"""The config is read back as it was meant, by PyYAML and by the toolkits' own reader; bad settings are refused."""

from __future__ import annotations

import io
import os
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mkc_fast.engine.voiceprivacy.config import Settings, config_text
from mkc_fast.engine.voiceprivacy.sets import groups, known_sets
from mkc_fast.errors import ArgumentError

ODD = [
    "/data/a b/model", "/data/model: x #1", "/d/it's \"so\"", "/d/<anon_suffix>", "/d/!ref <data_dir>", "/d/[x], {y}",
    "/d/ä漢😀/\xa0b", "/d/" + "long name, " * 30, "/d/%20~$HOME`x`", "/d/a b c ",
]  # fmt: skip


class Loader(yaml.SafeLoader):
    """Reads references as text."""


Loader.add_constructor("!ref", lambda loader, node: loader.construct_scalar(node))


def made(path: str = "/m", **changes: object) -> Settings:
    values: dict[str, object] = {
        "model": Path(path), "bank_user": Path(path + "u"), "bank_attacker": Path(path + "a"), "command": [path],
    }  # fmt: skip
    return Settings(**{**values, **changes})  # type: ignore[arg-type]


def check(modules: dict[str, object], path: str) -> None:
    assert [modules[key] for key in ("model", "bank_user", "bank_attacker")] == [path, path + "u", path + "a"]
    assert shlex.split(str(modules["command"])) == [path]


@pytest.mark.parametrize("path", ODD)
def test_odd_paths_are_read_back_as_they_are(path: str) -> None:
    text = config_text(made(path), groups(2024, 1))
    assert text.isascii(), "a toolkit reads it in the encoding of the machine"
    check(yaml.load(text, Loader)["modules"], path)


@pytest.mark.parametrize("path", ODD)
def test_the_toolkits_own_reader_reads_odd_paths_back(path: str) -> None:
    reader = pytest.importorskip("hyperpyyaml")
    config = reader.load_hyperpyyaml(io.StringIO(config_text(made(path, suffix="_1"), groups(2026, 2))))
    check(config["modules"], path)
    assert config["modules"]["anon_suffix"] == config["anon_suffix"] == "_1"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\\/"), min_size=1))
)
def test_any_path_that_is_accepted_is_read_back(parts: list[str]) -> None:
    reader = pytest.importorskip("hyperpyyaml")
    path = os.path.abspath("/x/" + "/".join(parts))  # noqa: PTH100 - takes dots out
    assume("  " not in path)
    check(reader.load_hyperpyyaml(io.StringIO(config_text(made(path), groups(2024, 1))))["modules"], path)


@pytest.mark.parametrize("path", ["/a  b", "/a\nb", "/a\x85b", "/a\\b", "/a\udcffb", "/a\u2028b"])
def test_a_path_that_a_toolkit_would_misread_is_refused(path: str) -> None:
    with pytest.raises(ArgumentError, match="rename it"):
        made(path)


@pytest.mark.parametrize(("year", "track"), [(2024, 1), (2026, 1), (2026, 2)])
def test_the_config_lists_all_sets_of_its_track(year: int, track: int) -> None:
    config = yaml.load(config_text(made(), groups(year, track)), Loader)
    listed = [
        group["data"] + end
        for group in config["datasets"]
        for end in group.get("trials", []) + group.get("enrolls", []) or [""]
    ]
    assert sorted(listed) == sorted(known_sets(year, track))
    assert (config["pipeline"], str(config["data_dir"]), config["results_dir"]) == ("template", "data", "wav")


def test_relative_paths_become_absolute() -> None:
    config = yaml.load(config_text(made("some/../model"), groups(2024, 1)), Loader)
    assert config["modules"]["model"] == str(Path.cwd() / "model")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"suffix": "mkc"}, "suffix is 'mkc'"),
        ({"suffix": "_a/b"}, "suffix"),
        ({"suffix": ""}, "suffix"),
        ({"mode": "word"}, "mode is 'word'"),
        ({"stride": 0}, "stride is 0"),
        ({"seed": 1 << 300}, "at most 256 bits"),
        ({"level": "sentence"}, "level is 'sentence'; expected one of utterance, speaker, constant"),
        ({"kmeans_num": 0}, "kmeans_num is 0"),
        ({"provider": "x"}, "provider"),
        ({"on_failure": "x"}, "on_failure"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        made(**changes)
