"""What several commands let one choose from: the names of ``mkc_fast.names``, as Typer takes them."""

from __future__ import annotations

from enum import Enum

from mkc_fast import names


class Mode(str, Enum):
    """How bank entries are drawn."""

    audio = names.AUDIO
    frame = names.FRAME


class Level(str, Enum):
    """Which utterances share a draw."""

    utterance = names.UTTERANCE
    speaker = names.SPEAKER
    constant = names.CONSTANT


class OnFailure(str, Enum):
    """What becomes of a recording that fails."""

    stop = names.STOP
    copy_silence = names.COPY_SILENCE


class Format(str, Enum):
    """The formats of the outputs."""

    wav = names.WAV
    flac = names.FLAC


class InputForm(str, Enum):
    """The forms of corpora."""

    auto = names.AUTO
    files = names.FILES
    jsonl = names.JSONL
    webdataset = names.WEBDATASET
    lhotse = names.LHOTSE
    shar = names.SHAR
    huggingface = names.HUGGING_FACE


class Provider(str, Enum):
    """What runs the graphs."""

    auto = names.AUTO
    tensorrt = names.TENSORRT
    cuda = names.CUDA
    cpu = names.CPU


class Precision(str, Enum):
    """Precision of the graphs' arithmetic."""

    auto = names.AUTO
    fp32 = names.FP32
    tf32 = names.TF32
    mixed = names.MIXED
    fp16 = names.FP16
    bf16 = names.BF16
    int16 = names.INT16
    int8 = names.INT8
