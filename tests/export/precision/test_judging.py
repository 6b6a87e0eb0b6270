"""Graphs are judged against float64 by what float32 itself loses there: honest ones pass, defects do not."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import numpy_helper

from mkc_fast import Anonymizer, ArtifactError, CheckpointError, InexactError, MkcError
from mkc_fast.cli import main
from mkc_fast.engine.artifacts import (
    CHECK_INEXACT,
    CHECK_LEFT_OUT,
    CHECK_PASSED,
    CPU_VOCODER_FILE,
    MODEL_FILE,
    PIECE_REACH,
    RMS,
    GraphCheck,
    identity,
    native_file,
    read_model_info,
    write_info,
)
from mkc_fast.engine.doctor import examine
from mkc_fast.export import export_model
from mkc_fast.export import model as exporter
from mkc_fast.export.cache import cached_model
from mkc_fast.export.checkpoints.published import load_voice, load_wavlm
from mkc_fast.export.graphs.files import open_session
from mkc_fast.export.graphs.native import write_hifigan
from mkc_fast.export.networks.conformer import Conformer
from mkc_fast.export.networks.hifigan import HifiGan
from mkc_fast.export.networks.wavlm import WavLM
from mkc_fast.export.precision import judging
from mkc_fast.export.precision.half import half_file
from mkc_fast.export.precision.int8 import int8_file
from mkc_fast.export.precision.judging import (
    Reference,
    judged,
    judged_rms,
    nearness,
    next_rows,
    pass_rows,
    references,
    runner,
)
from mkc_fast.export.precision.probes import feature_probes, quantized, waveform_probes
from mkc_fast.export.random_checkpoints import Checkpoints
from mkc_fast.kernels.cpu.loader import native_library
from mkc_fast.names import CONFORMER_FILE, VOCODER_FILE, WAVLM_FILE
from tests.conftest import Artifacts, signed

if TYPE_CHECKING:
    from mkc_fast.export.precision.judging import Run

FILES = (WAVLM_FILE, CONFORMER_FILE, VOCODER_FILE)
needs_native = pytest.mark.skipif(native_library() is None, reason="the native operators are not built here")


@pytest.fixture(scope="module")
def found(checkpoints: Checkpoints, artifacts: Artifacts) -> dict[str, list[Reference]]:
    """What PyTorch makes of the probes of each stage, in float64 and float32."""
    wavlm, voice, info = load_wavlm(checkpoints.wavlm), load_voice(checkpoints.ckpt), artifacts.anonymizer.info
    encoded = references(checkpoints.wavlm, WavLM(checkpoints.wavlm, wavlm, 6), waveform_probes(info), lengths=True)
    probes = feature_probes(quantized(next_rows(encoded), pass_rows(encoded)))
    restored = references(checkpoints.ckpt, Conformer(checkpoints.ckpt, voice), probes, lengths=True)
    probes = feature_probes(next_rows(restored))
    vocoded = references(checkpoints.ckpt, HifiGan(checkpoints.ckpt, voice), probes, lengths=False)
    return {WAVLM_FILE: encoded, CONFORMER_FILE: restored, VOCODER_FILE: vocoded}


def check_of(found: dict[str, list[Reference]], stage: str, run: Run) -> GraphCheck:
    return judged(stage, run, found[stage], lengths=stage != VOCODER_FILE)


def run_of(graph: onnx.ModelProto | Path) -> Run:
    return runner(open_session(graph))


def run_giving(make: Callable[[np.ndarray], np.ndarray]) -> Run:
    return lambda batch, _: make(batch)


@pytest.mark.parametrize("stage", [*FILES, CPU_VOCODER_FILE])
@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)], ids=["plain", "native"])
def test_honest_graphs_pass_with_room(
    stage: str, native: bool, artifacts: Artifacts, found: dict[str, list[Reference]]
) -> None:
    file = native_file(stage) if native else stage
    if not (artifacts.model / file).is_file():
        pytest.skip("there is no such form")
    session = open_session(artifacts.model / file)
    reach = int(session.get_modelmeta().custom_metadata_map.get(PIECE_REACH, 0))
    check = judged(file, runner(session, reach), found.get(stage, found[VOCODER_FILE]), lengths=stage in FILES[:2])
    assert check.status == CHECK_PASSED
    assert nearness(check) < 0.75  # measured: 0.05 to 0.4


def test_the_reference_leaves_the_module_as_it_was(checkpoints: Checkpoints) -> None:
    module = Conformer(checkpoints.ckpt, load_voice(checkpoints.ckpt))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    probes = feature_probes([np.random.default_rng(0).standard_normal((20, 64), np.float32)])
    reference = references(checkpoints.ckpt, module, probes, lengths=True)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert {row.dtype for each in reference for row in each.exact} == {np.dtype(np.float64)}
    assert {row.dtype for each in reference for row in each.float32} == {np.dtype(np.float32)}


def test_inputs_are_those_of_the_pass_and_around_it(found: dict[str, list[Reference]], artifacts: Artifacts) -> None:
    assert [reference.probe.kind for reference in found[WAVLM_FILE]] == [
        "speech", "quiet speech", "loud speech", "noise", "near silence",
    ]  # fmt: skip
    for stage in FILES[1:]:
        probes = {reference.probe.kind: reference.probe for reference in found[stage]}
        assert list(probes) == ["speech", "noise", "quiet features", "loud features", "outlier channels"]
        rms = np.sqrt(np.square(np.concatenate(probes["outlier channels"].rows)).mean(0))
        assert (rms > 5 * np.median(rms)).sum() == 4
    for references_of_stage in found.values():
        assert all(min(map(len, each.probe.rows)) in (1, 400) for each in references_of_stage), "the shortest is there"
    # The vocoder gets what the conformer makes of speech.
    given = found[VOCODER_FILE][0].probe.rows
    assert all(np.array_equal(row, made.astype(np.float32)) for row, made in
               zip(given, found[CONFORMER_FILE][0].exact, strict=True))  # fmt: skip


def test_quantized_features_are_means_near_the_frames() -> None:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((5, 16)) * 10
    rows = [(centers[rng.integers(5, size=n)] + rng.standard_normal((n, 16))).astype(np.float32) for n in (60, 9, 1)]
    result = quantized(rows, rows)
    assert [row.shape for row in result] == [row.shape for row in rows]
    assert all(row.dtype == np.float32 for row in result)
    for row, made in zip(rows, result, strict=True):
        error = np.linalg.norm(row - made, axis=1)
        assert (error < 10).all(), "each frame became one of its own cluster"
    assert (np.linalg.norm(rows[0] - result[0], axis=1) > 0.5).mean() > 0.5, "and most of them something else"


def swapped(graph: onnx.ModelProto) -> None:
    """Two weights of one shape change places."""
    parts = ("layers.0.fc1.weight", "layers.1.fc1.weight", "layers.0.ffn1.fc1.weight", "layers.1.ffn1.fc1.weight")
    pair = (*parts, "stages.0.blocks.1.dilated.0.weight", "stages.0.blocks.1.dilated.1.weight")
    first, second = (tensor for tensor in graph.graph.initializer if tensor.name in pair)
    assert first.dims == second.dims
    first.raw_data, second.raw_data = second.raw_data, first.raw_data


def nudged(graph: onnx.ModelProto) -> None:
    """One weight of a bias is off by a thousandth."""
    (tensor,) = [t for t in graph.graph.initializer if t.name.endswith(("layers.1.final_norm.bias", "lin_pre.bias"))]
    values = numpy_helper.to_array(tensor).copy()
    values[3] += 1e-3
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("stage", FILES)
@pytest.mark.parametrize("spoil", [swapped, nudged])
def test_wrong_weights_are_refused(
    stage: str, spoil: Callable[[onnx.ModelProto], None], artifacts: Artifacts, found: dict[str, list[Reference]]
) -> None:
    graph = onnx.load(artifacts.model / stage)
    spoil(graph)
    check = check_of(found, stage, run_of(graph))
    assert check.status == CHECK_INEXACT
    assert check.error > 2 * check.bound


@pytest.mark.parametrize("stage", FILES[:2])
@pytest.mark.parametrize("extra", [1, 1000])
def test_padding_that_leaks_is_refused(
    stage: str, extra: int, artifacts: Artifacts, found: dict[str, list[Reference]]
) -> None:
    """A mask of a frame too many, or none at all."""
    honest = run_of(artifacts.model / stage)
    step = artifacts.anonymizer.info.hop if stage == WAVLM_FILE else 1

    def leaking(batch: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        return honest(batch, [min(count + extra * step, batch.shape[1]) for count in counts])

    check = check_of(found, stage, leaking)
    assert check.status == CHECK_INEXACT
    assert check.error > 10 * check.bound


def test_a_defect_at_the_end_of_one_utterance_alone_is_refused(
    artifacts: Artifacts, found: dict[str, list[Reference]]
) -> None:
    honest = run_of(artifacts.model / VOCODER_FILE)

    def clipped(batch: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        waveform = honest(batch, counts)
        waveform[:, -1] += np.float32(1e-3) * (counts[0] == 3)
        return waveform

    assert check_of(found, VOCODER_FILE, clipped).status == CHECK_INEXACT


def test_luck_on_one_utterance_refuses_nothing(found: dict[str, list[Reference]]) -> None:
    """PyTorch's float32 may be exact on a short one; the errors of one level are pooled."""
    (first, *others) = found[CONFORMER_FILE]
    lucky = dataclasses.replace(first, float32=(*first.float32[:-1], first.exact[-1].astype(np.float32)))
    outputs = {id(row): out for each in found[CONFORMER_FILE] for row, out in
               zip(each.probe.rows, each.float32, strict=True)}  # fmt: skip

    def float32_itself(batch: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        (row,) = [key for key in rows if key.shape == batch[0].shape and np.array_equal(key, batch[0])]
        return outputs[id(row)][None]

    rows = [row for each in found[CONFORMER_FILE] for row in each.probe.rows]
    check = judged("graph", float32_itself, [lucky, *others], lengths=False)
    assert check.status == CHECK_PASSED
    assert nearness(check) < 0.25 + 1e-3  # the error of float32 itself is a quarter of the bound, at most


def test_values_that_are_not_finite_are_refused_whatever_is_allowed(found: dict[str, list[Reference]]) -> None:
    infinite = run_giving(lambda batch: np.full((1, len(batch[0]), 64), np.inf, np.float32))
    with pytest.raises(MkcError, match=r"graph: gives values that are not finite for speech"):
        judged("graph", infinite, found[CONFORMER_FILE], lengths=False)
    with pytest.raises(MkcError, match=r"graph: gives \(9, 64\) for speech; expected \(60, 64\)"):
        judged("graph", run_giving(lambda _: np.zeros((1, 9, 64), np.float32)), found[CONFORMER_FILE], lengths=False)


def test_a_checkpoint_that_overflows_float32_on_speech_is_refused(checkpoints: Checkpoints) -> None:
    module = HifiGan(checkpoints.ckpt, load_voice(checkpoints.ckpt))
    module.lin_pre.weight.mul_(1e38)
    probes = feature_probes([np.random.default_rng(0).standard_normal((20, 64), np.float32)])
    with pytest.raises(CheckpointError, match="not finite in float32 for speech"):
        references(checkpoints.ckpt, module, probes, lengths=False)


def test_relative_rms_is_measured_on_the_pass_alone(found: dict[str, list[Reference]]) -> None:
    pass_alone = [each for each in found[WAVLM_FILE] if each.probe.of_pass]
    outputs = [(row, out * np.float32(1.01)) for each in pass_alone for row, out in
               zip(each.probe.rows, each.float32, strict=True)]  # fmt: skip

    def off_by_a_hundredth(batch: np.ndarray, _: Sequence[int]) -> np.ndarray:
        return next(out for row, out in outputs if np.array_equal(row, batch[0]))[None]  # other inputs are unknown

    check = judged_rms("graph", off_by_a_hundredth, found[WAVLM_FILE], 0.02, lengths=False)
    assert (check.measure, check.status) == (RMS, CHECK_PASSED)
    assert check.error == pytest.approx(0.01 * check.scale, rel=0.02)
    assert check.bound == pytest.approx(0.02 * check.scale, rel=0.02)
    assert 0 < check.float32_error < 1e-4 * check.scale
    assert judged_rms("graph", off_by_a_hundredth, found[WAVLM_FILE], 0.005, lengths=False).status == CHECK_INEXACT


# From here on: the exporter.


@pytest.fixture
def quick(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that takes the plain graphs from ``artifacts``; all else is as it is."""
    monkeypatch.setattr(exporter, "write_graph", lambda path, *_: shutil.copy(artifacts.model / path.name, path))


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """No error passes."""
    monkeypatch.setattr(judging, "FACTOR", 0.0)
    monkeypatch.setattr(judging, "SHARE", 1e-9)


def loud(checkpoints: Checkpoints, folder: Path) -> tuple[Path, Path]:
    """A vocoder whose float32 is off by several 1e-4, and a WavLM with outlier channels in its features."""
    voice = torch.load(checkpoints.ckpt, weights_only=True)
    voice["model_state_dict"]["hifi.model.conv_post.weight_g"] *= 300
    torch.save(voice, folder / "loud.pth")
    wavlm = torch.load(checkpoints.wavlm, weights_only=True)
    for channel, gain in ((3, 30.0), (17, 100.0)):
        for name in ("weight", "bias"):
            wavlm["model"][f"encoder.layers.5.fc2.{name}"][channel] *= gain
    torch.save(wavlm, folder / "outliers.pt")
    return folder / "outliers.pt", folder / "loud.pth"


def test_loud_vocoders_and_outlier_channels_export(checkpoints: Checkpoints, tmp_path: Path) -> None:
    wavlm, voice = loud(checkpoints, tmp_path)
    info = export_model(wavlm, voice, tmp_path / "model")
    check = info.checks[VOCODER_FILE]
    assert check.float32_error > 1e-4, "where a tolerance of 1e-4 of PyTorch's float32 said nothing"
    assert {check.status for check in info.checks.values()} == {CHECK_PASSED}
    assert info.checks[WAVLM_FILE].scale > 20
    assert info.warnings == []


@pytest.mark.usefixtures("quick")
def test_the_numbers_of_every_graph_are_recorded(checkpoints: Checkpoints, tmp_path: Path) -> None:
    info = export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "m", half=True, int8=True)
    graphs = {path.name for path in (tmp_path / "m").glob("*.onnx")}
    assert set(info.checks) == graphs
    in_8_bits = int8_file(CONFORMER_FILE) if native_library() is None else native_file(CONFORMER_FILE, "int8")
    assert {half_file(VOCODER_FILE), in_8_bits, CPU_VOCODER_FILE, *FILES} <= graphs
    assert read_model_info(tmp_path / "m").checks == info.checks
    for file, check in info.checks.items():
        assert check.status == CHECK_PASSED
        assert 0 < check.float32_error < 1e-3 * check.scale
        assert 0 < check.error <= check.bound
        assert (check.measure == RMS) == bool({"fp16", "int16", "int8"} & set(file.split(".")))


@pytest.mark.usefixtures("quick", "strict")
def test_past_the_bound_nothing_is_written_and_the_numbers_are_said(checkpoints: Checkpoints, tmp_path: Path) -> None:
    numbers = r"wavlm\.onnx: largest error \S+ against float64 on [a-z ]+; PyTorch's float32 has \S+, the largest value"
    with pytest.raises(InexactError, match=numbers + r".*--allow-inexact") as error:
        export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "m")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InexactError, match=r"--allow-inexact', then give it with --model"):
        cached_model(checkpoints.wavlm, checkpoints.ckpt, None, 6, tmp_path / "cache")
    assert not list(tmp_path.glob("cache/model-*"))


@pytest.mark.usefixtures("quick", "strict")
def test_inexact_graphs_are_written_when_allowed_and_every_load_warns(
    checkpoints: Checkpoints, artifacts: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["export", "--wavlm-ckpt", str(checkpoints.wavlm), "--ckpt", str(checkpoints.ckpt), "--out"]
    assert main([*command, str(tmp_path / "m")]) == 2
    assert "--allow-inexact" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "m"), "--allow-inexact"]) == 0
    info = read_model_info(tmp_path / "m")
    assert {check.status for check in info.checks.values()} == {CHECK_INEXACT}
    assert len(info.warnings) == len(info.checks) == len(list((tmp_path / "m").glob("*.onnx")))
    said = capsys.readouterr()
    assert all(f"warning: {warning}" in said.err for warning in info.warnings)
    with caplog.at_level(logging.WARNING, logger="mkc_fast"):
        Anonymizer.load(tmp_path / "m", artifacts.bank)
    (record,) = caplog.records
    assert "wavlm.onnx: largest error" in record.getMessage()
    assert "as was asked for" in record.getMessage()


@pytest.mark.usefixtures("quick")
def test_the_command_shows_three_numbers_for_each_graph(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--wavlm-ckpt", str(checkpoints.wavlm), "--ckpt", str(checkpoints.ckpt)]
    assert main([*command, "--out", str(tmp_path / "m"), "--half"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for file, check in read_model_info(tmp_path / "m").checks.items():
        (line,) = [line for line in lines if line.startswith(f"{file} ")]
        for number in (check.error, check.float32_error, check.scale):
            assert f" {number:.2g} " in line


@needs_native
@pytest.mark.usefixtures("quick")
def test_a_native_graph_past_the_bound_is_left_out_and_the_plain_one_serves(
    checkpoints: Checkpoints, artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(path: Path, module: HifiGan, bits: int) -> bool:
        module.conv_post.bias.add_(1e-2)
        try:
            return write_hifigan(path, module, bits)
        finally:
            module.conv_post.bias.sub_(1e-2)

    monkeypatch.setattr(exporter, "write_hifigan", spoilt)
    lines: list[str] = []
    info = export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "m", progress=lines.append)
    file = native_file(VOCODER_FILE)
    assert info.checks[file].status == CHECK_LEFT_OUT
    assert not list((tmp_path / "m").glob("vocoder.native.*"))
    (line,) = [line for line in lines if "left out" in line]
    assert line.startswith(f"{file}: largest error")
    assert info.warnings == []
    features = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    found = Anonymizer.load(tmp_path / "m", artifacts.bank).vocode(features)
    np.testing.assert_allclose(found, artifacts.anonymizer.vocode(features), atol=1e-4)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("option", "file"), [("half", half_file(WAVLM_FILE)), ("int8", int8_file(WAVLM_FILE))])
def test_graphs_of_lower_precision_past_their_tolerance_are_refused_or_warned_of(
    option: str, file: str, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mkc_fast.export.precision.half_graphs.TOLERANCE", 1e-9)
    monkeypatch.setattr("mkc_fast.export.model.native_library", lambda: None)
    monkeypatch.setattr("mkc_fast.export.precision.int8._TOLERANCE", 1e-9)
    with pytest.raises(InexactError, match=rf"{file}: RMS error .* against float64 on .*PyTorch's float32 has"):
        export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "m", **{option: True})
    assert list(tmp_path.iterdir()) == []
    info = export_model(checkpoints.wavlm, checkpoints.ckpt, tmp_path / "m", allow_inexact=True, **{option: True})
    assert info.checks[file].status == CHECK_INEXACT
    assert info.warnings[0].startswith(f"{file}: RMS error")


@pytest.mark.parametrize("layer", [0, 9])
def test_a_layer_that_is_not_there_is_said_before_anything_else_is_read(
    layer: int, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "sha256_of", lambda _: pytest.fail("a checkpoint was read whole"))
    with pytest.raises(CheckpointError, match=f"layers 1 to 8, so there is no layer {layer}"):
        export_model(checkpoints.wavlm, tmp_path / "absent.pth", tmp_path / "m", layer=layer)


@pytest.fixture
def inexact(artifacts: Artifacts, tmp_path: Path) -> Path:
    """A model that warns."""
    model = tmp_path / "inexact"
    shutil.copytree(artifacts.model, model)
    info = read_model_info(model)
    write_info(model, dataclasses.replace(info, warnings=["wavlm.onnx: far from float64"]))
    return model


def test_a_run_of_two_workers_warns_once(
    inexact: Path, artifacts: Artifacts, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).standard_normal(16000) * 0.1
    for index in range(4):
        soundfile.write(tmp_path / f"{index}.wav", noise, 16000)
    scp = tmp_path / "audio.scp"
    scp.write_text("".join(f"u{index} {tmp_path / f'{index}.wav'}\n" for index in range(4)))
    command = ["infer", "--model", str(inexact), "--bank", str(artifacts.bank), "--audio-scp", str(scp)]
    assert main([*command, "--output-dir", str(tmp_path / "out"), "--gpus", "cpu", "--num-proc", "2"]) == 0
    assert capfd.readouterr().err.count("wavlm.onnx: far from float64") == 1


def test_doctor_says_it(inexact: Path) -> None:
    report = examine("cpu", inexact, None)
    (finding,) = [finding for finding in report.findings if "far from float64" in finding.found]
    assert finding.status == "note"
    assert report.ok


def test_what_was_measured_is_no_part_of_a_models_identity(inexact: Path, artifacts: Artifacts) -> None:
    """Rounding errors differ from machine to machine; a run goes on with a model that was exported again."""
    assert identity(inexact / MODEL_FILE) == identity(artifacts.model / MODEL_FILE)


@pytest.mark.parametrize(
    "changes",
    [{"status": "fine"}, {"measure": "median"}, {"error": "0"}, {"bound": -1.0}, {"scale": float("nan")},
     {"error": True}, {"inputs": "two\nlines"}, {"more": 1}],
)  # fmt: skip
def test_checks_that_no_export_writes_are_refused(inexact: Path, changes: dict[str, object]) -> None:
    checks = json.loads((inexact / MODEL_FILE).read_text())["checks"]
    checks[WAVLM_FILE].update(changes)
    with pytest.raises(ArtifactError, match="checks"):
        read_model_info(signed(inexact, checks=checks))
