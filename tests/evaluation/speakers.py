"""Stand-ins: recordings whose tone says the speaker and whose length says the words, and models that hear just this."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
WORDS = ("one two three", "four five", "six seven eight nine", "ten")
_SAMPLES = 4000  # of the first sentence; the others are longer by 500 each


def recording(speaker: int, sentence: int, shift: float = 1.0) -> np.ndarray:
    """A tone of the speaker's pitch, times ``shift``, of the sentence's length, (S,) float32."""
    length = _SAMPLES + 500 * sentence
    tone = np.sin(2 * np.pi * (150 + 40 * speaker) * shift * np.arange(length) / RATE)
    return (0.3 * tone).astype(np.float32)


def write_set(folder: Path, *, speakers: int = 4, shift: float = 1.0, lists: bool = True) -> Path:
    """A data directory of all sentences of some speakers."""
    (folder / "wav").mkdir(parents=True)
    names = [(f"s{speaker}-{sentence}", speaker, sentence) for speaker in range(speakers) for sentence in range(4)]
    for name, speaker, sentence in names:
        soundfile.write(folder / "wav" / f"{name}.wav", recording(speaker, sentence, shift), RATE)
    (folder / "wav.scp").write_text("".join(f"{name} wav/{name}.wav\n" for name, _, _ in names))
    if lists:
        (folder / "utt2spk").write_text("".join(f"{name} s{speaker}\n" for name, speaker, _ in names))
        (folder / "text").write_text("".join(f"{name} {WORDS[sentence]}\n" for name, _, sentence in names))
    return folder


def pitch_of(waveform: np.ndarray) -> float:
    """Hz of the strongest frequency."""
    spectrum = np.abs(np.fft.rfft(waveform, 1 << 16))
    return float(np.argmax(spectrum)) * RATE / (1 << 16)


def embed(waveform: np.ndarray) -> np.ndarray:
    """An embedding that turns with the pitch, (2,) float32."""
    angle = pitch_of(waveform) / 400
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def recognize(waveform: np.ndarray) -> str:
    """The sentence of this length."""
    sentence = round((len(waveform) - _SAMPLES) / 500)
    return WORDS[sentence] if 0 <= sentence < len(WORDS) else "nothing"


def rate(waveform: np.ndarray) -> np.ndarray:
    """Three ratings of the loudness."""
    return np.array([1.0, 2.0, 3.0]) + float(np.abs(waveform).max())


def track(waveform: np.ndarray) -> np.ndarray:
    """The pitch of each frame of 16 ms, rising by a hertz a frame."""
    frames = len(waveform) // 256
    return (pitch_of(waveform) + np.arange(frames)).astype(np.float32)


def die(_: np.ndarray) -> np.ndarray:
    """End the process, as a decoder that crashes would."""
    os._exit(1)
