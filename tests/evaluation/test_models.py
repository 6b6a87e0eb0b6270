"""Models that are files: what they must be, and that none is downloaded."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mkc_fast.errors import MkcError
from mkc_fast.evaluation.recognizers import Whisper
from mkc_fast.evaluation.verifiers import OnnxVerifier

onnx = pytest.importorskip("onnx", reason="makes graphs")
WAVE = np.linspace(-0.5, 0.5, 1600, dtype=np.float32)


def graph(path: Path, shape: list[Any], inputs: int = 1, kind: int = onnx.TensorProto.FLOAT) -> Path:
    """A graph that gives the mean and the largest value of its first input."""
    helper = onnx.helper
    nodes = [
        helper.make_node("ReduceMean", ["x0"], ["mean"], keepdims=1),
        helper.make_node("ReduceMax", ["x0"], ["most"], keepdims=1),
        helper.make_node("Concat", ["mean", "most"], ["embedding"], axis=-1),
    ]
    names = [helper.make_tensor_value_info(f"x{number}", kind, shape) for number in range(inputs)]
    made = helper.make_graph(nodes, "verifier", names, [helper.make_tensor_value_info("embedding", kind, None)])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("shape", [[1, None], ["batch", "samples"]])
def test_a_graph_from_waveform_to_embedding_is_a_verifier(tmp_path: Path, shape: list[Any]) -> None:
    verifier = OnnxVerifier(graph(tmp_path / "speaker.onnx", shape))
    assert verifier.open()(WAVE) == pytest.approx([WAVE.mean(), 0.5], abs=1e-6)
    facts = verifier.facts()
    assert facts.name == "speaker"
    assert len(facts.files[0].sha256) == 64


@pytest.mark.parametrize(
    ("shape", "inputs", "kind"),
    [
        ([1, None, 80], 1, onnx.TensorProto.FLOAT),
        ([1, 16000], 1, onnx.TensorProto.FLOAT),
        ([4, None], 1, onnx.TensorProto.FLOAT),
        ([None], 1, onnx.TensorProto.FLOAT),
        ([1, None], 2, onnx.TensorProto.FLOAT),
        ([1, None], 1, onnx.TensorProto.DOUBLE),
    ],
)
def test_a_graph_that_takes_something_else_is_refused_with_what_is_expected(
    tmp_path: Path, shape: list[Any], inputs: int, kind: int
) -> None:
    with pytest.raises(MkcError, match=r"takes x0 \[.*expected one input, a waveform \(1, S\) float32 at 16 kHz"):
        OnnxVerifier(graph(tmp_path / "other.onnx", shape, inputs, kind)).open()


def test_weights_outside_the_graph_are_facts_too(tmp_path: Path) -> None:
    model = onnx.load(graph(tmp_path / "speaker.onnx", [1, None]))
    inner = onnx.helper.make_graph([], "inner", [], [], [onnx.numpy_helper.from_array(np.ones(999, np.float32), "w")])
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("body", inner))
    tensors = {
        "inner.data": model.graph.node[0].attribute[-1].g.initializer[0],
        "top.data": model.graph.initializer.add(),
    }
    for place, tensor in tensors.items():
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(999, np.float32), place))
        onnx.external_data_helper.set_external_data(tensor, place)
        (tmp_path / place).write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
    onnx.save(model, tmp_path / "speaker.onnx")
    files = OnnxVerifier(tmp_path / "speaker.onnx").facts().files
    assert [each.name for each in files] == ["speaker.onnx", "inner.data", "top.data"]
    (tmp_path / "top.data").unlink()
    with pytest.raises(MkcError, match=r"top.data: cannot be read"):
        OnnxVerifier(tmp_path / "speaker.onnx").facts()


def test_a_graph_that_gives_an_embedding_for_each_frame_is_refused_at_the_first_recording(tmp_path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["wave"]),
        helper.make_node("Conv", ["wave", "kernel"], ["frames"], strides=[160]),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.array([1]), "axis"),
        onnx.numpy_helper.from_array(np.ones((2, 1, 400), np.float32), "kernel"),
    ]
    shapes = [helper.make_tensor_value_info(name, kind, shape) for name, shape in (("x", [1, None]), ("frames", None))]
    made = helper.make_graph(nodes, "frames", shapes[:1], shapes[1:], weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "f.onnx")
    with pytest.raises(
        MkcError, match=r"gives \[1, 2, 8\] for a waveform of 1600 samples; .*no axis of time: \(1, E\)"
    ):
        OnnxVerifier(tmp_path / "f.onnx").open()(WAVE)


def test_what_is_no_graph_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(MkcError, match="not a graph that ONNX Runtime opens"):
        OnnxVerifier(tmp_path / "no.onnx").open()
    with pytest.raises(MkcError, match=r"no.onnx: not an ONNX graph"):
        OnnxVerifier(tmp_path / "no.onnx").facts()


@pytest.mark.parametrize("missing", ["model.bin", "config.json", "tokenizer.json"])
def test_a_folder_that_would_make_whisper_download_is_refused(tmp_path: Path, missing: str) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    (tmp_path / missing).unlink()
    with pytest.raises(MkcError, match=rf"has no {missing}; .*nothing is downloaded"):
        Whisper(tmp_path).open()


def whisper(folder: Path, monkeypatch: pytest.MonkeyPatch, mel_bands: int = 80) -> dict[str, Any]:
    """A folder that stands for a model of English and German, and what faster-whisper is asked for."""
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (folder / name).touch()
    asked: dict[str, Any] = {}

    class WhisperModel:
        supported_languages = ("en", "de", "yue")
        hf_tokenizer = types.SimpleNamespace(token_to_id={"<|en|>": 1, "<|de|>": 2}.get)
        feature_extractor = types.SimpleNamespace(mel_filters=np.zeros((80, 201)))
        model = types.SimpleNamespace(n_mels=mel_bands)

        def __init__(self, name: str, **options: Any) -> None:
            asked.update(options, name=name)

        def transcribe(self, _: np.ndarray, **options: Any) -> tuple[list[Any], None]:
            asked.update(options)
            return [
                types.SimpleNamespace(text=text, compression_ratio=ratio)
                for text, ratio in ((" Hello", 0.8), (" there. ", 0.9), (" and so on" * 90, 20.0))
            ], None

    package = types.ModuleType("faster_whisper")
    package.WhisperModel = WhisperModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "faster_whisper", package)
    return asked


def test_whisper_is_opened_from_the_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = whisper(tmp_path, monkeypatch)
    assert Whisper(tmp_path, "de").open()(WAVE) == "Hello there."
    assert asked | {"name": str(tmp_path), "local_files_only": True, "language": "de", "temperature": 0.0} == asked
    assert Whisper(tmp_path, "de").facts().as_record()["language"] == "de"
    assert Whisper(tmp_path, None).facts().as_record()["language"] == "auto"


@pytest.mark.parametrize("language", ["german", "yue"])
def test_a_language_that_the_model_has_not_is_refused_at_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    whisper(tmp_path, monkeypatch)
    with pytest.raises(MkcError, match=rf"no language '{language}'; --language is 'auto' or one of en, de$"):
        Whisper(tmp_path, language).open()


def test_mel_bands_that_the_model_does_not_hear_are_refused_at_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whisper(tmp_path, monkeypatch, mel_bands=128)
    with pytest.raises(MkcError, match=r"hears 128 mel bands.* makes 80; .*--copy_files tokenizer.json preprocessor_"):
        Whisper(tmp_path).open()
