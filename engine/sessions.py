"""Opens the exported graphs as ONNX Runtime sessions; the one place where provider options stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from mkc_fast import ArtifactError, DeviceError
from mkc_fast.engine.artifacts import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE
from mkc_fast.engine.devices import cuda_index

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Sessions:
    """The three graphs, ready to run."""

    wavlm: ort.InferenceSession
    conformer: ort.InferenceSession
    vocoder: ort.InferenceSession


def open_sessions(model: Path, device: str, threads: int | None = None) -> Sessions:
    """Open the graphs of ``model/`` on a device.

    Args:
        model: The directory.
        device: ``cpu`` or ``cuda:<number>``.
        threads: Threads of one operator on the CPU; default: one a core.

    Raises:
        DeviceError: The device is not here, or ONNX Runtime cannot use it.
        ArtifactError: A graph is damaged.
    """
    index = cuda_index(device)
    providers = _providers(index)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; warnings here are about the placement of shape arithmetic
    if threads:
        options.intra_op_num_threads = threads
    # Every utterance has a length of its own: a plan of buffers kept for each length would only grow.
    options.enable_mem_pattern = False
    if index is not None:
        ort.preload_dlls()
    opened = []
    for name in (WAVLM_FILE, CONFORMER_FILE, VOCODER_FILE):
        try:
            session = ort.InferenceSession(str(model / name), options, providers=providers)
        except Exception as error:  # ONNX Runtime's own types share no base but this
            raise ArtifactError(f"{model / name}: not a usable graph ({' '.join(str(error).split())[:160]})") from None
        if index is not None and session.get_providers()[0] != providers[0][0]:
            raise DeviceError(
                f"device {device}: ONNX Runtime {ort.__version__} cannot use CUDA here, and would run on the CPU"
            )
        opened.append(session)
    return Sessions(*opened)


def _providers(index: int | None) -> list[Any]:
    if index is None:
        return [("CPUExecutionProvider", {})]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise DeviceError(
            f"device cuda:{index}: the installed onnxruntime {ort.__version__} is without CUDA; install onnxruntime-gpu"
        )
    return [("CUDAExecutionProvider", {"device_id": str(index)}), ("CPUExecutionProvider", {})]
