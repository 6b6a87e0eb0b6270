"""How many words of one recording are heard after anonymization, over several draws of k-means models.

python -m mkc_fast.benchmarks.heard_recording MODEL BANK AUDIO "its words" --asr FOLDER [--draws 10] [--about TEXT]

FOLDER holds Whisper's files. Each draw gives the recording an utterance id of its own; the seed is that of ``heard``.
Beside them, what the vocoder makes of WavLM's features themselves, with nothing anonymized: each time the recording
begins a little later, so that its frames lie elsewhere. Writes results/heard_recording.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile

from mkc_fast import Anonymizer
from mkc_fast.benchmarks.common import result_parser, write_result
from mkc_fast.benchmarks.heard import MODES, anonymized, remembered
from mkc_fast.benchmarks.precision import SEED
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.evaluation.choosing import Given
from mkc_fast.evaluation.measures import INTELLIGIBILITY
from mkc_fast.evaluation.recognizers import Whisper
from mkc_fast.evaluation.run import evaluate
from mkc_fast.names import FP32

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

RESYNTHESIZED = "resynthesized"


def main() -> None:
    parser = result_parser(__doc__, "heard_recording")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("bank", type=Path, metavar="BANK")
    parser.add_argument("audio", type=Path, metavar="AUDIO")
    parser.add_argument("words", metavar="WORDS")
    parser.add_argument("--asr", type=Path, required=True, help="a folder with Whisper's files, for faster-whisper")
    parser.add_argument("--draws", type=int, default=10, help="of k-means models (default: 10)")
    parser.add_argument("--about", default="", help="what the recording is, for the record")
    args = parser.parse_args()
    model = Whisper(args.asr)
    given = Given(recognizer=remembered(model.open()))
    result: dict[str, Any] = {"about": args.about, "draws": args.draws, "model": model.facts().as_record()}
    with tempfile.TemporaryDirectory() as temporary:
        args.data = Path(temporary, "data")
        args.data.mkdir()
        names = [f"draw{number}" for number in range(args.draws)]
        for file, each in (("wav.scp", str(args.audio.resolve())), ("text", args.words)):
            (args.data / file).write_text("".join(f"{name} {each}\n" for name in names))
        resynthesize(args, names, Path(temporary, RESYNTHESIZED))
        for mode in MODES:
            anonymized(args, mode, FP32, SEED, Path(temporary, mode))
        for made in (RESYNTHESIZED, *MODES):
            record = evaluate(args.data, Path(temporary, made), only=(INTELLIGIBILITY,), given=given).record
            result[made] = record["measures"][INTELLIGIBILITY]
            wer = result[made]["anonymized"]["wer"]
            print(f"{made}: {100 * wer['rate']:.1f} % of words wrong, {wer['length']} in all")
    write_result(args.out, result)


def resynthesize(args: argparse.Namespace, names: Sequence[str], out: Path) -> None:
    """Write the recording as the vocoder makes it from WavLM's features, each time from another place in a frame."""
    out.mkdir()
    with Anonymizer.load(args.model, args.bank, precision=FP32) as loaded:
        rate, hop = loaded.info.sample_rate, loaded.info.hop
        waveform = read_waveform(args.audio, rate, loaded.info.min_samples + hop)
        for number, name in enumerate(names):
            made = loaded.vocode(loaded.encode(waveform[number * hop // len(names) :]))
            soundfile.write(out / f"{name}.flac", made, rate)


if __name__ == "__main__":
    main()
