"""The speakers of the small set: voices of three synthesizers, with formants and pitch moved.

A voice of flite or festival is synthesized at another length and pitch and then resampled, which moves its formants by
``formants`` and leaves length and pitch as wanted. espeak-ng has variants of its own, which are used as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

FLITE, FESTIVAL, ESPEAK = "flite", "festival", "espeak-ng"


@dataclass(frozen=True)
class Voice:
    """A speaker.

    Attributes:
        name: Of the speaker.
        synthesizer: That speaks.
        base: Its voice or, for espeak-ng, its variant of American English.
        formants: Factor of all formants.
        pitch: Factor of the pitch; for espeak-ng its own number, 0 to 99.
        stretch: Factor of the length; for espeak-ng words a minute.
    """

    name: str
    synthesizer: str
    base: str
    formants: float
    pitch: float
    stretch: float


def _flite(base: str, *settings: tuple[float, float, float]) -> list[Voice]:
    return [Voice(f"{base}{number}", FLITE, base, *each) for number, each in enumerate(settings)]


def _espeak(variant: str, pitch: int, speed: int) -> Voice:
    return Voice(f"es_{variant.lower()}", ESPEAK, variant, 1.0, pitch, speed)


# rms has no setting for its pitch, which therefore moves with the formants.
TRAINING = (
    *_flite("awb", (1.0, 1.0, 1.0), (0.88, 0.8, 1.05), (1.12, 1.35, 0.95), (1.2, 1.6, 1.0)),
    *_flite("rms", (1.0, 1.0, 0.92), (0.9, 0.9, 0.88), (1.14, 1.14, 0.95), (1.26, 1.26, 0.92)),
    *_flite("slt", (1.0, 1.0, 0.95), (0.9, 0.75, 1.0), (1.1, 1.25, 0.95), (0.82, 0.58, 1.05)),
    *_flite("kal16", (1.0, 1.0, 1.05), (0.9, 0.85, 1.1), (1.14, 1.5, 1.0), (1.23, 1.85, 1.05)),
    *(
        _espeak(*each)
        for each in (
            ("m1", 40, 160),
            ("m2", 30, 150),
            ("m3", 50, 165),
            ("m4", 38, 170),
            ("m5", 45, 150),
            ("m7", 42, 155),
            ("m8", 55, 165),
            ("f1", 58, 160),
            ("f2", 66, 165),
            ("f3", 54, 150),
            ("f4", 64, 155),
            ("f5", 50, 170),
            ("klatt", 45, 155),
            ("klatt3", 50, 165),
            ("klatt4", 40, 160),
            ("Alex", 48, 160),
            ("Alicia", 60, 155),
            ("Andrea", 55, 165),
            ("antonio", 42, 150),
            ("belinda", 62, 160),
            ("benjamin", 40, 165),
            ("caleb", 45, 155),
            ("david", 38, 160),
            ("edward", 50, 150),
            ("gustave", 44, 165),
            ("linda", 57, 150),
            ("marco", 46, 170),
            ("Michael", 43, 155),
        )
    ),
)
# Nothing is trained on what they say. ked is a voice of which nothing is in the training.
HELD_OUT = (
    Voice("ked0", FESTIVAL, "ked_diphone", 1.0, 1.0, 1.05),
    Voice("ked1", FESTIVAL, "ked_diphone", 1.18, 1.5, 1.0),
    Voice("awb_test", FLITE, "awb", 1.06, 1.15, 1.0),
    Voice("rms_test", FLITE, "rms", 0.95, 0.95, 0.9),
    Voice("slt_test0", FLITE, "slt", 1.05, 1.1, 0.95),
    Voice("slt_test1", FLITE, "slt", 0.94, 0.88, 1.0),
    _espeak("m6", 50, 155),
    _espeak("Annie", 58, 160),
    _espeak("klatt2", 48, 160),
    _espeak("steph", 60, 155),
    _espeak("victor", 44, 160),
    _espeak("quincy", 52, 165),
)
