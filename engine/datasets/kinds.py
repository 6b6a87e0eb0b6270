"""Which files are recordings, by the endings of their names; which of those can be decoded here."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Final

import soundfile

from mkc_fast.extras import AV_EXTRA

# By libsndfile's name of the format: an old libsndfile lacks some.
_LIBSNDFILE: Final = {
    "WAV": "wav wave bwf",
    "RF64": "rf64",
    "W64": "w64",
    "AIFF": "aif aiff aifc",
    "AU": "au snd",
    "NIST": "sph nist wv1 wv2",
    "CAF": "caf",
    "FLAC": "flac",
    "OGG": "ogg oga opus",
    "MP3": "mp3",
    "VOC": "voc",
    "SVX": "svx 8svx iff",
}
_AV: Final = (
    "3ga 3gp aac ac3 adts amr ape asf avi awb f4v flv m4a m4b m4v mka mkv mov mp1 mp2 mp4 mpc mpeg mpg mts oga ogv spx "
    "ts tta webm wma wmv wv"
)
# How files of sound begin, so that it is noticed under other names: WAV and RF64, AIFF, FLAC, Ogg, MP3 with a tag, CAF,
# AU, NIST, W64, Matroska.
_BEGINNINGS: Final = (
    *(b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS", b"ID3", b"caff", b".snd", b"NIST_1A", b"riff"),
    b"\x1a\x45\xdf\xa3",
)
HEAD_BYTES: Final = 12


def ending_of(name: str) -> str:
    """What follows the last dot of a file's name, in lower case; empty if there is none."""
    name = name.rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name else ""


@cache
def decodable() -> frozenset[str]:
    """The endings of recordings that can be decoded with what is installed."""
    formats = soundfile.available_formats()
    endings = {ending for name, some in _LIBSNDFILE.items() if name in formats for ending in some.split()}
    return frozenset(endings.union(_AV.split() if importlib.util.find_spec("av") is not None else ()))


@cache
def sound() -> frozenset[str]:
    """The endings of recordings, whether or not they can be decoded here."""
    return frozenset(_AV.split()).union(*(some.split() for some in _LIBSNDFILE.values()))


def how_to_decode() -> str:
    """What to do about recordings that cannot be decoded here, for a message."""
    return f"install the extra {AV_EXTRA}"


def begins_like_sound(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a recording, whatever its name says."""
    return head.startswith(_BEGINNINGS) or head[4:8] == b"ftyp"
