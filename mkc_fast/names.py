"""The names that the CLI, the artifacts, the passes and the benchmarks share, each in one place, with their types."""

from __future__ import annotations

from typing import Final, Literal, get_args

# The stages of the pass, each a method of ``Anonymizer``.
Stage = Literal["encode", "assign", "lookup", "restore", "vocode"]
ENCODE: Final = "encode"
ASSIGN: Final = "assign"
LOOKUP: Final = "lookup"
RESTORE: Final = "restore"
VOCODE: Final = "vocode"
# A clock counts the look-up's reading of centroids with ``assign``, which chooses them.
TIMED_STAGES: Final = (ENCODE, ASSIGN, RESTORE, VOCODE)

# How bank entries are drawn: one for a recording, or a new one every ``stride`` frames.
Mode = Literal["audio", "frame"]
AUDIO: Final = "audio"
FRAME: Final = "frame"
MODES: tuple[Mode, ...] = get_args(Mode)

# Which utterances share a draw: none, those of one speaker, or all.
Level = Literal["utterance", "speaker", "constant"]
UTTERANCE: Final = "utterance"
SPEAKER: Final = "speaker"
CONSTANT: Final = "constant"
LEVELS: tuple[Level, ...] = get_args(Level)

# If a recording fails: its folder is left incomplete, or silence is written as its output.
OnFailure = Literal["stop", "copy-silence"]
STOP: Final = "stop"
COPY_SILENCE: Final = "copy-silence"
ON_FAILURE: tuple[OnFailure, ...] = get_args(OnFailure)

# Formats of the outputs.
AudioFormat = Literal["wav", "flac"]
WAV: Final = "wav"
FLAC: Final = "flac"
FORMATS: tuple[AudioFormat, ...] = get_args(AudioFormat)

# Forms of corpora that an input is recognized as.
InputForm = Literal["files", "jsonl", "webdataset", "lhotse", "shar", "huggingface"]
FILES: Final = "files"
JSONL: Final = "jsonl"
WEBDATASET: Final = "webdataset"
LHOTSE: Final = "lhotse"
SHAR: Final = "shar"
HUGGING_FACE: Final = "huggingface"

# Providers of ONNX Runtime. ``cpu`` is also the name of a device.
Provider = Literal["auto", "tensorrt", "cuda", "cpu"]
AUTO: Final = "auto"
TENSORRT: Final = "tensorrt"
CUDA: Final = "cuda"
CPU: Final = "cpu"
PROVIDERS: tuple[Provider, ...] = get_args(Provider)

# Precisions of the graphs' weights and arithmetic; ``auto`` is one of them too.
Precision = Literal["auto", "fp32", "tf32", "mixed", "fp16", "bf16", "int16", "int8"]
FP32: Final = "fp32"
TF32: Final = "tf32"
MIXED: Final = "mixed"  # WavLM in float32, so that cluster ids are those of float32; the other two in 16 bits
FP16: Final = "fp16"
BF16: Final = "bf16"
INT16: Final = "int16"  # whole numbers in blocks with scales, on CPUs
INT8: Final = "int8"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# The networks, each of them one graph of a model, with its file.
Graph = Literal["wavlm", "conformer", "vocoder"]
WAVLM: Final = "wavlm"
CONFORMER: Final = "conformer"
VOCODER: Final = "vocoder"
GRAPHS: tuple[Graph, ...] = get_args(Graph)
WAVLM_FILE: Final = f"{WAVLM}.onnx"
CONFORMER_FILE: Final = f"{CONFORMER}.onnx"
VOCODER_FILE: Final = f"{VOCODER}.onnx"
GRAPH_FILES: Final = (WAVLM_FILE, CONFORMER_FILE, VOCODER_FILE)
