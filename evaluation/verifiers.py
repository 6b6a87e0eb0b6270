"""Speaker verifiers in ONNX: a waveform → an embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.errors import AudioError, MkcError
from mkc_fast.evaluation.models import ModelFacts, model_files
from mkc_fast.extras import required
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_EXPECTED = "expected one input, a waveform (1, S) float32 at 16 kHz, and an embedding as first output"
_FLOAT32 = "tensor(float)"


@dataclass(frozen=True)
class OnnxVerifier:
    """A graph that takes a waveform (1, S) float32 at 16 kHz, S free, and gives an embedding, (1, E) say.

    Attributes:
        path: The graph.
    """

    path: Path

    def facts(self) -> ModelFacts:
        """The file, and those that hold its weights, if it has them outside.

        Raises:
            MkcError: One is missing or unreadable, or it is not a graph.
        """
        files = model_files([self.path])
        return ModelFacts(self.path.stem, files=(*files, *model_files(self._outside())))

    def _outside(self) -> list[Path]:
        """The files of weights that the graph names."""
        with required("a verifier", "onnx"):
            import onnx
        try:
            graph = onnx.load(self.path, load_external_data=False)
        except Exception as error:  # protobuf's own type, and others for other damages
            raise MkcError(f"{self.path}: not an ONNX graph ({type(error).__name__})") from None
        places = {
            entry.value for tensor in _tensors(graph) for entry in tensor.external_data if entry.key == "location"
        }
        return [self.path.parent / place for place in sorted(places)]

    def open(self) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Open the graph on the CPU.

        Raises:
            MkcError: It cannot be opened, or takes something else; from the function that is returned: it gives more
                than one embedding for a recording.
        """
        from mkc_fast.onnx_runtime import ort

        if not self.path.is_file():
            raise MkcError(f"{self.path}: no such file")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a type for each kind of failure
            raise MkcError(f"{self.path}: not a graph that ONNX Runtime opens ({one_line(str(error), 200)})") from None
        inputs = session.get_inputs()
        shapes = ", ".join(f"{each.name} {each.shape} {each.type}" for each in inputs)
        fits = len(inputs) == 1 and inputs[0].type == _FLOAT32 and len(inputs[0].shape) == 2
        if not fits or isinstance(inputs[0].shape[1], int) or inputs[0].shape[0] not in {1, *_free(inputs[0].shape[0])}:
            raise MkcError(f"{self.path}: takes {shapes}; {_EXPECTED}")
        name = inputs[0].name

        def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
            try:
                embedding = session.run(None, {name: waveform[None, :]})[0]
            except Exception as error:
                raise AudioError(f"the verifier fails on it ({one_line(str(error), 120)})") from None
            embedding = np.asarray(embedding, np.float32)
            if sum(size > 1 for size in embedding.shape) > 1:
                raise MkcError(
                    f"{self.path}: gives {list(embedding.shape)} for a waveform of {len(waveform)} samples; "
                    f"{_EXPECTED}, which has no axis of time: (1, E)"
                )
            return embedding.reshape(-1)

        return embed


def _tensors(message: Any) -> Iterator[Any]:
    """The tensors of a graph, wherever they are in it: weights, constants of nodes, and those of inner graphs."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "add") else [value]:
                yield from _tensors(inner)


def _free(size: object) -> tuple[object, ...]:
    """The size of a dimension, if it may be any."""
    return () if isinstance(size, int) else (size,)
