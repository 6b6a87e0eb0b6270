"""Precisions of whole numbers on a CPU: which graphs run, how near the results are, and what is said and refused."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from mkc_fast import Anonymizer, ArtifactError, DeviceError
from mkc_fast.engine.artifacts import CHECK_LEFT_OUT, CHECK_PASSED, RMS, native_file, read_model_info
from mkc_fast.engine.sessions.cpu import cpu_graph, operators_used
from mkc_fast.export.model import export_model
from mkc_fast.kernels.cpu.loader import native_library
from mkc_fast.names import CONFORMER_FILE, GRAPH_FILES, VOCODER_FILE, WAVLM_FILE
from tests.conftest import signed

if TYPE_CHECKING:
    from pathlib import Path

    from mkc_fast.names import Mode, Precision
    from tests.conftest import Artifacts, Checkpoints, MakeOnce

if native_library() is None:
    pytest.skip("the native operators are not built here: no C++ compiler, or no AVX2", allow_module_level=True)

FORMS = {
    "mixed": ["fp32", "int16", "int16"],
    "int16": ["int16", "int16", "int16"],
    "int8": ["int8", "int8", "int16"],
}


@pytest.fixture(scope="session")
def whole(checkpoints: Checkpoints, make_once: MakeOnce) -> Path:
    """The random checkpoints, exported in whole numbers too."""
    folder = make_once(
        "whole",
        lambda folder: export_model(checkpoints.wavlm, checkpoints.ckpt, folder / "model", int16=True, int8=True),
    )
    return folder / "model"


def snr(expected: np.ndarray, found: np.ndarray) -> float:
    expected = expected.astype(np.float64)
    return float(10 * np.log10(np.sum(expected**2) / np.sum((expected - found) ** 2)))


@pytest.mark.parametrize("precision", FORMS)
def test_a_precision_takes_its_graphs(whole: Path, precision: str) -> None:
    files = [cpu_graph(whole, name, precision) for name in GRAPH_FILES]
    assert files == [native_file(name, form) for name, form in zip(GRAPH_FILES, FORMS[precision], strict=True)]
    forms = ", ".join(
        f"{name.removesuffix('.onnx')} {form}" for name, form in zip(GRAPH_FILES, FORMS[precision], strict=True)
    )
    assert operators_used(whole, precision).endswith(f"; {forms})")


def test_products_are_in_whole_numbers(whole: Path) -> None:
    for name, form, operator in ((WAVLM_FILE, "int8", "Convolution8"), (CONFORMER_FILE, "int16", "Convolution16"),
                                 (VOCODER_FILE, "int16", "Convolution16")):  # fmt: skip
        nodes = onnx.load(whole / native_file(name, form), load_external_data=False).graph.node
        assert operator in {node.op_type for node in nodes}


def test_each_graph_is_judged_and_listed(whole: Path) -> None:
    info = read_model_info(whole)
    for name, form in [(name, "int16") for name in GRAPH_FILES] + [(name, "int8") for name in GRAPH_FILES[:2]]:
        check = info.checks[native_file(name, form)]
        assert check.measure == RMS
        assert check.status == CHECK_PASSED
        assert 0 < check.error / check.scale < (0.01 if form == "int16" else 0.3)
        assert native_file(name, form) in info.files
    assert native_file(VOCODER_FILE, "int8") not in info.files


@pytest.mark.parametrize("mode", ["audio", "frame"])
def test_mixed_has_the_cluster_ids_of_float32(whole: Path, artifacts: Artifacts, clip: np.ndarray, mode: Mode) -> None:
    mixed = Anonymizer.load(whole, artifacts.bank, precision="mixed")
    found, expected = (each.anonymize(clip, mode=mode, seed=3) for each in (mixed, artifacts.anonymizer))
    np.testing.assert_array_equal(found.bank_ids, expected.bank_ids)
    np.testing.assert_array_equal(found.cluster_ids, expected.cluster_ids)
    assert 40 < snr(expected.waveform, found.waveform) < 90


def test_fewer_bits_are_further_from_float32(whole: Path, artifacts: Artifacts, clip: np.ndarray) -> None:
    expected = artifacts.anonymizer.encode(clip)
    near, far = (
        snr(expected, Anonymizer.load(whole, artifacts.bank, precision=precision).encode(clip))
        for precision in ("int16", "int8")
    )
    assert near > 45
    assert 15 < far < near


@pytest.mark.parametrize("precision", FORMS)
def test_threads_batches_and_neighbours_change_no_bit(
    whole: Path, artifacts: Artifacts, clip: np.ndarray, precision: Precision
) -> None:
    clips = [clip, clip[:9000], clip[4000:20_000]]
    one, two = (Anonymizer.load(whole, artifacts.bank, precision=precision, threads=threads) for threads in (1, 2))
    ids = ["a", "b", "c"]
    together = two.anonymize_batch(clips, mode="audio", seed=1, utterance_ids=ids, batch_s=60)
    for name, waveform, found in zip(ids, clips, together, strict=True):
        np.testing.assert_array_equal(
            one.anonymize(waveform, mode="audio", seed=1, utterance_id=name).waveform, found.waveform
        )


def test_bf16_on_a_cpu_is_int16(whole: Path, artifacts: Artifacts, clip: np.ndarray) -> None:
    asked, given = (Anonymizer.load(whole, artifacts.bank, precision=name) for name in ("bf16", "int16"))
    assert asked.chosen == given.chosen
    assert "CPU, int16," in asked.chosen
    np.testing.assert_array_equal(asked.encode(clip), given.encode(clip))


@pytest.mark.parametrize(("precision", "option"), [("mixed", "--int16"), ("bf16", "--int16"), ("int8", "--int8")])
def test_a_model_without_the_graphs_says_how_to_make_them(
    artifacts: Artifacts, precision: Precision, option: str
) -> None:
    with pytest.raises(DeviceError, match=rf"lacks .*conformer\.native\.int(16|8)\.onnx.*export {option}'"):
        Anonymizer.load(artifacts.model, artifacts.bank, precision=precision)


def test_without_the_operators_int16_is_refused(
    whole: Path, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mkc_fast.engine.sessions.cpu.native_library", lambda: None)
    with pytest.raises(DeviceError, match="precision int16 needs the native operators, which are not built here"):
        Anonymizer.load(whole, artifacts.bank, precision="int16")


def test_a_graph_that_the_export_left_out_runs_in_float32_and_this_is_said(
    whole: Path, artifacts: Artifacts, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mkc_fast.export.model._TOLERANCES", {"int16": 1e-9, "int8": 0.3})
    said: list[str] = []
    info = export_model(
        checkpoints.wavlm, checkpoints.ckpt, tmp_path / "m", int16=True, int8=True, progress=said.append
    )
    assert info.checks[native_file(VOCODER_FILE, "int16")].status == CHECK_LEFT_OUT
    assert native_file(VOCODER_FILE, "int16") not in info.files
    assert any("vocoder.native.int16.onnx" in line and "left out" in line for line in said)
    opened = Anonymizer.load(tmp_path / "m", artifacts.bank, precision="int8")
    assert "; wavlm int8, conformer int8, vocoder fp32)" in opened.chosen
    with pytest.raises(DeviceError, match=r"lacks wavlm\.native\.int16\.onnx"):
        Anonymizer.load(tmp_path / "m", artifacts.bank, precision="int16")


def test_manifests_tell_precisions_apart(whole: Path, artifacts: Artifacts) -> None:
    ran = [Anonymizer.load(whole, artifacts.bank, precision=name).ran for name in ("fp32", "mixed", "int16", "int8")]
    assert len({str(each) for each in ran}) == 4
    assert "threads" not in ran[1], "their number changes no bit"


def test_a_damaged_graph_is_refused_when_it_runs(
    whole: Path, artifacts: Artifacts, tmp_path: Path, clip: np.ndarray
) -> None:
    model = tmp_path / "model"
    shutil.copytree(whole, model)
    path = model / native_file(CONFORMER_FILE, "int16")
    graph = onnx.load(path, load_external_data=False)
    node = next(node for node in graph.graph.node if node.op_type == "Convolution16")
    next(attribute for attribute in node.attribute if attribute.name == "kernel").i = 3
    onnx.save(graph, path)
    signed(model)
    opened = Anonymizer.load(model, artifacts.bank, precision="mixed")
    with pytest.raises(ArtifactError, match=r"conformer\.native\.int16\.onnx: not a usable graph"):
        opened.anonymize(clip, seed=1)
