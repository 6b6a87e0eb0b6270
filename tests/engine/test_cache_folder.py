"""The cache folder: one variable of ours, else what the platform says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mkc_fast.engine.cache_folder import cache_folder, default_cache


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MKC_FAST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_without_variables_it_is_the_platforms_folder(tmp_path: Path) -> None:
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    assert default_cache() == tmp_path / caches / "mkc-fast"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a variable of Linux")
def test_the_platforms_variable_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert default_cache() == tmp_path / "caches" / "mkc-fast"


def test_the_variable_of_ours_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("MKC_FAST_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"


def test_an_argument_names_the_default_folder_another_or_none(tmp_path: Path) -> None:
    assert cache_folder(True) == default_cache()
    assert cache_folder(False) is None
    assert cache_folder(str(tmp_path)) == tmp_path
