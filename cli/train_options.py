"""Options that commands which train, or make what is trained on, share: model, speech, device, run and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mkc_fast.cli import panels

FeaturesModelOption = Annotated[
    Path, typer.Option(help="Exported model, whose features are taken.", rich_help_panel=panels.ARTIFACTS)
]
EncoderModelOption = Annotated[
    Path, typer.Option(help="Exported model, whose encoder gives the features.", rich_help_panel=panels.ARTIFACTS)
]
AudioListOption = Annotated[
    Path | None,
    typer.Option(help="List of recordings, 'path' or 'utt-id path' a line.", rich_help_panel=panels.INPUT),
]
DataDirsOption = Annotated[
    list[Path] | None, typer.Option(help="Kaldi data directory; may be repeated.", rich_help_panel=panels.INPUT)
]
SpeakersOption = Annotated[
    Path | None,
    typer.Option(
        help="List of 'utt-id speaker' a line, for --audio-scp; the file beside it without this option.",
        rich_help_panel=panels.INPUT,
    ),
]
LearningRateOption = Annotated[float, typer.Option(help="Of AdamW.", rich_help_panel=panels.RUN)]
Bf16Option = Annotated[
    bool, typer.Option("--bf16", help="Compute in bfloat16 where that is safe.", rich_help_panel=panels.RUN)
]
SaveEveryOption = Annotated[
    int, typer.Option(help="Steps after which the state is saved.", min=1, rich_help_panel=panels.RUN)
]
SeedOption = Annotated[int | None, typer.Option(help="Makes the training repeatable.", rich_help_panel=panels.DRAWS)]
EncoderDeviceOption = Annotated[
    str, typer.Option(help="Of the encoder: cpu or cuda:N.", rich_help_panel=panels.DEVICES)
]
TrainingDeviceOption = Annotated[
    str,
    typer.Option(
        help="cpu or cuda:N. Under torchrun, each process takes a GPU of its own.", rich_help_panel=panels.DEVICES
    ),
]
OutDirectoryOption = Annotated[Path, typer.Option(help="Directory to write.", rich_help_panel=panels.OUTPUT)]
OutCheckpointOption = Annotated[Path, typer.Option(help="Checkpoint to write.", rich_help_panel=panels.OUTPUT)]
TensorboardOption = Annotated[
    Path | None, typer.Option(help="Also write TensorBoard's events here.", rich_help_panel=panels.OUTPUT)
]
OverwriteDirectoryOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace the directory, and start over.", rich_help_panel=panels.OUTPUT),
]
OverwriteCheckpointOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the checkpoint.", rich_help_panel=panels.OUTPUT)
]
