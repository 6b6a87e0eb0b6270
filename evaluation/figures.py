"""The pictures of an evaluation's page, each with what it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.evaluation.intelligibility import TEXT
from mkc_fast.evaluation.measures import INTELLIGIBILITY, PRIVACY, QUALITY
from mkc_fast.evaluation.privacy import ORIGINAL
from mkc_fast.evaluation.quality import SCALES
from mkc_fast.evaluation.rows import ATTACKERS, percent
from mkc_fast.pages.pictures import BLUE, GREY, picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {ORIGINAL: "original speech", **ATTACKERS}
CAPTIONS = {
    PRIVACY: (
        "Scores of target trials (one speaker) and nontarget trials (two), each as a share of its kind. Where they "
        "cover each other, the verifier cannot tell speakers apart. Below, the equal error rates with their intervals; "
        "the dotted line is chance."
    ),
    INTELLIGIBILITY: "Word and character error rates, with intervals.",
    QUALITY: "Mean ratings, with intervals.",
}


def draw(record: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures of the measures that were made, as PNG bytes by measure."""
    drawn = {}
    for name, (paint, height_in) in _PAINTERS.items():
        made = record["measures"].get(name)
        if made is not None:
            drawn[name] = picture(paint, made, height_in)
    return drawn


def _privacy(figure: Figure, made: Mapping[str, Any]) -> None:
    titles = {name: title for name, title in TITLES.items() if made["verifications"][name]["eer"] is not None}
    grid = figure.add_gridspec(2, len(titles), height_ratios=[1.6, 1])
    edges = np.array(made["histogram_edges"])
    first: Axes | None = None
    for column, (name, title) in enumerate(titles.items()):
        axes: Axes = figure.add_subplot(grid[0, column], sharex=first, sharey=first)
        first = first or axes
        for kind, color in (("nontargets", GREY), ("targets", BLUE)):
            counts = np.array(made["verifications"][name]["histogram"][kind])
            axes.stairs(counts / max(1, counts.sum()), edges, color=color, fill=True, alpha=0.55, label=kind)
        axes.set_title(title)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("score")
    assert first is not None
    first.legend(loc="upper left")
    below: Axes = figure.add_subplot(grid[1, :])
    labels = list(titles.values())
    found = [made["verifications"][name] for name in titles]
    colors = [GREY if name == ORIGINAL else BLUE for name in titles]
    _bars(below, labels, [each["eer"] for each in found], [each["interval"] for each in found], colors)
    below.axvline(0.5, color=GREY, linestyle=":")
    below.set_xlim(0, max(0.55, *(each["eer"] * 1.15 for each in found)))
    below.set_xlabel("equal error rate")


def _intelligibility(figure: Figure, made: Mapping[str, Any]) -> None:
    axes: Axes = figure.subplots()
    sides = [("original", GREY), ("anonymized", BLUE)] if made["reference"] == TEXT else []
    rates = [
        (f"{name.upper()}, {side}", made[side][name], color) for name in ("wer", "cer") for side, color in sides
    ] or [(name.upper(), made["to_transcript"][name], BLUE) for name in ("wer", "cer")]
    shown = [(label, rate["rate"] or 0.0, rate["interval"], color) for label, rate, color in rates]
    labels, values, intervals, colors = (list(column) for column in zip(*shown, strict=True))
    _bars(axes, labels, values, intervals, colors)
    axes.set_xlim(left=0)
    axes.set_xlabel("error rate")


def _quality(figure: Figure, made: Mapping[str, Any]) -> None:
    axes: Axes = figure.subplots()
    rated = [(f"{scale}, {side}", made[side][scale], color) for scale in SCALES for side, color in _SIDES]
    shown = [(label, rating["mean"], rating["interval"], color) for label, rating, color in rated]
    if any(mean is None for _, mean, _, _ in shown):
        return
    labels, values, intervals, colors = (list(column) for column in zip(*shown, strict=True))
    _bars(axes, labels, values, intervals, colors, unit="")
    axes.set_xlim(1, 5)
    axes.set_xlabel("rating")


_SIDES = (("original", GREY), ("anonymized", BLUE))
_PAINTERS: dict[str, tuple[Any, float]] = {
    PRIVACY: (_privacy, 4.4),
    INTELLIGIBILITY: (_intelligibility, 2.1),
    QUALITY: (_quality, 2.7),
}


def _bars(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[Sequence[float] | None],
    colors: Sequence[str],
    unit: str = "%",
) -> None:
    """A bar a row, the first at the top, with its interval and its value."""
    for place, (value, interval, color) in enumerate(zip(values, intervals, colors, strict=True)):
        axes.barh(place, value, 0.62, color=color, alpha=0.8)
        end = value
        if interval:
            axes.plot(interval, [place, place], color="black", linewidth=1.2)
            end = max(value, interval[1])
        axes.text(end, place, f"  {percent(value) if unit else f'{value:.2f}'}", va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    if unit:
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
