"""What a run does about recordings that fail: silence in their place, where the user asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.engine.audio.read import duration_s
from mkc_fast.engine.audio.write import written_waveform

if TYPE_CHECKING:
    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.corpus.protocol import Task
    from mkc_fast.engine.storage.addresses import Place

# Of a recording whose length is not known. Training on shorter ones fails in some evaluations.
_UNKNOWN_S = 3.0
_BLOCK_SAMPLES = 1 << 20


def write_silence(task: Task, place: Place, info: ModelInfo, *, pad: bool) -> None:
    """Write silence as the output of a recording, as long as its anonymized form would be.

    Args:
        task: The recording.
        place: Of its output: a file, or an object at an address.
        info: Of the model.
        pad: Make it as long as the recording.

    Raises:
        WriteError: The output cannot be written.
    """
    samples = max(info.min_samples, round((duration_s(task.utterance) or _UNKNOWN_S) * info.sample_rate))
    remaining = samples if pad else info.frames(samples) * info.hop
    with written_waveform(place, info.sample_rate) as writer:
        while remaining:
            block = min(remaining, _BLOCK_SAMPLES)
            writer.write(np.zeros(block, np.float32))
            remaining -= block
