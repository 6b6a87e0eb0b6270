"""Tables and paragraphs of a page, and the templates that show them; every value is escaped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Table:
    """Rows of values; the first ``left`` columns are text, the others numbers."""

    head: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]
    left: int = 1


@dataclass(frozen=True)
class Paragraph:
    """Text, and what stands before it in bold."""

    text: str
    strong: str = ""


def templates(package: str) -> Environment:
    """The templates of a package, in its folder ``templates``, and those that all pages share."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates"), PackageLoader("mkc_fast.pages", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
