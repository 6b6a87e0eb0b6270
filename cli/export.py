"""``mkc-fast export``: published checkpoints → ``model/``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli.show import console, steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkc_fast.engine.artifacts import ModelInfo


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    wavlm_ckpt: Annotated[Path, typer.Option(help="WavLM checkpoint (.pt).")],
    ckpt: Annotated[Path, typer.Option(help="Conformer + vocoder checkpoint, or a vocoder alone.")],
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    hifi_config: Annotated[
        Path | None, typer.Option(help="JSON with the vocoder's sizes, where the checkpoint's are missing.")
    ] = None,
    layer: Annotated[int, typer.Option(help="WavLM layer whose output the k-means models were trained on.")] = 6,
    half: Annotated[
        bool, typer.Option("--half", help="Also write half-precision graphs (wavlm.fp16.onnx and so on), for GPUs.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write graphs with linear layers in 8 bits (wavlm.int8.onnx), for CPUs.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the directory.")] = False,
) -> None:
    """Convert published checkpoints into ONNX graphs that run without torch."""
    export_model = load_exporter()
    begin = time.perf_counter()
    with steps() as progress:
        info = export_model(
            wavlm_ckpt, ckpt, out, hifi_config, layer, half=half, int8=int8, overwrite=overwrite, progress=progress
        )
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    console.print(
        f"{out}: WavLM to layer {info.layer}, {info.conformer_layers} conformer layers, vocoder"
        f"{', also in float16' if half else ''}{', also in int8' if int8 else ''}; D {info.dim}, "
        f"{info.sample_rate} Hz, {size:.0f} MB, checked against PyTorch, in {time.perf_counter() - begin:.0f} s",
        soft_wrap=True,
    )


def load_exporter() -> Callable[..., ModelInfo]:
    """``export_model``, or one line that says what to install."""
    from mkc_fast import MkcError

    try:
        from mkc_fast.export.model import export_model
    except ImportError as error:
        raise MkcError(f"exporting needs {error.name}: pip install 'mkc-fast[export]'") from None
    return export_model
