"""``mkc-fast evaluate``: anonymized speech beside the original → privacy, intelligibility, quality, pitch, duration."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.run_options import AllowCommandsOption
from mkc_fast.cli.show import console, counted, counting, errors, shown_warnings
from mkc_fast.evaluation import measures
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping


class Measure(str, Enum):
    """What can be measured."""

    privacy = measures.PRIVACY
    intelligibility = measures.INTELLIGIBILITY
    quality = measures.QUALITY
    pitch = measures.PITCH
    duration = measures.DURATION


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    original: Annotated[
        Path,
        typer.Argument(
            metavar="ORIGINAL", help="Original speech: a Kaldi data directory, a folder of recordings, or a list."
        ),
    ],
    anonymized: Annotated[
        Path, typer.Argument(metavar="ANONYMIZED", help="Anonymized speech, with the same utterance ids.")
    ],
    utt2spk: Annotated[
        Path | None,
        typer.Option(
            help="List of 'utt-id speaker' a line; the file beside the original speech without this option.",
            rich_help_panel=panels.INPUT,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="List of 'utt-id words' a line; the file beside the original speech without this option.",
            rich_help_panel=panels.INPUT,
        ),
    ] = None,
    trials: Annotated[
        Path | None,
        typer.Option(
            help="List of 'speaker utt-id target' or '… nontarget' a line; the file beside the original speech without "
            "this option, or else all pairs.",
            rich_help_panel=panels.INPUT,
        ),
    ] = None,
    enrolls: Annotated[
        Path | None,
        typer.Option(
            help="List of the utterances that speakers are enrolled with; the file beside the enrolment recordings "
            "without this option, or else all.",
            rich_help_panel=panels.INPUT,
        ),
    ] = None,
    enrolment: Annotated[
        Path | None,
        typer.Option(
            help="Original recordings that speakers are enrolled with, if they are others.",
            rich_help_panel=panels.INPUT,
        ),
    ] = None,
    enrolment_anonymized: Annotated[
        Path | None,
        typer.Option(
            help="The attacker's anonymized recordings for enrolment, of another draw (default: the speaker's other "
            "utterances in ANONYMIZED).",
            rich_help_panel=panels.INPUT,
        ),
    ] = None,
    allow_commands: AllowCommandsOption = False,
    asv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.onnx",
            help="Speaker verifier: waveform (1, S) float32, 16 kHz → embedding (default: resemblyzer's).",
            rich_help_panel=panels.MODELS,
        ),
    ] = None,
    asr: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Whisper model in CTranslate2's format, for faster-whisper (default: PocketSphinx's).",
            rich_help_panel=panels.MODELS,
        ),
    ] = None,
    language: Annotated[
        str, typer.Option(help="Of --asr: two letters, or 'auto'.", rich_help_panel=panels.MODELS)
    ] = "en",
    only: Annotated[
        list[Measure] | None,
        typer.Option(
            metavar="MEASURE",
            help="Make this one alone: privacy, intelligibility, quality, pitch or duration; may be repeated.",
            rich_help_panel=panels.RUN,
        ),
    ] = None,
    skip: Annotated[
        list[Measure] | None,
        typer.Option(metavar="MEASURE", help="Leave this one out; may be repeated.", rich_help_panel=panels.RUN),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes that listen (default: one for each core, up to 8, but one for few recordings).",
            min=1,
            rich_help_panel=panels.RUN,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Of the intervals, and of trials among many speakers.", min=0, rich_help_panel=panels.RUN),
    ] = 0,
    resamples: Annotated[
        int, typer.Option(help="Bootstrap resamples of the intervals; 0: none.", min=0, rich_help_panel=panels.RUN)
    ] = 1000,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for evaluation.json and evaluation.html.", rich_help_panel=panels.OUTPUT),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record as JSON.", rich_help_panel=panels.OUTPUT)
    ] = False,
) -> None:
    """Evaluate anonymized speech beside the original: privacy, intelligibility, quality, pitch, duration.

    No attacker is trained here, so the privacy that this shows is more than there is. Nothing is downloaded.
    """
    from mkc_fast.evaluation.choosing import Given, asked_for
    from mkc_fast.evaluation.run import evaluate as evaluated

    chosen = [each.value for each in only or ()]
    given = Given(asv=asv, asr=asr, language=None if language == "auto" else language)
    with shown_warnings(), counting("recordings heard") as count:
        made = evaluated(
            original,
            anonymized,
            out,
            enrolment=enrolment,
            enrolment_anonymized=enrolment_anonymized,
            utt2spk=utt2spk,
            text=text,
            trials=trials,
            enrolls=enrolls,
            only=chosen,
            skip=[each.value for each in skip or ()],
            given=given,
            jobs=jobs,
            seed=seed,
            resamples=resamples,
            allow_commands=allow_commands,
            progress=count,
        )
    if as_json:
        print(json.dumps(made.record, indent=1))
    else:
        _show(made.record, made.not_measured)
    for path in made.files:
        errors.print(f"wrote {path}", soft_wrap=True)
    for name, reason in made.failed.items():
        errors.print(f"failed: {printable(name)}: {reason}", soft_wrap=True)
    missed = asked_for(chosen, given).intersection(made.not_measured)
    for measure in sorted(missed):
        errors.print(f"failed: {measure}: {printable(made.not_measured[measure], 400)}", soft_wrap=True)
    if made.failed or missed:
        raise typer.Exit(1)


def _show(record: Mapping[str, Any], not_measured: Mapping[str, str]) -> None:
    """The table, and what it is not."""
    from rich.table import Table

    from mkc_fast.evaluation.rows import HEAD, gaps, rows

    counts = record["recordings"]
    speakers = f" of {counted(counts['speakers'], 'speaker')}" if counts["speakers"] else ""
    console.print(
        f"{printable(counts['anonymized'])} beside {printable(counts['original'])}: "
        f"{counted(counts['heard'], 'utterance')}{speakers}",
        soft_wrap=True,
    )
    console.print()
    table = Table(*HEAD, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for measure in measures.MEASURES:
        for row in rows(record, measure):
            table.add_row(*row)
    console.print(table)
    console.print()
    for text in gaps(record):
        console.print(printable(text, 400), soft_wrap=True)
    for name, reason in not_measured.items():
        console.print(f"no {name}: {printable(reason, 400)}", soft_wrap=True)
    for text in record["is_not"]:
        console.print(text, soft_wrap=True)
