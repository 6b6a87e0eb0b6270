"""A missing package is one line that names the extra of pyproject.toml which installs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mkc_fast import extras
from mkc_fast.errors import MkcError
from mkc_fast.extras import EXPORT_MODULES, install_command, missing_packages, required

ROOT = Path(__file__).parents[2]


def gone(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_all_that_is_missing_and_its_extras_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gone(monkeypatch, "torch", "sklearn")
    assert missing_packages("torch", "numpy", "sklearn") == (
        "PyTorch, scikit-learn: pip install 'mkc-fast[export,train]'"
    )


def test_where_onnx_runtime_is_missing_too_the_command_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gone(monkeypatch, *EXPORT_MODULES, "onnxruntime")
    with (
        pytest.raises(MkcError, match=r"^exporting needs PyTorch, .*pip install 'mkc-fast\[cpu,export\]', or not$"),
        required("exporting", *EXPORT_MODULES, otherwise=", or not"),
    ):
        pass


def test_a_gpu_package_brings_its_own_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    gone(monkeypatch, "cupy", "onnxruntime")
    assert missing_packages("cupy") == f"CuPy: {install_command('cuda13')}"


def test_nothing_is_said_of_what_is_installed() -> None:
    assert missing_packages("numpy") is None


def test_a_package_that_does_not_import_is_one_line() -> None:
    message = "^the report needs libbroken, which cannot be imported: no libbroken$"
    with pytest.raises(MkcError, match=message), required("the report", "numpy"):
        raise ImportError("no libbroken", name="libbroken")


def test_every_extra_is_in_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in {extra for _, extra in extras._PACKAGES.values()} | {extras.CUDA12_EXTRA}:
        assert f"\n{extra} = [" in text
