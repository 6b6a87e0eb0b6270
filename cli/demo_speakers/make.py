"""Makes the recordings of this folder with espeak-ng (1.51): ``python cli/demo_speakers/make.py``.

Sixteen voices of a synthesizer say two sentences each, which were written for this. The files are FLAC at 8 kHz, so
that they are small; the demo resamples them.
"""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
import soundfile
import soxr

FOLDER = Path(__file__).resolve().parent
RATE = 8000
SENTENCES = (
    "The old mill by the river grinds corn.",
    "Seven boats came home before the storm.",
    "She keeps a jar of blue buttons.",
    "Nobody heard the quiet train arrive.",
    "Fresh bread smells better than roses.",
    "We painted the wooden gate green.",
    "His brother fixes clocks and radios.",
    "A thick fog covered the narrow bridge.",
)
# Variant of the voice en-us, pitch, and words a minute.
VOICES = (
    ("m1", 40, 165),
    ("f1", 60, 170),
    ("m2", 30, 160),
    ("f2", 70, 175),
    ("m3", 50, 170),
    ("f3", 55, 165),
    ("m4", 35, 180),
    ("f4", 65, 160),
    ("m5", 45, 175),
    ("f5", 50, 180),
    ("m6", 55, 160),
    ("klatt2", 50, 170),
    ("m7", 40, 170),
    ("Andy", 45, 165),
    ("f2", 45, 165),
    ("m8", 60, 175),
)


def main() -> None:
    """Write the recordings and the lists."""
    recordings, speakers = [], []
    for number, (variant, pitch, speed) in enumerate(VOICES):
        for part in range(2):
            name, speaker = f"spk{number:02d}-{part}", f"spk{number:02d}"
            sentence = SENTENCES[(3 * number + 2 * part) % len(SENTENCES)]
            command = ["espeak-ng", "-v", f"en-us+{variant}", "-p", str(pitch), "-s", str(speed), "--stdout", sentence]
            spoken = subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603 - our own arguments
            samples, rate = soundfile.read(io.BytesIO(spoken), dtype="float32")
            resampled = soxr.resample(samples, rate, RATE)
            soundfile.write(FOLDER / f"{name}.flac", 0.4 * resampled / np.abs(resampled).max(), RATE, subtype="PCM_16")
            recordings.append(f"{name} {name}.flac\n")
            speakers.append(f"{name} {speaker}\n")
    (FOLDER / "wav.scp").write_text("".join(recordings))
    (FOLDER / "utt2spk").write_text("".join(speakers))


if __name__ == "__main__":
    main()
