"""Draws how well the models of a bank fit their speech."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mkc_fast.errors import BankError, OutputError
from mkc_fast.extras import required

if TYPE_CHECKING:
    from pathlib import Path

    from mkc_fast.engine.artifacts import BankInfo

# Names on the axis, where there are no more entries.
_MOST_NAMES = 60


def draw_inertia(info: BankInfo, path: Path) -> None:
    """Draw the mean squared distance of each entry's frames to their centroids, and how many frames it has.

    Args:
        info: Of a bank that was trained here.
        path: The picture; its suffix says the format.

    Raises:
        BankError: The bank does not know how it was trained.
        OutputError: The picture cannot be written.
        MkcError: matplotlib is not installed.
    """
    if not info.training:
        raise BankError("the bank does not say how its models were trained")
    with required("a picture", "matplotlib"):
        from matplotlib.figure import Figure
    order = sorted(range(len(info.names)), key=lambda index: info.training[index].inertia)
    figure = Figure(figsize=(min(24.0, 4 + 0.16 * len(order)), 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    places = range(len(order))
    above.bar(places, [info.training[index].inertia for index in order], color="#00796b")
    above.set_ylabel("inertia a frame")
    below.bar(places, [info.training[index].frames for index in order], color="#90a4ae")
    below.set_ylabel("frames")
    if len(order) <= _MOST_NAMES:
        below.set_xticks(places, [info.names[index] for index in order], rotation=90, fontsize=7)
    else:
        below.set_xlabel("entries, by inertia")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written ({' '.join(str(error).split())[:120]})") from None
