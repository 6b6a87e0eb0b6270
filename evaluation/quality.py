"""DNSMOS P.835 (arXiv 2110.01763): how a listener would rate speech, background and both, 1 to 5, without a reference.

The network is a file of the package speechmos, whose code needs librosa; what is computed around it is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mkc_fast.evaluation.models import SAMPLE_RATE, ModelFacts, model_files, package_version, packaged

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SCALES = ("speech", "background", "overall")
_FILE = ("dnsmos_models", "sig_bak_ovr.onnx")
_INPUT_S, _INPUT = 9.01, 144160  # the network hears so long a part, in seconds and samples
# What maps the network's outputs to the ratings of listeners: coefficients of x², x and 1 for each scale.
_MAPPING = np.array(
    [
        [-0.08397278, 1.22083953, 0.0052439],
        [-0.13166888, 1.60915514, -0.39604546],
        [-0.06766283, 1.11546468, 0.04602535],
    ]
)


@dataclass(frozen=True)
class Dnsmos:
    """DNSMOS as a model: a waveform → ratings (3,) float64 in the order of ``SCALES``."""

    def facts(self) -> ModelFacts:
        """The package and the network's file."""
        return ModelFacts("DNSMOS P.835", package_version("speechmos"), model_files([packaged("speechmos", *_FILE)]))

    def open(self) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        """Open the network on the CPU."""
        from mkc_fast.onnx_runtime import ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(packaged("speechmos", *_FILE)), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def rate(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
            parts = _parts(np.clip(waveform, -1, 1))
            # One by one: a part needs half a gigabyte while it runs.
            raw = np.concatenate([session.run(None, {name: part[None]})[0] for part in parts]).astype(np.float64)
            return np.asarray((_MAPPING[:, 0] * raw**2 + _MAPPING[:, 1] * raw + _MAPPING[:, 2]).mean(axis=0))

        return rate


def _parts(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Parts of 9.01 s, one a second; what is shorter is repeated."""
    while len(waveform) < _INPUT:
        waveform = np.concatenate([waveform, waveform])
    count = int(len(waveform) // SAMPLE_RATE - _INPUT_S) + 1
    return np.stack([waveform[index * SAMPLE_RATE : index * SAMPLE_RATE + _INPUT] for index in range(count)])
