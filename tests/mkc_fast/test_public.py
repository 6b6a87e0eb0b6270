"""The public names load, and the page of the Python API lists each of them."""

from __future__ import annotations

from pathlib import Path

import mkc_fast
import mkc_fast.evaluation
import mkc_fast.export
from mkc_fast import errors

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8").split()


def test_every_public_name_loads_and_is_documented() -> None:
    for module in (mkc_fast, mkc_fast.export, mkc_fast.evaluation):
        for name in module.__all__:
            assert getattr(module, name) is not None
            assert name == "__version__" or f"{module.__name__}.{name}" in API


def test_every_error_is_public() -> None:
    kinds = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.MkcError)
    }
    assert kinds <= set(mkc_fast.__all__)
