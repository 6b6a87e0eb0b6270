"""``mkc-fast export``: published checkpoints → ``model/``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import Precision
from mkc_fast.cli.show import console, errors, steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkc_fast.engine.artifacts import ModelInfo
    from mkc_fast.engine.options import EngineOptions


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    *,
    wavlm_ckpt: Annotated[
        Path | None, typer.Option(help="WavLM checkpoint (.pt).", rich_help_panel=panels.INPUT)
    ] = None,
    ckpt: Annotated[
        Path | None,
        typer.Option(help="Conformer + vocoder checkpoint, or a vocoder alone.", rich_help_panel=panels.INPUT),
    ] = None,
    hifi_config: Annotated[
        Path | None,
        typer.Option(help="JSON with the vocoder's sizes, if the checkpoint lacks them.", rich_help_panel=panels.INPUT),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML with the conformer's sizes, for a bare state dict.", rich_help_panel=panels.INPUT),
    ] = None,
    layer: Annotated[
        int,
        typer.Option(help="WavLM layer whose output the k-means models were trained on.", rich_help_panel=panels.INPUT),
    ] = 6,
    out: Annotated[Path, typer.Option(help="Directory to write.", rich_help_panel=panels.OUTPUT)],
    half: Annotated[
        bool,
        typer.Option(
            "--half",
            help="Also write half-precision graphs (wavlm.fp16.onnx and so on), for GPUs.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = False,
    int16: Annotated[
        bool,
        typer.Option(
            "--int16",
            help="Also write graphs in whole numbers of 16 bits (wavlm.native.int16.onnx and so on), for "
            "precisions mixed and int16 on CPUs.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Also write graphs with linear layers in 8 bits (wavlm.native.int8.onnx), for CPUs.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = False,
    cuda: Annotated[
        bool | None,
        typer.Option(
            "--cuda/--no-cuda",
            help="Also write graphs in the fused operators that ONNX Runtime has for CUDA (wavlm.cuda.onnx, "
            "wavlm.cuda.fp16.onnx). Default: where onnxruntime-gpu is installed.",
            show_default=False,
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the directory.", rich_help_panel=panels.OUTPUT)
    ] = False,
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact",
            help="Also write graphs whose error against float64 exceeds its bound; every load warns of it.",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = False,
    warm: Annotated[
        bool,
        typer.Option(
            "--warm",
            help="Also build TensorRT engines. Without checkpoints, for the model that --out already holds.",
            rich_help_panel=panels.DEVICES,
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help="With --warm: the GPU to build for.", rich_help_panel=panels.DEVICES)
    ] = "cuda:0",
    precision: Annotated[
        Precision, typer.Option(help="With --warm: precision of the engines.", rich_help_panel=panels.DEVICES)
    ] = Precision.auto,
) -> None:
    """Convert published checkpoints into ONNX graphs that run without torch."""
    from mkc_fast.engine.options import EngineOptions
    from mkc_fast.errors import MkcError

    options = EngineOptions(precision=precision.value)
    if warm:
        from mkc_fast.engine.sessions.tensorrt import check_warm

        check_warm(device, options)  # before the work of exporting
    if wavlm_ckpt is not None and ckpt is not None:
        _export(
            wavlm_ckpt,
            ckpt,
            out,
            hifi_config,
            config,
            layer,
            half=half,
            int16=int16,
            int8=int8,
            cuda=cuda,
            overwrite=overwrite,
            allow_inexact=allow_inexact,
        )
    elif not warm or wavlm_ckpt is not None or ckpt is not None:
        raise MkcError("give --wavlm-ckpt and --ckpt")
    if warm:
        _warm(out, device, options)


def _export(
    wavlm_ckpt: Path,
    ckpt: Path,
    out: Path,
    hifi_config: Path | None,
    config: Path | None,
    layer: int,
    *,
    half: bool,
    int16: bool,
    int8: bool,
    cuda: bool | None,
    overwrite: bool,
    allow_inexact: bool,
) -> None:
    export_model = load_exporter()
    begin = time.perf_counter()
    with steps() as progress:
        info = export_model(
            wavlm_ckpt,
            ckpt,
            out,
            hifi_config,
            layer,
            config=config,
            half=half,
            int16=int16,
            int8=int8,
            cuda=cuda,
            overwrite=overwrite,
            allow_inexact=allow_inexact,
            progress=progress,
        )
    _show(info)
    also = "".join(
        f", also in {name}" for name, given in (("float16", half), ("int16", int16), ("int8", int8)) if given
    )
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    console.print(
        f"{out}: WavLM to layer {info.layer}, {info.conformer_layers} conformer layers, vocoder"
        f"{also}; D {info.dim}, "
        f"{info.sample_rate} Hz, {size:.0f} MB, judged against float64, in {time.perf_counter() - begin:.0f} s",
        soft_wrap=True,
    )


def _show(info: ModelInfo) -> None:
    """Print the error of each graph, that of float32, the scale and the bound, in lines of 80 columns."""
    from mkc_fast.engine.artifacts import CHECK_PASSED, RMS

    headings = ("error", "float32", "value", "at most")
    console.print(
        "largest values, or RMS; errors against float64: of the graph, and of PyTorch's float32", soft_wrap=True
    )
    console.print(f"{'graph':22}" + "".join(f"{name:>9}" for name in headings) + "  nearest on", soft_wrap=True)
    for file, check in info.checks.items():
        values = (check.error, check.float32_error, check.scale, check.bound)
        notes = ", RMS" * (check.measure == RMS) + f", {check.status.upper()}" * (check.status != CHECK_PASSED)
        console.print(f"{file:22}" + "".join(f"{v:9.2g}" for v in values) + f"  {check.inputs}{notes}", soft_wrap=True)
    for warning in info.warnings:
        errors.print(f"warning: {warning}", soft_wrap=True)


def _warm(model: Path, device: str, options: EngineOptions) -> None:
    from mkc_fast.engine.sessions.tensorrt import build_engines

    begin = time.perf_counter()
    with steps() as progress:
        chosen = build_engines(model, device, options, progress=progress)
    console.print(f"{model}: engines ready in {time.perf_counter() - begin:.0f} s: {chosen}", soft_wrap=True)


def load_exporter() -> Callable[..., ModelInfo]:
    """``export_model``, or one line that says what to install."""
    from mkc_fast.extras import EXPORT_MODULES, required

    with required("exporting", *EXPORT_MODULES):
        from mkc_fast.export.model import export_model
    return export_model
