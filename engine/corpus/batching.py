"""Groups utterances of similar length under a budget, longest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# With ONNX Runtime's own operators attention's buffers grow with the square of a recording's length: at full size on a
# CPU, 40 s peak near 5 GB and 60 s near 8 GB. LibriSpeech's longest recording has 35 s.
DEFAULT_WINDOW_S = 40.0


def default_batch_s(device: str) -> float:
    """Padded seconds of audio that run at once on a device.

    On a CPU batches are faster for the shortest utterances only (benchmarks/results/cpu_batches.json), and alone every
    sample is the same to the last bit.
    """
    return 0.0 if device == "cpu" else 240.0


def group_by_length(lengths: Sequence[float], budget: float) -> list[list[int]]:
    """Indices of the lengths in groups whose padded size, longest times count, is at most ``budget``.

    The longest come first, so that at the end of a run no worker is left alone with a long one. A length beyond the
    budget has a group of its own; a budget of 0 gives every one its own. Lengths below 1 count as 1.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    groups: list[list[int]] = []
    for index in order:
        if groups and max(1.0, lengths[groups[-1][0]]) * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def parts_of(group: list[int], most: int) -> list[list[int]]:
    """A group in parts of at most so many."""
    return [group[start : start + most] for start in range(0, len(group), most)]
