"""What several commands let one choose from."""

from __future__ import annotations

from enum import Enum


class Provider(str, Enum):
    """What runs the graphs."""

    auto = "auto"
    tensorrt = "tensorrt"
    cuda = "cuda"
    cpu = "cpu"


class Precision(str, Enum):
    """Of the graphs' arithmetic."""

    auto = "auto"
    fp32 = "fp32"
    tf32 = "tf32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
