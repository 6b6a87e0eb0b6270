"""The stub libraries, a small model, and what its graphs call, for all dry runs of a run of the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeOnce
from tests.cuda_dry_run.graphs import Case, job, write_artifacts
from tests.fakes.cuda.dry_run.build import CannotBuildError, Stubs, build
from tests.fakes.cuda.dry_run.sessions import Report, measure


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Stubs:
    """The stub libraries; skips the test where they cannot be built."""
    try:
        return build(tmp_path_factory.mktemp("stubs"))
    except CannotBuildError as error:
        pytest.skip(f"no dry run of CUDA: {error}")


@pytest.fixture(scope="session")
def small(stubs: Stubs, make_once: MakeOnce) -> Path:
    """A folder with a small ``model`` and a ``bank``, of random weights."""
    return make_once("dry-run", write_artifacts)


@pytest.fixture(scope="session")
def report_of(stubs: Stubs, small: Path) -> Callable[[Case], Report]:
    """What a graph calls in three runs of one shape, measured once."""
    known: dict[Case, Report] = {}

    def measured(case: Case) -> Report:
        if case not in known:
            known[case] = measure(stubs, job(case, small / "model", runs=3))
        return known[case]

    return measured
