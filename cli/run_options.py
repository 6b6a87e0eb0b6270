"""Options that commands which run a corpus share: inputs, draws, devices and the run itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import Format, InputForm, Level, Mode, OnFailure, Precision, Provider
from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT", help="The same as --input.", show_default=False),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Files and folders of recordings; or JSONL manifests; or WebDataset shards ('shards-{000..010}.tar'); or "
        "files of a Hugging Face dataset; or a Lhotse CutSet or Shar.",
        rich_help_panel=panels.INPUT,
    ),
]
AudioColumnOption = Annotated[
    str | None,
    typer.Option(help="Of a Hugging Face dataset: the recordings (default: its Audio).", rich_help_panel=panels.INPUT),
]
IdColumnOption = Annotated[
    str | None,
    typer.Option(help="Of a Hugging Face dataset: the ids (default: file and row).", rich_help_panel=panels.INPUT),
]
SpeakerColumnOption = Annotated[
    str,
    typer.Option(help="Of a Hugging Face dataset: the speakers, for --level speaker.", rich_help_panel=panels.INPUT),
]
InputFormOption = Annotated[
    InputForm, typer.Option(help="Of the inputs (default: by what they are).", rich_help_panel=panels.INPUT)
]
FormatOption = Annotated[
    Format, typer.Option("--format", help="Of the outputs, 16-bit.", rich_help_panel=panels.OUTPUT)
]
PadOption = Annotated[
    bool,
    typer.Option(
        "--pad",
        help="Fill outputs' ends with silence: they are 5 to 25 ms shorter otherwise.",
        rich_help_panel=panels.OUTPUT,
    ),
]
AllowCommandsOption = Annotated[
    bool,
    typer.Option("--allow-commands", help="Run the commands (ending in |) of a wav.scp.", rich_help_panel=panels.INPUT),
]
ModeOption = Annotated[
    Mode,
    typer.Option(
        help="Draw one k-means model for a recording, or one every STRIDE frames.", rich_help_panel=panels.DRAWS
    ),
]
StrideOption = Annotated[
    int, typer.Option(help="Frames (20 ms) that share a draw in frame mode.", min=1, rich_help_panel=panels.DRAWS)
]
SeedOption = Annotated[
    int | None,
    typer.Option(help="Repeatable draws; without it they are unpredictable.", rich_help_panel=panels.DRAWS),
]
LevelOption = Annotated[
    Level,
    typer.Option(
        help="Which utterances share a draw: none, those of a speaker (utt2spk), or all.",
        rich_help_panel=panels.DRAWS,
    ),
]
KmeansNumOption = Annotated[
    int | None,
    typer.Option(
        "--kmeans-num",
        "--num-kmeans",
        help="Draw from a random subset of so many k-means models.",
        min=1,
        rich_help_panel=panels.DRAWS,
    ),
]
RecordDrawsOption = Annotated[
    bool,
    typer.Option(
        "--record-draws",
        help="Put each frame's model into the manifest; it helps an attacker.",
        rich_help_panel=panels.DRAWS,
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        help="NUMBER/COUNT, such as 2/4: only this part of the utterances; 'merge' joins the parts.",
        rich_help_panel=panels.RUN,
    ),
]
GpusOption = Annotated[
    list[str] | None,
    typer.Option(
        "--gpus",
        "--device",
        help="Devices: cpu, cuda:0 cuda:1 … (default: all GPUs).",
        rich_help_panel=panels.DEVICES,
    ),
]
ProviderOption = Annotated[
    Provider,
    typer.Option(help="Of ONNX Runtime; a name is never silently replaced.", rich_help_panel=panels.DEVICES),
]
PrecisionOption = Annotated[
    Precision, typer.Option(help="Of the arithmetic, as the provider has it.", rich_help_panel=panels.DEVICES)
]
NumProcOption = Annotated[
    int | None,
    typer.Option(help="Worker processes, over the devices in turn.", min=1, rich_help_panel=panels.DEVICES),
]
RangedNumProcOption = Annotated[
    str | None,
    typer.Option(
        "--num-proc",
        metavar="N|MIN:MAX",
        help="Worker processes, over the devices in turn; with --ray also MIN:MAX, for a cluster that grows.",
        rich_help_panel=panels.DEVICES,
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Spread the run over a Ray cluster: local (one of this machine), auto, host:port or ray://host:port.",
        rich_help_panel=panels.DEVICES,
    ),
]
BatchSecondsOption = Annotated[
    float | None,
    typer.Option(
        help="Seconds of audio that run at once (default: 240 on a GPU, 0 on a CPU).",
        min=0,
        rich_help_panel=panels.DEVICES,
    ),
]
MaxWindowOption = Annotated[
    float,
    typer.Option(help="Longer recordings run in windows of this, cross-faded.", min=8, rich_help_panel=panels.DEVICES),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout-seconds",
        "--timeout-s",
        min=0,
        help="A worker silent for longer, beyond what its audio explains, is replaced (0: never).",
        rich_help_panel=panels.RUN,
    ),
]
OnFailureOption = Annotated[
    OnFailure,
    typer.Option(
        help="If a recording fails twice: leave it out, and its data directory without wav.scp; or write silence.",
        rich_help_panel=panels.RUN,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Start over, whatever the folder holds.", rich_help_panel=panels.RUN),
]
AllowMixedOption = Annotated[
    bool,
    typer.Option(
        "--allow-mixed",
        help="Continue with another device, provider, precision or version, not equal to the last bit.",
        rich_help_panel=panels.RUN,
    ),
]
PrivateManifestOption = Annotated[
    bool,
    typer.Option(
        "--private-manifest",
        help="Write salted digests of the recordings' paths into the manifest; a guess can be confirmed.",
        rich_help_panel=panels.RUN,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print failures only.", rich_help_panel=panels.RUN)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.", rich_help_panel=panels.RUN)]


def check_inputs(
    inputs: Sequence[str], audio_scp: Path | None, output_dir: Path | None, data_dirs: Sequence[Path] | None
) -> None:
    """Refuse inputs of several kinds, or without an output folder.

    Raises:
        MkcError: They are.
    """
    if data_dirs and (audio_scp is not None or output_dir is not None or inputs):
        raise MkcError("give --data-dir, or --audio-scp and --output-dir, not both")
    if inputs and audio_scp is not None:
        raise MkcError("give --input or --audio-scp, not both")
    if not data_dirs and output_dir is None and inputs:
        raise MkcError(f"no --output-dir for {inputs[0]}: give -o FOLDER")
    if not data_dirs and ((audio_scp is None and not inputs) or output_dir is None):
        raise MkcError("give --input or --audio-scp, and --output-dir; or --data-dir")
