"""What the scripts of this folder share: their options, what they anonymize, and with what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.benchmarks.common import result_parser
from mkc_fast.benchmarks.random_artifacts import random_artifacts
from mkc_fast.benchmarks.utterances import draw_lengths, write_corpus
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.cache_folder import default_cache

if TYPE_CHECKING:
    import argparse

RATE = 16_000
# Times real time at which a GPU of the simulation anonymizes: an aim, not measured on a GPU.
PACE = 4000.0
# Different recordings; a longer list has them several times.
_FILES = 200


def benchmark_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the options of all scripts here."""
    parser = result_parser(description, name)
    parser.add_argument("recording", type=Path, help="speech, of which the recordings are cut")
    parser.add_argument("--model", type=Path, help="exported model (with --bank)")
    parser.add_argument("--bank", type=Path, help="bank (with --model)")
    parser.add_argument("--quick", action="store_true", help="little work, to see that it runs")
    return parser


def artifacts_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Path, Path]:
    """The model and the bank that were given, or small ones with random weights, from the cache or made now."""
    if (args.model is None) != (args.bank is None):
        parser.error("--model and --bank go together")
    if args.model is not None:
        return args.model.resolve(), args.bank.resolve()
    made = random_artifacts("small", default_cache(), progress=say)
    return made.model, made.bank


def write_recordings(folder: Path, recording: Path, count: int = _FILES) -> list[str]:
    """Write recordings with the lengths that LibriSpeech has, cut from a given one; their paths."""
    utterances = write_corpus(folder, read_waveform(recording, RATE), draw_lengths(count), RATE)
    return [str(utterance.file) for utterance in utterances]


def say(text: str) -> None:
    """Say on the error stream what goes on."""
    print(text, file=sys.stderr, flush=True)
