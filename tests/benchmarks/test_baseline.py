"""The baseline gives what the reference implementation gives: it is slower than the engine, not different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mkc_fast import CheckpointError
from mkc_fast.benchmarks.baseline.modules import EagerWavLM
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.export.checkpoints.published import load_wavlm
from mkc_fast.export.networks.wavlm import WavLM
from mkc_fast.export.random_checkpoints import Checkpoints, write_wavlm
from tests.conftest import RECORDINGS, Artifacts, needs_numpy_2

pytest.importorskip("sklearn", reason="the baseline needs scikit-learn")
from mkc_fast.benchmarks.baseline.pipeline import Baseline

TOLERANCE = 1e-4  # float32 rounding over the depth of these networks, as in test_golden


@pytest.fixture(scope="module")
def golden_baseline(golden: Path) -> Baseline:
    return Baseline.load(golden / "WavLM.pt", golden / "conformer.pth", golden / "kmeans.scp", threads=1)


@needs_numpy_2
@pytest.mark.parametrize("mode", ["frame1", "frame4", "audio"])
@pytest.mark.parametrize("recording", RECORDINGS)
def test_baseline_equals_reference(recording: str, mode: str, golden: Path, golden_baseline: Baseline) -> None:
    waveform = read_waveform(golden / "audio" / f"{recording}.wav", 16000)
    with np.load(golden / f"expected_{recording}.npz") as expected:
        frames = len(expected["features"])
        banks = np.full(frames, expected["audio_bank"]) if mode == "audio" else expected[f"{mode}_banks"]
        result = golden_baseline.anonymize(waveform, bank_ids=banks)
        np.testing.assert_allclose(result.waveform, expected[f"{mode}_waveform"], atol=TOLERANCE, rtol=0)
        ids = expected["ids_all_banks"][banks, np.arange(frames)]
        np.testing.assert_array_equal(result.cluster_ids, ids)


@pytest.mark.parametrize(("mode", "stride"), [("frame", 1), ("frame", 3), ("audio", 1)])
def test_baseline_and_engine_draw_and_compute_the_same(
    mode: str, stride: int, checkpoints: Checkpoints, artifacts: Artifacts, clip: np.ndarray
) -> None:
    baseline = Baseline.load(checkpoints.wavlm, checkpoints.ckpt, checkpoints.kmeans_scp, threads=1)
    theirs = baseline.anonymize(clip, mode, stride, seed=7, utterance_id="u1")
    ours = artifacts.anonymizer.anonymize(clip, mode, stride, seed=7, utterance_id="u1")
    np.testing.assert_array_equal(theirs.bank_ids, ours.bank_ids)
    np.testing.assert_array_equal(theirs.cluster_ids, ours.cluster_ids)
    np.testing.assert_allclose(theirs.waveform, ours.waveform, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "layout",
    [
        {"extractor_mode": "default", "layer_norm_first": False},
        {"conv_pos": 15, "conv_bias": True},
    ],
)
def test_eager_wavlm_equals_the_graph_s_modules_in_other_layouts(layout: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "wavlm.pt"
    write_wavlm(path, layout, seed=3)
    checkpoint = load_wavlm(path)
    waveform = torch.randn(1, 8000, generator=torch.Generator().manual_seed(1)) * 0.1
    with torch.inference_mode():
        eager = EagerWavLM(path, checkpoint)(waveform, 6)
        graph = WavLM(path, checkpoint, 6)(waveform, torch.tensor([8000]))
    torch.testing.assert_close(eager, graph, atol=TOLERANCE, rtol=0)


def test_all_layers_are_in_memory_and_the_pass_stops_early(checkpoints: Checkpoints) -> None:
    checkpoint = load_wavlm(checkpoints.wavlm)
    module = EagerWavLM(checkpoints.wavlm, checkpoint)
    assert len(module.layers) == checkpoint.config.num_layers > 6
    ran: list[int] = []
    for index, layer in enumerate(module.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.inference_mode():
        module(torch.zeros(1, 4000), 6)
    assert ran == list(range(6))


def test_predict_is_called_once_a_stride_group(
    checkpoints: Checkpoints, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = Baseline.load(checkpoints.wavlm, checkpoints.ckpt, checkpoints.kmeans_scp, threads=1)
    sizes: list[int] = []
    kind = type(baseline.kmeans[0])
    predict = kind.predict
    monkeypatch.setattr(kind, "predict", lambda self, x: (sizes.append(len(x)), predict(self, x))[1])
    frames = baseline.info.frames(len(clip))
    for mode, stride, calls in (("frame", 1, frames), ("frame", 4, -(-frames // 4)), ("audio", 1, 1)):
        sizes.clear()
        baseline.anonymize(clip, mode, stride)
        assert len(sizes) == calls
        assert sum(sizes) == frames
    assert all(model.cluster_centers_.dtype == np.float64 for model in baseline.kmeans)


def test_a_pickle_that_wants_more_is_not_unpickled(checkpoints: Checkpoints, tmp_path: Path) -> None:
    import pickle

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / "spk.pt").write_bytes(pickle.dumps(Hostile()))
    (tmp_path / "kmeans.scp").write_text(f"spk {tmp_path / 'spk.pt'}\n")
    with pytest.raises(CheckpointError, match="refused"):
        Baseline.load(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "kmeans.scp")
    assert not (tmp_path / "executed").exists()
