"""Shared libraries are found wherever CuPy and ONNX Runtime can have them from, in CuPy's order."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from mkc_fast.engine.sessions import gpu_facts
from mkc_fast.engine.sessions.gpu_facts import library_folders, load_library, toolkit_folders

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libraries have other names there")
compiles = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler")

NVRTC = "libnvrtc.so.13"
NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any of NVIDIA's libraries; its folders are in ``tmp_path``."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(gpu_facts.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path / "site-packages")])
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    monkeypatch.setattr(gpu_facts, "INSTALLED", tmp_path / "local")
    for name in ("CONDA_PREFIX", "CUDNN_PATH", "CUDA_PATH", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is opened, in order; nothing opens."""
    paths: list[str] = []

    def refused(path: str) -> None:
        paths.append(path)
        raise OSError(f"{path}: refused")

    monkeypatch.setattr(ctypes, "CDLL", refused)
    return paths


def put(folder: Path, name: str = NVRTC) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"no library")
    return folder / name


def compiled(folder: Path) -> str:
    """A library with a name that no other test has, and a soname, as NVIDIA's have."""
    name = f"libmkc_made_{next(NUMBERS)}.so.1"
    folder.mkdir(parents=True)
    (folder / "made.c").write_text("int made_for_a_test(void) { return 7; }\n")
    options = ["-shared", "-fPIC", f"-Wl,-soname,{name}"]
    subprocess.run(["gcc", *options, "-o", str(folder / name), str(folder / "made.c")], check=True)
    return name


def test_the_order_is_that_of_cupy(machine: Path, monkeypatch: pytest.MonkeyPatch, tried: list[str]) -> None:
    """Packages, conda, the loader, what variables name, the usual folders."""
    monkeypatch.setenv("CONDA_PREFIX", str(machine / "conda"))
    monkeypatch.setenv("CUDA_HOME", str(machine / "home"))
    monkeypatch.setenv("CUDA_PATH", str(machine / "path"))
    expected = [
        put(machine / "site-packages" / "nvidia" / "cu13" / "lib"),
        put(machine / "site-packages" / "nvidia" / "cuda_nvrtc" / "lib"),
        put(machine / "conda" / "lib"),
        put(machine / "conda" / "targets" / "x86_64-linux" / "lib"),
        NVRTC,
        put(machine / "path" / "lib64"),
        put(machine / "home" / "lib64"),
        put(machine / "local" / "cuda" / "lib64"),
        put(machine / "local" / "cuda-13.10" / "lib64"),
        put(machine / "local" / "cuda-13.2" / "targets" / "x86_64-linux" / "lib"),
    ]
    problem = load_library(NVRTC).problem
    assert tried == [str(path) for path in expected]
    assert problem == f"{expected[-1]}: refused"


def test_a_library_that_is_nowhere_is_asked_of_the_loader_alone(tried: list[str]) -> None:
    assert load_library(NVRTC).problem == f"{NVRTC}: refused"
    assert tried == [NVRTC]


def test_a_file_that_does_not_load_says_more_than_that_the_loader_has_none(machine: Path) -> None:
    damaged = put(machine / "site-packages" / "nvidia" / "cu13" / "lib", "libmkc_damaged.so.1")
    assert str(damaged) in (load_library("libmkc_damaged.so.1").problem or "")


@compiles
@pytest.mark.parametrize(
    "place",
    [
        "site-packages/nvidia/cu13/lib", "site-packages/nvidia/cuda_nvrtc/lib", "conda/lib",
        "conda/targets/x86_64-linux/lib", "home/lib64", "home/lib", "path/targets/sbsa-linux/lib", "cudnn/lib",
        "local/cuda/lib64", "local/cuda-13.1/lib64",
    ],
)  # fmt: skip
def test_a_library_is_found_and_stays_loaded_for_cupy(
    place: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy and ONNX Runtime then get it by its name alone."""
    name = compiled(machine / place)
    with pytest.raises(OSError, match=name):
        ctypes.CDLL(name)
    for variable, folder in (
        ("CONDA_PREFIX", "conda"),
        ("CUDNN_PATH", "cudnn"),
        ("CUDA_PATH", "path"),
        ("CUDA_HOME", "home"),
    ):
        monkeypatch.setenv(variable, str(machine / folder))
    assert load_library(name).problem is None
    assert ctypes.CDLL(name).made_for_a_test() == 7


@compiles
def test_a_library_in_a_package_elsewhere_on_the_path_is_loaded(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after ``pip install --target``: ONNX Runtime and NVIDIA's packages lie in different folders."""
    folder = machine / "elsewhere" / "nvidia" / "cu13" / "lib"
    name = compiled(folder)
    assert load_library(name).problem
    monkeypatch.setattr(sys, "path", [str(machine / "nothing.zip"), str(machine / "elsewhere")])
    assert folder in library_folders()
    assert load_library(name).problem is None


def test_empty_variables_name_no_folder(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONDA_PREFIX", "CUDNN_PATH", "CUDA_PATH", "CUDA_HOME"):
        monkeypatch.setenv(name, "")
    assert not [
        folder for folder in library_folders() if "nvidia" not in folder.parts and folder.name != "tensorrt_libs"
    ]
    assert all(folder.is_relative_to(machine / "local") for folder in toolkit_folders())
