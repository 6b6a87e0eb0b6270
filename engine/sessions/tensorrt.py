"""Builds TensorRT's engines beforehand, so that the first run on a machine does not wait for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.devices import cuda_index
from mkc_fast.engine.options import EngineOptions, check_choice
from mkc_fast.engine.sessions.opening import check_provider, open_sessions
from mkc_fast.errors import DeviceError
from mkc_fast.names import TENSORRT

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike


def check_warm(device: str, options: EngineOptions | None = None) -> None:
    """Check that engines can be built for a device, before anything else is done.

    Raises:
        DeviceError: They cannot: why, and the command that repairs it.
    """
    index = cuda_index(device)
    check_choice(index, TENSORRT, (options or EngineOptions()).precision)
    assert index is not None
    try:
        check_provider(TENSORRT, index)
    except DeviceError as error:
        raise DeviceError(f"no engines for {device}: {error}") from None


def build_engines(
    model: str | PathLike[str],
    device: str = "cuda:0",
    options: EngineOptions | None = None,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """Build the TensorRT engines of a model for a device, where the cache does not hold them yet.

    Args:
        model: Directory made by ``export_model``.
        device: ``"cuda:<number>"``.
        options: An engine is good for one precision and the buckets of one tuning; the provider is always TensorRT.
        progress: Called with a line as each graph is opened.

    Returns:
        What was built, in one line.

    Raises:
        DeviceError: The device or TensorRT is not here, or cannot do it.
        ArtifactError: A graph is damaged.
        OutputError: The cache folder cannot be written.
    """
    check_warm(device, options)
    warm = replace(options or EngineOptions(), provider=TENSORRT)
    opened = open_sessions(Path(model), device, warm, progress=progress)
    return opened.chosen
