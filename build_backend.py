"""Builds the package: setuptools, with wheels that serve all Pythons and editable installs that type checkers follow.

The native operators are a plain C library (``kernels/cpu``), which is loaded with ctypes and does not know Python. So a
wheel with them is tagged ``py3-none-<platform>``, and one without them, made where there is no compiler, is tagged
``py3-none-any``.

The folders of the repository are installed as parts of ``mkc_fast``. In an editable install setuptools maps them by an
import hook, which mypy and editors do not follow. So an editable install here also puts ``.editable`` on Python's path:
a folder of links, in which the package looks as it does when it is installed.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "BuildLibrary",
    "TaggedWheel",
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parent
LINKS = ROOT / ".editable"


class BuildLibrary(build_ext):
    """Builds the native operators, under a name without a version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library's file: ``mkc_fast/kernels/cpu/_cpu.so``."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class TaggedWheel(bdist_wheel):
    """A wheel for every Python 3; for one platform if it holds the native operators, for any if it does not."""

    def run(self) -> None:
        """Build, and then see whether there is a library."""
        self.run_command("build")
        libraries = Path(self.get_finalized_command("build").build_lib).rglob("*.so")
        self.root_is_pure = not any(libraries)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform, as in the file's name."""
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, object] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Make a wheel (PEP 517), with nothing in it that an earlier build left; returns its name."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, object] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Make the wheel of an editable install (PEP 660); returns its name."""
    _link_package()
    name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    # The hook stays: it is needed where Python finds mkc_fast/ first, as in the repository itself.
    _add_file(Path(wheel_directory) / name, "__editable__.mkc_fast_links.pth", f"{LINKS}\n")
    return name


def _link_package() -> None:
    """Lay the package out by links, as it is when it is installed."""
    shutil.rmtree(LINKS, ignore_errors=True)
    package = LINKS / "mkc_fast"
    package.mkdir(parents=True)
    (LINKS / ".gitignore").write_text("*\n", encoding="utf-8")
    for item in (ROOT / "mkc_fast").iterdir():
        if item.name != "__pycache__":
            (package / item.name).symlink_to(item)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name, folder in settings["tool"]["setuptools"]["package-dir"].items():
        (package / name.removeprefix("mkc_fast.")).symlink_to(ROOT / folder)


def _add_file(wheel: Path, name: str, text: str) -> None:
    """Add a file to a wheel and to the record of its files."""
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / wheel.name
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
            for member in old.namelist():
                content = old.read(member)
                if member.endswith(".dist-info/RECORD"):
                    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
                    content += f"{name},sha256={digest},{len(text.encode())}\n".encode()
                new.writestr(member, content)
            new.writestr(name, text)
        shutil.move(changed, wheel)
