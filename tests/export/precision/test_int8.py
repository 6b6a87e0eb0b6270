"""Linear layers in 8 bits: what is converted, how near it stays to float32, and what is refused."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from mkc_fast import Anonymizer, DeviceError
from mkc_fast.engine.artifacts import CHECK_INEXACT, CHECK_PASSED, read_model_info, write_info
from mkc_fast.engine.options import check_choice
from mkc_fast.engine.sessions.providers import graph_file
from mkc_fast.export.precision import int8
from mkc_fast.export.precision.int8 import int8_file, write_int8_graphs
from mkc_fast.names import CONFORMER_FILE, WAVLM_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Artifacts


@pytest.fixture(scope="module")
def model(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model with 8-bit graphs; its small layers count as large."""
    folder = tmp_path_factory.mktemp("int8") / "model"
    shutil.copytree(artifacts.model, folder)
    info = read_model_info(folder)
    write_int8_graphs(folder, folder, info, lambda _: None, least_weights=256)
    write_info(folder, info)
    return folder


def _operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("name", [WAVLM_FILE, CONFORMER_FILE])
def test_constant_products_become_integer_and_attention_does_not(model: Path, name: str) -> None:
    full, small = _operators(model / name), _operators(model / int8_file(name))
    assert small.count("MatMulInteger") > 0
    assert full.count("MatMul") == small.count("MatMulInteger") + small.count("MatMul")
    # Queries with keys, weights with values: two products of a layer that have no constant.
    assert small.count("MatMul") >= 2 * full.count("Softmax")
    assert full.count("Conv") == small.count("Conv")


def test_int8_is_near_float32_and_not_equal(model: Path, artifacts: Artifacts, clip: np.ndarray) -> None:
    small = Anonymizer.load(model, artifacts.bank, precision="int8")
    full = artifacts.anonymizer
    features, expected = small.encode(clip), full.encode(clip)
    error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
    # 8 bits over a range of some 4 standard deviations: rounding of about 1 % of the input of each layer.
    assert 1e-4 < error < 0.1
    banks = np.zeros(len(expected), np.int64)
    quantized = full.lookup(banks, full.assign(expected, banks))
    restored, wanted = small.restore(quantized), full.restore(quantized)
    assert 1e-4 < np.linalg.norm(restored - wanted) / np.linalg.norm(wanted) < 0.2
    assert np.array_equal(small.vocode(wanted), full.vocode(wanted)), "the vocoder is the same"


def test_model_without_8_bit_graphs_says_how_to_make_them(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mkc_fast.engine.sessions.cpu.native_library", lambda: None)
    with pytest.raises(DeviceError, match=r"lacks wavlm\.int8\.onnx, conformer\.int8\.onnx; .*export --int8"):
        Anonymizer.load(artifacts.model, artifacts.bank, precision="int8")


def test_int8_is_for_the_cpu_and_has_no_vocoder_of_its_own() -> None:
    with pytest.raises(DeviceError, match="precision int8 is for the device cpu"):
        check_choice(0, "auto", "int8")
    check_choice(None, "cpu", "int8")
    assert [graph_file(name, "int8") for name in ("wavlm.onnx", "vocoder.onnx")] == ["wavlm.int8.onnx", "vocoder.onnx"]


def test_error_is_measured_against_the_tolerance(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = read_model_info(artifacts.model)
    for tolerance, status in ((0.3, CHECK_PASSED), (1e-5, CHECK_INEXACT)):
        monkeypatch.setattr(int8, "_TOLERANCE", tolerance)
        checks = write_int8_graphs(artifacts.model, tmp_path, info, lambda _: None, least_weights=256)
        assert [check.status for check in checks.values()] == [status, status]
        assert all(1e-4 < check.error / check.scale < 0.1 for check in checks.values())
