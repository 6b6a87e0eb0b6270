"""Options that several commands of ``mkc-fast bench`` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import Precision, Provider

ModelOption = Annotated[
    Path | None, typer.Option(help="Exported model (with --bank), instead of --size.", rich_help_panel=panels.ARTIFACTS)
]
BankOption = Annotated[Path | None, typer.Option(help="Bank (with --model).", rich_help_panel=panels.ARTIFACTS)]
SizeOption = Annotated[
    str,
    typer.Option(
        help="Random weights, made once and kept in the cache: large (the published sizes) or small.",
        rich_help_panel=panels.ARTIFACTS,
    ),
]
EntriesOption = Annotated[
    int, typer.Option(help="K-means models of the random weights.", min=1, rich_help_panel=panels.ARTIFACTS)
]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda:<number>.", rich_help_panel=panels.DEVICES)]
ProviderOption = Annotated[
    Provider, typer.Option(help="Of ONNX Runtime; a name is never silently replaced.", rich_help_panel=panels.DEVICES)
]
PrecisionOption = Annotated[
    Precision, typer.Option(help="Of the arithmetic, as the provider has it.", rich_help_panel=panels.DEVICES)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        help="Of one operator on the CPU (default: one for each core).", min=1, rich_help_panel=panels.DEVICES
    ),
]
BudgetOption = Annotated[
    float,
    typer.Option(help="Seconds to measure for; the output lists what was left out.", min=1, rich_help_panel=panels.RUN),
]
SpeechOption = Annotated[
    Path | None,
    typer.Option(
        help="A recording to cut utterances of (default: the clip of the demo).", rich_help_panel=panels.INPUT
    ),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Write the result to this file, for 'bench report'.", rich_help_panel=panels.OUTPUT)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON instead of a table.", rich_help_panel=panels.OUTPUT)
]
CacheOption = Annotated[
    Path | None, typer.Option(help="Where random weights are kept.", rich_help_panel=panels.ARTIFACTS)
]
WavlmOption = Annotated[
    Path | None,
    typer.Option(help="With --model: its WavLM checkpoint, for the baseline.", rich_help_panel=panels.ARTIFACTS),
]
CkptOption = Annotated[
    Path | None,
    typer.Option(help="With --model: its conformer + vocoder checkpoint.", rich_help_panel=panels.ARTIFACTS),
]
KmeansOption = Annotated[
    Path | None, typer.Option(help="With --bank: the list of its k-means models.", rich_help_panel=panels.ARTIFACTS)
]
StrideOption = Annotated[int, typer.Option(help="As in infer.", min=1, rich_help_panel=panels.DRAWS)]
BanksOption = Annotated[str, typer.Option(help="Numbers of bank entries N.", rich_help_panel=panels.INPUT)]
