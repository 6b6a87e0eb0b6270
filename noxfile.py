"""Runs the tests with the oldest and the newest versions that are supported, and over the Pythons: ``nox --list``.

``nox -s newest-3.13`` takes the newest releases that pip finds. ``nox -s oldest`` takes the lowest versions that
pyproject.toml admits. Interpreters that are not here are skipped.
"""

from __future__ import annotations

import re
from pathlib import Path

import nox

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# The lowest versions of what has wheels for the oldest Python; the others are as low as these admit.
OLDEST_PYTHON = PYTHONS[0]
# ONNX Runtime, where the native operators are found by position in its table of functions.
RUNTIMES = ("1.20.0", "1.22.1", "1.24.4", "1.32.0")

nox.options.sessions = ["newest"]
nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The tests with the newest releases."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", ".[test]")
    session.run("pytest", "-n", "logical", *session.posargs)


@nox.session(python=OLDEST_PYTHON)
def oldest(session: nox.Session) -> None:
    """The tests with the lowest versions that pyproject.toml admits."""
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("".join(f"{line}\n" for line in lowest()), encoding="utf-8")
    session.install("-c", str(constraints), "-e", ".[test]")
    session.run("pytest", "-n", "logical", *session.posargs)


@nox.session
@nox.parametrize("runtime", RUNTIMES)
def runtime(session: nox.Session, runtime: str) -> None:
    """The tests of stages, sessions and operators with one release of ONNX Runtime."""
    session.install("-e", ".[test]", f"onnxruntime=={runtime}")
    session.run("pytest", "-n", "logical", "tests/engine", "tests/kernels", "tests/export", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """The linter, the formatter and the docs, as CI runs them."""
    session.install("-c", "constraints.txt", "-e", ".[test,docs]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mkdocs", "build", "--quiet", "--strict", "--site-dir", str(Path(session.create_tmp()) / "site"))


def lowest() -> list[str]:
    """``name==version`` for each requirement of the package and of its extras cpu and export."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["cpu"], *extras["export"]]
    return ["==".join(re.match(r"([\w-]+)>=([\w.]+)", line).groups()) for line in requirements]
