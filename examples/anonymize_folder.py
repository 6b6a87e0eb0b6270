"""Anonymizes every recording of a folder, into a folder of the same structure."""

import argparse
import sys
from pathlib import Path

from mkc_fast import Anonymizer, AudioError, StageError

ENDINGS = {".aiff", ".flac", ".mp3", ".ogg", ".wav"}


def main() -> int:
    """Anonymize the folder; returns 1 if a recording failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path, help="folder of recordings; its subfolders are read too")
    parser.add_argument("out", type=Path, help="another folder, for the anonymized WAV files")
    parser.add_argument("--model", required=True, help="directory made by mkc-fast export")
    parser.add_argument("--bank", required=True, help="directory made by mkc-fast bank build")
    parser.add_argument("--mode", choices=["audio", "frame"], default="frame")
    given = parser.parse_args()
    if given.out.resolve().is_relative_to(given.recordings.resolve()):
        parser.error("the outputs must not lie among the recordings")
    paths = sorted(path for path in given.recordings.rglob("*") if path.suffix.lower() in ENDINGS)
    targets = [given.out / path.relative_to(given.recordings).with_suffix(".wav") for path in paths]
    if len(set(targets)) < len(targets):
        parser.error("two recordings differ in their ending only, and would have one output")

    failed = 0
    with Anonymizer.load(given.model, given.bank, device="cpu") as anonymizer:
        for path, target in zip(paths, targets, strict=True):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                anonymizer.anonymize_file(path, target, mode=given.mode)
            except (AudioError, StageError) as error:
                print(f"failed: {error}", file=sys.stderr)
                failed += 1
    print(f"{len(paths) - failed} of {len(paths)} recordings anonymized")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
