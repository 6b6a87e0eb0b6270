"""``mkc-fast train conformer``: speech, a bank and a vocoder → a checkpoint for ``export``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import Mode
from mkc_fast.cli.export import load_exporter
from mkc_fast.cli.run_options import AllowCommandsOption
from mkc_fast.cli.show import console, counting, shown_warnings
from mkc_fast.cli.train_options import (
    AudioListOption,
    Bf16Option,
    DataDirsOption,
    EncoderModelOption,
    LearningRateOption,
    OutCheckpointOption,
    OverwriteCheckpointOption,
    SaveEveryOption,
    SeedOption,
    SpeakersOption,
    TensorboardOption,
    TrainingDeviceOption,
)

if TYPE_CHECKING:
    from mkc_fast.train.conformer.train import Progress


def conformer(
    model: EncoderModelOption,
    bank: Annotated[Path, typer.Option(help="Bank whose entries are drawn.", rich_help_panel=panels.ARTIFACTS)],
    vocoder: Annotated[
        Path, typer.Option(help="Checkpoint whose vocoder is put into the output.", rich_help_panel=panels.ARTIFACTS)
    ],
    out: OutCheckpointOption,
    steps: Annotated[int, typer.Option(help="Steps of the optimizer, in all.", min=1, rich_help_panel=panels.RUN)],
    features: Annotated[
        Path | None,
        typer.Option(help="Cache made by 'mkc-fast features', instead of speech.", rich_help_panel=panels.INPUT),
    ] = None,
    audio_scp: AudioListOption = None,
    data_dir: DataDirsOption = None,
    utt2spk: SpeakersOption = None,
    valid: Annotated[
        str | None,
        typer.Option(
            help="Speakers that are held out: a share such as 0.05, or a list, one a line. They say which weights are "
            "kept and when the training ends.",
            rich_help_panel=panels.INPUT,
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint whose conformer is trained further; its sizes are taken.",
            rich_help_panel=panels.ARTIFACTS,
        ),
    ] = None,
    hifi_config: Annotated[
        Path | None,
        typer.Option(
            help="Sizes of the vocoder (JSON), if its checkpoint lacks them.", rich_help_panel=panels.ARTIFACTS
        ),
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="Draw an entry for an utterance, or one every --stride frames.", rich_help_panel=panels.DRAWS
        ),
    ] = Mode.audio,
    stride: Annotated[int, typer.Option(help="Frames that share a draw.", min=1, rich_help_panel=panels.DRAWS)] = 1,
    masked: Annotated[
        float,
        typer.Option(help="Share of the frames that is masked.", min=0, max=0.99, rich_help_panel=panels.DRAWS),
    ] = 0.1,
    seed: SeedOption = None,
    layers: Annotated[int, typer.Option(help="Of the conformer.", min=1, rich_help_panel=panels.ADVANCED)] = 12,
    heads: Annotated[int, typer.Option(help="Of its attention.", min=1, rich_help_panel=panels.ADVANCED)] = 16,
    ffn_dim: Annotated[
        int, typer.Option(help="Inside its feed-forward modules.", min=1, rich_help_panel=panels.ADVANCED)
    ] = 4096,
    kernel_size: Annotated[
        int, typer.Option(help="Of its convolution; odd.", min=1, rich_help_panel=panels.ADVANCED)
    ] = 3,
    dropout: Annotated[
        float, typer.Option(help="Of all its dropouts.", min=0, max=0.99, rich_help_panel=panels.ADVANCED)
    ] = 0.1,
    batch_frames: Annotated[
        int, typer.Option(help="Frames (20 ms) of a batch, with padding.", min=2, rich_help_panel=panels.RUN)
    ] = 8000,
    max_frames: Annotated[
        int,
        typer.Option(help="Of longer utterances a part of so many frames is taken.", min=2, rich_help_panel=panels.RUN),
    ] = 500,
    accumulate: Annotated[
        int, typer.Option(help="Batches of each GPU that make one step.", min=1, rich_help_panel=panels.RUN)
    ] = 1,
    learning_rate: LearningRateOption = 2e-4,
    warmup: Annotated[
        int, typer.Option(help="Steps over which the learning rate grows.", min=0, rich_help_panel=panels.RUN)
    ] = 2000,
    decay: Annotated[
        int, typer.Option(help="Last steps, over which it falls to 0.", min=0, rich_help_panel=panels.RUN)
    ] = 0,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.", min=0, rich_help_panel=panels.ADVANCED)] = 0.01,
    clip: Annotated[
        float, typer.Option(help="Norm that gradients do not exceed.", rich_help_panel=panels.ADVANCED)
    ] = 1.0,
    bf16: Bf16Option = False,
    valid_every: Annotated[
        int, typer.Option(help="Steps between two looks at held-out speakers.", min=1, rich_help_panel=panels.RUN)
    ] = 1000,
    patience: Annotated[
        int,
        typer.Option(help="End after so many looks without a lower loss; 0: never.", min=0, rich_help_panel=panels.RUN),
    ] = 10,
    save_every: SaveEveryOption = 500,
    device: TrainingDeviceOption = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            help="Of PyTorch on a CPU; one a core without this option. Small networks are fastest with 1.",
            min=1,
            rich_help_panel=panels.DEVICES,
        ),
    ] = None,
    tensorboard: TensorboardOption = None,
    allow_commands: AllowCommandsOption = False,
    overwrite: OverwriteCheckpointOption = False,
) -> None:
    """Train the conformer that restores centroids to features, over the entries of a bank.

    The same command continues a training that was interrupted, and with more --steps one that is finished.
    """
    load_exporter()  # which says what is missing
    from mkc_fast.train.conformer.settings import ConformerSettings
    from mkc_fast.train.conformer.train import LOG_FILE, train_conformer

    begin = time.perf_counter()
    settings = ConformerSettings(
        layers, heads, ffn_dim, kernel_size, dropout, mode.value, stride, masked, batch_frames, max_frames, accumulate,
        learning_rate, warmup, decay, weight_decay, clip, bf16, valid_every, patience, save_every,
    )  # fmt: skip
    with shown_warnings(), counting("steps") as count:

        def show(progress: Progress) -> None:
            count(progress.step, progress.steps)

        made = train_conformer(
            model,
            bank,
            vocoder,
            out,
            steps=steps,
            features=features,
            audio_list=audio_scp,
            data_dirs=data_dir or (),
            utt2spk=utt2spk,
            valid=valid,
            init=init,
            settings=settings,
            hifi_config=hifi_config,
            seed=seed,
            device=device,
            threads=threads,
            tensorboard=tensorboard,
            overwrite=overwrite,
            allow_commands=allow_commands,
            progress=show,
        )
    ended = f", ended early at {made.steps}" if made.steps < steps else ""
    console.print(
        f"{out}: weights of step {made.step}{ended}, in {time.perf_counter() - begin:.1f} s; log in "
        f"{out}.training/{LOG_FILE}",
        soft_wrap=True,
    )
    if made.restoration is not None:
        seen = made.restoration
        console.print(
            f"held-out speakers: {len(made.held_out)}, with {len(made.held_out_entries)} entries of the bank; squared "
            f"error {seen.restored:.4g} restored, {seen.quantized:.4g} quantized "
            f"({100 * (1 - seen.restored / seen.quantized):.1f} % less)",
            soft_wrap=True,
        )
