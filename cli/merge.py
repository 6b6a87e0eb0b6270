"""``mkc-fast merge``: joins the shards that ``infer --shard`` and ``vpc run --shard`` have written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import InputForm
from mkc_fast.cli.run_options import (
    AllowCommandsOption,
    AudioColumnOption,
    IdColumnOption,
    InputFormOption,
    InputOption,
    InputsArgument,
    SpeakerColumnOption,
    check_inputs,
)
from mkc_fast.cli.show import console, counted, shown_warnings
from mkc_fast.errors import MkcError


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge")(merge)


def merge(
    inputs: InputsArgument = None,
    input_: InputOption = None,
    input_form: InputFormOption = InputForm.auto,
    audio_column: AudioColumnOption = None,
    id_column: IdColumnOption = None,
    speaker_column: SpeakerColumnOption = "speaker_id",
    audio_scp: Annotated[
        Path | None, typer.Option(help="Or the list that the shards were given.", rich_help_panel=panels.INPUT)
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "--out", "-o", help="The folder that the shards were given.", rich_help_panel=panels.OUTPUT
        ),
    ] = None,
    data_dir: Annotated[
        list[Path] | None,
        typer.Option(help="Or the data directories that they were given.", rich_help_panel=panels.INPUT),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Or the folder of data directories, of 'vpc run'.", rich_help_panel=panels.INPUT),
    ] = None,
    anon_suffix: Annotated[
        str, typer.Option(help="Of the anonymized directories.", rich_help_panel=panels.OUTPUT)
    ] = "_mkc",
    results_dir: Annotated[
        str, typer.Option(help="Folder of recordings in each anonymized directory.", rich_help_panel=panels.OUTPUT)
    ] = "wav",
    allow_commands: AllowCommandsOption = False,
    allow_mixed: Annotated[
        bool,
        typer.Option(
            "--allow-mixed",
            help="Join what other devices, precisions or versions have computed.",
            rich_help_panel=panels.RUN,
        ),
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print what was joined as JSON.", rich_help_panel=panels.RUN)
    ] = False,
) -> None:
    """Join the shards of a corpus into one output folder, with one manifest; data directories are completed.

    Give the input and the output that the shards were given. The shards' folders are beside the output folder, or are
    copied there from other machines. Run the same command again if it was interrupted.
    """
    from mkc_fast.engine.corpus.merge import merge_corpus
    from mkc_fast.engine.datasets.tables import Columns
    from mkc_fast.engine.voiceprivacy.merge import merge_sets

    given_inputs = [*(inputs or []), *(input_ or [])]
    if data is not None and (given_inputs or audio_scp is not None or output_dir is not None or data_dir):
        raise MkcError("give --input or --audio-scp, and --output-dir, or --data-dir, or --data")
    if data is None:
        check_inputs(given_inputs, audio_scp, output_dir, data_dir)
    with shown_warnings():
        if data is not None:
            merged = merge_sets(
                data,
                anon_suffix=anon_suffix,
                results_dir=results_dir,
                allow_commands=allow_commands,
                allow_mixed=allow_mixed,
            )
        else:
            merged = merge_corpus(
                audio_list=audio_scp,
                input=given_inputs,
                input_form=None if input_form is InputForm.auto else input_form.value,
                columns=Columns(audio_column, id_column, speaker_column),
                out=output_dir,
                data_dirs=data_dir or (),
                anon_suffix=anon_suffix,
                results_dir=results_dir,
                allow_commands=allow_commands,
                allow_mixed=allow_mixed,
            )
    if json_:
        print(json.dumps([dataclasses.asdict(each) for each in merged]))
        return
    for each in merged:
        silenced = f", {each.silenced} of them silence" if each.silenced else ""
        shards = f" of {counted(each.shards, 'shard')}" if each.shards else ""
        console.print(f"{each.out}: {counted(each.utterances, 'recording')}{shards}{silenced}", soft_wrap=True)
