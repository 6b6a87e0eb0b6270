"""Published checkpoints → artifacts: ``export_model`` makes ``model/``, ``build_bank`` makes ``bank/``.

Only ``export_model`` needs torch. It is imported when ``export_model`` is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkc_fast.export.bank import build_bank

if TYPE_CHECKING:
    from mkc_fast.export.model import export_model

__all__ = ["build_bank", "export_model"]


def __dir__() -> list[str]:
    return sorted(__all__)  # the public names, whether loaded yet or not


def __getattr__(name: str) -> object:
    if name == "export_model":
        from mkc_fast.export.model import export_model

        return export_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
