"""Exported graphs hold what is used and no more, equal PyTorch, and are refused otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from mkc_fast import Anonymizer, CheckpointError, OutputError
from mkc_fast.engine.artifacts import read_model_info
from mkc_fast.export import build_bank, export_model
from mkc_fast.export import model as exporter
from mkc_fast.export.checkpoints.configs import parse_conv_layers
from mkc_fast.export.checkpoints.published import load_voice, load_wavlm
from mkc_fast.export.graphs import torch_export
from mkc_fast.export.networks.conformer import Conformer
from mkc_fast.export.networks.hifigan import HifiGan, reach_frames
from mkc_fast.export.networks.wavlm import WavLM
from mkc_fast.export.random_checkpoints import Checkpoints, write_voice, write_wavlm
from tests.conftest import Artifacts

GRAPHS = ("wavlm.onnx", "conformer.onnx", "vocoder.onnx")
# Base's layout, other rates and kernels, data-parallel names: what the default small checkpoints are not.
OTHER_WAVLM = {"extractor_mode": "default", "layer_norm_first": False, "conv_pos": 15, "conv_bias": True}
OTHER_VOICE = {
    "kernel_size": 7,
    "hifi_config": {"resblock": "2", "upsample_rates": [8, 5, 4, 2], "upsample_kernel_sizes": [16, 11, 8, 5],
                    "resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 2], [2, 6]]},
}  # fmt: skip


@pytest.fixture(scope="module")
def other(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Artifacts]:
    folder = tmp_path_factory.mktemp("other")
    wavlm, voice = folder / "wavlm.pt", folder / "voice.pth"
    write_wavlm(wavlm, OTHER_WAVLM, seed=5)
    write_voice(voice, OTHER_VOICE, seed=5, prefix="module.")
    export_model(wavlm, voice, folder / "model", layer=3)
    build_bank(checkpoints.kmeans_scp, folder / "bank")
    anonymizer = Anonymizer.load(folder / "model", folder / "bank")
    return wavlm, voice, Artifacts(folder / "model", folder / "bank", anonymizer)


def test_graphs_hold_standard_operators_only(artifacts: Artifacts) -> None:
    for name in GRAPHS:
        graph = onnx.load(artifacts.model / name)
        assert {node.domain for node in graph.graph.node} == {""}
        assert not graph.functions
        onnx.checker.check_model(graph, full_check=True)


def test_only_the_layers_used_are_exported(artifacts: Artifacts) -> None:
    nodes = [node.op_type for node in onnx.load(artifacts.model / "wavlm.onnx").graph.node]
    assert nodes.count("Softmax") == 6  # of 8 layers
    assert artifacts.anonymizer.info.layer == 6


def test_norms_and_activations_are_single_operators(artifacts: Artifacts) -> None:
    nodes = [node.op_type for node in onnx.load(artifacts.model / "wavlm.onnx").graph.node]
    assert nodes.count("LayerNormalization") == 7 + 1 + 2 * 6  # convolutions, projection, two a layer
    assert nodes.count("Gelu") == 7 + 1 + 6  # convolutions, position, one a layer
    assert not {"Erf", "ReduceMean"} & set(nodes)


def test_batch_and_time_are_dynamic(artifacts: Artifacts) -> None:
    session = ort.InferenceSession(artifacts.model / "wavlm.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
        ("waveform", ["batch", "samples"], "tensor(float)"),
        ("lengths", ["batch"], "tensor(int64)"),
    ]
    assert session.get_outputs()[0].shape == ["batch", "frames", 64]


@pytest.mark.parametrize("lengths", [[400], [719, 400], [16000, 401, 9000, 12345]])
def test_padded_batch_equals_each_alone(lengths: list[int], artifacts: Artifacts, other) -> None:
    rng = np.random.default_rng(0)
    for anonymizer in (artifacts.anonymizer, other[2].anonymizer):
        padded = rng.standard_normal((len(lengths), max(lengths))).astype(np.float32)  # noise in the padding too
        batch = anonymizer._sessions.wavlm.run(None, {"waveform": padded, "lengths": np.array(lengths)})[0]
        frames = [anonymizer.info.frames(length) for length in lengths]
        restored = anonymizer._sessions.conformer.run(None, {"features": batch, "lengths": np.array(frames)})[0]
        for row, length in enumerate(lengths):
            alone = anonymizer.encode(padded[row, :length])
            assert len(alone) == frames[row]
            np.testing.assert_allclose(batch[row, : frames[row]], alone, atol=1e-4, rtol=0)
            np.testing.assert_allclose(restored[row, : frames[row]], anonymizer.restore(alone), atol=1e-4, rtol=0)


def test_other_layouts_equal_pytorch_at_every_stage(other) -> None:
    wavlm_path, voice_path, exported = other
    anonymizer, voice = exported.anonymizer, load_voice(voice_path)
    waveform = (np.random.default_rng(1).standard_normal(8000) * 0.1).astype(np.float32)
    with torch.inference_mode():
        features = WavLM(wavlm_path, load_wavlm(wavlm_path), 3)(torch.from_numpy(waveform)[None], torch.tensor([8000]))
        restored = Conformer(voice_path, voice)(features, torch.tensor([features.shape[1]]))
        speech = HifiGan(voice_path, voice)(restored)
    np.testing.assert_allclose(anonymizer.encode(waveform), features[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(anonymizer.restore(features[0].numpy()), restored[0].numpy(), atol=1e-4)
    found = anonymizer.vocode(restored[0].numpy())
    assert found.shape == (24 * 320,)  # though two kernels of odd excess give samples beyond it
    np.testing.assert_allclose(found, speech[0].numpy(), atol=1e-4)


def test_module_prefix_changes_nothing(tmp_path: Path) -> None:
    write_voice(tmp_path / "a.pth", seed=1)
    write_voice(tmp_path / "b.pth", seed=1, prefix="module.")
    plain, prefixed = load_voice(tmp_path / "a.pth"), load_voice(tmp_path / "b.pth")
    assert plain.hifigan == prefixed.hifigan
    assert list(plain.conformer_weights) == list(prefixed.conformer_weights)


def test_a_vocoder_alone_exports_without_a_conformer(tmp_path: Path, checkpoints: Checkpoints) -> None:
    voice = load_voice(checkpoints.ckpt)
    torch.save({"generator": voice.hifigan_weights}, tmp_path / "generator.pt")
    config = tmp_path / "config.json"
    sizes = torch.load(checkpoints.ckpt, weights_only=True)["extra"]["model_config"]["hifi_config"]
    config.write_text(__import__("json").dumps(sizes))
    info = export_model(checkpoints.wavlm, tmp_path / "generator.pt", tmp_path / "model", config)
    assert info.conformer_layers == 0
    bank = tmp_path / "bank"
    build_bank(checkpoints.kmeans_scp, bank)
    anonymizer = Anonymizer.load(tmp_path / "model", bank)
    features = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    np.testing.assert_array_equal(anonymizer.restore(features), features)


def test_hifi_config_may_be_a_path_that_is_elsewhere(tmp_path: Path, checkpoints: Checkpoints) -> None:
    loaded = torch.load(checkpoints.ckpt, weights_only=True)
    sizes = loaded["extra"]["model_config"]["hifi_config"]
    loaded["extra"]["model_config"]["hifi_config"] = "/elsewhere/config_v1.json"
    torch.save(loaded, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="dimensions"):  # falls back on V1, which these small weights are not
        HifiGan(tmp_path, load_voice(tmp_path / "c.pth"))
    (tmp_path / "config_v1.json").write_text(__import__("json").dumps(sizes))
    HifiGan(tmp_path, load_voice(tmp_path / "c.pth"))  # found beside the checkpoint


def test_receptive_field_is_no_less_than_measured(checkpoints: Checkpoints) -> None:
    voice = load_voice(checkpoints.ckpt)
    generator, frames = HifiGan(checkpoints.ckpt, voice), 101
    features = torch.randn(1, frames, 64, generator=torch.Generator().manual_seed(0))
    changed = features.clone()
    changed[0, 50] += 1.0
    with torch.inference_mode():
        difference = (generator(features) - generator(changed)).abs()[0].reshape(frames, 320).amax(1)
    touched = difference.nonzero().flatten()
    reach = max(50 - int(touched.min()), int(touched.max()) - 50)
    assert reach <= reach_frames(voice.hifigan) <= 3 * reach


def test_large_graphs_keep_their_weights_beside_them(
    tmp_path: Path, artifacts: Artifacts, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_export, "MAX_EMBEDDED_BYTES", 100_000)
    export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "model")
    assert (tmp_path / "model" / "conformer.onnx").stat().st_size < 200_000
    beside = Anonymizer.load(tmp_path / "model", artifacts.bank)
    features = np.ones((5, 64), np.float32)
    np.testing.assert_array_equal(beside.restore(features), artifacts.anonymizer.restore(features))


def test_an_export_writes_beside_its_directory_only_where_it_is_told_to(
    tmp_path: Path, artifacts: Artifacts, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(work: exporter._Export, graph: torch_export.ModuleGraph, *_: object, **__: object) -> None:
        shutil.copy(artifacts.model / graph.file, work.directory / graph.file)

    monkeypatch.setattr(exporter, "_write_and_judge", copy)
    monkeypatch.setenv("MKC_FAST_CACHE", str(tmp_path / "user"))
    folders: list[Path] = []  # that digests are written into; those of new files are not kept
    monkeypatch.setattr("mkc_fast.export.model.remember", lambda *given: folders.append(given[2]))
    export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "first", cache=False)
    assert folders == []
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "second", cache=tmp_path / "mine")
    assert folders == [tmp_path / "mine"]
    assert not (tmp_path / "user").exists()
    export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "third")
    assert folders[1:] == [tmp_path / "user"]


def test_a_directory_that_is_there_is_kept(tmp_path: Path, checkpoints: Checkpoints) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")
    with pytest.raises(OutputError, match="already there"):
        export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "model")
    assert (tmp_path / "model" / "mine").read_text() == "x"


@pytest.mark.parametrize("layer", [0, 9, -1])
def test_layers_that_are_not_there_are_refused(layer: int, tmp_path: Path, checkpoints: Checkpoints) -> None:
    with pytest.raises(CheckpointError, match="layers 1 to 8"):
        export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "model", layer=layer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [999, 384_001])
def test_a_sample_rate_that_no_speech_has_is_refused_before_the_work(
    rate: int, tmp_path: Path, checkpoints: Checkpoints
) -> None:
    write_voice(tmp_path / "voice.pth", {"hifi_config": {"sampling_rate": rate}})
    lines: list[str] = []
    with pytest.raises(CheckpointError, match=f"sample_rate is {rate}; expected a whole number from 1000 to 384000"):
        export_model(checkpoints.wavlm, tmp_path / "voice.pth", tmp_path / "model", progress=lines.append)
    assert lines == ["reading checkpoints"]


def test_checkpoints_of_different_dimensions_are_refused(tmp_path: Path, checkpoints: Checkpoints) -> None:
    write_voice(tmp_path / "wide.pth", {"feature_dim": 128})
    with pytest.raises(CheckpointError, match="128 dimensions"):
        export_model(checkpoints.wavlm, tmp_path / "wide.pth", tmp_path / "model")


def test_model_json_says_what_was_exported(artifacts: Artifacts, checkpoints: Checkpoints) -> None:
    from mkc_fast.engine.atomic_files import sha256_of

    info = read_model_info(artifacts.model)
    assert (info.sample_rate, info.hop, info.min_samples, info.dim, info.precision) == (16000, 320, 400, 64, "fp32")
    assert info.sources == {"wavlm": sha256_of(checkpoints.wavlm), "ckpt": sha256_of(checkpoints.ckpt)}
    assert [info.frames(samples) for samples in (399, 400, 719, 720)] == [0, 1, 1, 2]


def test_conv_layers_are_parsed_without_eval() -> None:
    parsed = parse_conv_layers(Path("x"), "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2")
    assert parsed == ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
    for text in ("__import__('os')", "[(1,2,3)] * 10**9", "[(1,2)]", "[]", "[(1,2,3)] * 33", "(" * 5000, "[(-1,2,3)]"):
        with pytest.raises(CheckpointError):
            parse_conv_layers(Path("x"), text)
