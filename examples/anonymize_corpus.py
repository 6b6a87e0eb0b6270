"""Anonymizes a corpus in any form with worker processes, and prints the progress."""

import argparse
import sys

from mkc_fast import MkcError, anonymize_corpus
from mkc_fast.engine.corpus.status import Status


def show(status: Status) -> None:
    """Print how the run stands; it is called several times a second."""
    for note in status.notes:
        print(f"\n{note}", file=sys.stderr)
    if status.failure:
        print("\nfailed: {}: {}".format(*status.failure), file=sys.stderr)
    summary = status.summary
    finished = summary.written + summary.present + len(summary.failed)
    print(f"\r{finished} of {summary.files} recordings, RTFx {summary.rtfx:.1f}", end="\n" if status.done else "")


def main() -> int:
    """Anonymize the corpus; returns 1 if a recording failed. The same command continues a run that was stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="directory made by mkc-fast export")
    parser.add_argument("--bank", required=True, help="directory made by mkc-fast bank build")
    parser.add_argument("--input", nargs="+", default=[], help="files, folders, JSONL manifests or WebDataset shards")
    parser.add_argument("--list", help="or a list of 'path' or 'utt-id path' a line")
    parser.add_argument("--out", help="output folder for --input or --list")
    parser.add_argument("--data-dir", nargs="+", default=[], help="or Kaldi data directories, without --out")
    parser.add_argument("--devices", nargs="+", help="default: all GPUs, or the CPU if there is none")
    given = parser.parse_args()
    try:
        summary = anonymize_corpus(
            given.model,
            given.bank,
            audio_list=given.list,
            input=given.input,
            out=given.out,
            data_dirs=given.data_dir,
            devices=given.devices,
            progress=show,
        )
    except MkcError as error:
        sys.exit(f"error: {error}")
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
