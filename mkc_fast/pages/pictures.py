"""The style of the pictures of a page: matplotlib, one palette for all (Okabe and Ito's)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, TypeVar

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

_Shown = TypeVar("_Shown")
INK, GREY, RULE = "#1c2733", "#6b7580", "#d7dce1"
BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
_WIDTH_IN, _DPI, _COLORS = 7.4, 170, 64
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


def picture(paint: Callable[[Figure, _Shown], None], shown: _Shown, height_in: float) -> bytes:
    """What a function draws into a figure, as PNG bytes.

    Args:
        paint: Draws.
        shown: What it draws.
        height_in: Of the figure, in inches; all have one width.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure, shown)
        return _png(figure)


def _png(figure: Figure) -> bytes:
    """A PNG of few colours: a third of the bytes, and no difference to see."""
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, dpi=_DPI, format="png")
    raw.seek(0)
    with Image.open(raw) as image:
        image.convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()
