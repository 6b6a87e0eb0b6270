"""Graphs for CUDA equal the networks that they are made of, in every form of checkpoint; the CPU runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mkc_fast import ArtifactError
from mkc_fast.engine.artifacts import read_model_info, weights_file
from mkc_fast.engine.sessions.shared_weights import read_table
from mkc_fast.export import export_model
from mkc_fast.export.precision.half import value_types
from mkc_fast.export.random_checkpoints import write_voice, write_wavlm
from mkc_fast.kernels.cuda.residual_stages import WEIGHTS_FILE, StagedBlocks, stage_file
from tests.conftest import Artifacts

FORMS = [f"{graph}.cuda{half}.onnx" for graph in ("wavlm", "conformer", "vocoder") for half in ("", ".fp16")]

WAVLMS: dict[str, dict[str, Any]] = {
    "normalized after its parts, GroupNorm": {"extractor_mode": "default", "layer_norm_first": False},
    "with biases in the extractor": {"conv_bias": True},
    "without gates": {"gru_rel_pos": False},
    "without positions": {"relative_position_embedding": False, "gru_rel_pos": False},
}
VOICES: dict[str, dict[str, Any]] = {
    "no convolution over time": {"kernel_size": 1},
    "five taps": {"kernel_size": 5},
    "more taps than are shifted": {"kernel_size": 15},
    "one layer": {"conformer_num_layers": 1},
}


def exported(folder: Path, wavlm: dict[str, Any], voice: dict[str, Any]) -> Path:
    write_wavlm(folder / "WavLM.pt", wavlm)
    write_voice(folder / "voice.pth", config=voice)
    export_model(folder / "WavLM.pt", folder / "voice.pth", folder / "model", cuda=True, cache=False)
    return folder / "model"


@pytest.mark.parametrize(
    ("wavlm", "voice"),
    [(wavlm, voice) for wavlm, voice in zip(WAVLMS.values(), VOICES.values(), strict=True)],
    ids=[f"{wavlm}; {voice}" for wavlm, voice in zip(WAVLMS, VOICES, strict=True)],
)
def test_every_form_passes_its_check(wavlm: dict[str, Any], voice: dict[str, Any], tmp_path: Path) -> None:
    model = exported(tmp_path, wavlm, voice)
    checks = read_model_info(model).checks
    assert {file: checks[file].status for file in FORMS} == dict.fromkeys(FORMS, "passed")
    assert all((model / file).is_file() and weights_file(model / file).is_file() for file in FORMS)


def test_no_product_of_a_half_precision_form_is_in_float32(cuda_artifacts: Artifacts) -> None:
    """TF32 is allowed there, for convolutions in float16, and would take the place of float32."""
    for file in FORMS:
        if ".fp16." not in file:
            continue
        model = onnx.load(cuda_artifacts.model / file)
        types = value_types(model)
        for node in model.graph.node:
            if node.op_type in {"MatMul", "Conv", "ConvTranspose", "MultiHeadAttention", "Gemm"}:
                assert types[node.input[0]] == onnx.TensorProto.FLOAT16, (file, node.name)
            if node.op_type == "SkipLayerNormalization":
                assert types[node.input[0]] == onnx.TensorProto.FLOAT, "its statistics would be in float16"


def test_a_vocoder_is_also_written_in_stages_of_the_same_weights(cuda_artifacts: Artifacts) -> None:
    model = cuda_artifacts.model
    info, blocks = read_model_info(model), StagedBlocks.read(model)
    parts = [model / stage_file(number) for number in range(len(blocks.stages) + 1)]
    assert len(parts) > 1
    assert {WEIGHTS_FILE, *(path.name for path in parts), *(weights_file(path).name for path in parts)} <= set(
        info.files
    )
    whole = {tensor.name: tensor for tensor in onnx.load(model / "vocoder.cuda.fp16.onnx").graph.initializer}
    taken: set[str] = set()
    for path in parts:
        for tensor in onnx.load(path).graph.initializer:
            assert tensor.raw_data == whole[tensor.name].raw_data
            taken.add(tensor.name)
    left = {name for name in whole if name not in taken}
    assert all(re.fullmatch(r"stages\.\d+\.blocks\.\d+\.(dilated|plain)\.\d+\.(weight|bias)", name) for name in left)
    assert len(left) == 4 * sum(len(block) for stage in blocks.stages for block in stage.blocks)


def test_float32_forms_equal_the_plain_graphs(cuda_artifacts: Artifacts) -> None:
    info = read_model_info(cuda_artifacts.model)
    for graph in ("wavlm", "conformer", "vocoder"):
        plain, fused = info.checks[f"{graph}.onnx"], info.checks[f"{graph}.cuda.onnx"]
        assert fused.error <= fused.bound == plain.bound


def test_the_table_of_weights_has_what_the_graph_reads(cuda_artifacts: Artifacts, tmp_path: Path) -> None:
    for file in FORMS:
        path = cuda_artifacts.model / file
        table, data = read_table(weights_file(path)), weights_file(path).read_bytes()
        model = onnx.load(path)
        outside = {tensor.name for tensor in onnx.load(path, load_external_data=False).graph.initializer
                   if tensor.data_location == onnx.TensorProto.EXTERNAL}  # fmt: skip
        assert set(table) == outside
        for tensor in model.graph.initializer:
            if tensor.name in table:
                said = table[tensor.name]
                values = np.frombuffer(data[said.begin : said.end], said.kind).reshape(said.shape)
                np.testing.assert_array_equal(values, onnx.numpy_helper.to_array(tensor))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05\0\0\0\0\0\0\0hello",
        b"\xff" * 16,
        b"\x02\0\0\0\0\0\0\0[]",
        *(
            len(header).to_bytes(8, "little") + header + bytes(16)
            for header in (
                json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode(),
                json.dumps({"w": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}).encode(),
                json.dumps({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}).encode(),
                json.dumps({"w": {"dtype": "Q9", "shape": [4], "data_offsets": [0, 16]}}).encode(),
                json.dumps({"w": {"shape": [4]}}).encode(),
                json.dumps({"w": 7}).encode(),
                b"[" * 5000,
            )
        ),
    ],
)
def test_a_damaged_file_of_weights_is_an_error_of_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "wavlm.cuda.bin"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"wavlm\.cuda\.bin: is no file of weights") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_table(tmp_path / "missing.bin")


def test_a_form_beyond_its_bound_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mkc_fast.export.cuda_forms.TOLERANCE", 1e-9)
    model = exported(tmp_path, {}, {})
    info = read_model_info(model)
    for graph in ("wavlm", "conformer", "vocoder"):
        assert info.checks[f"{graph}.cuda.fp16.onnx"].status == "left out"
        assert not (model / f"{graph}.cuda.fp16.onnx").exists()
        assert not (model / f"{graph}.cuda.fp16.bin").exists()
        assert (model / f"{graph}.cuda.onnx").exists()
