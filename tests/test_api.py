"""The Python API: draws and results depend on what they should, errors are exceptions, imports are light."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import mkc_fast
from mkc_fast import Anonymizer, ArtifactError, AudioError, BankError, DeviceError, MkcError
from tests.conftest import Artifacts, signed


def test_results_have_the_promised_shapes(artifacts: Artifacts, clip: np.ndarray) -> None:
    anonymizer = artifacts.anonymizer
    frames = (len(clip) - 400) // 320 + 1
    features = anonymizer.encode(clip)
    banks = np.arange(frames) % 8
    ids = anonymizer.assign(features, banks)
    quantized = anonymizer.lookup(banks, ids)
    restored = anonymizer.restore(quantized)
    waveform = anonymizer.vocode(restored)
    assert [(a.shape, a.dtype) for a in (features, ids, quantized, restored, waveform)] == [
        ((frames, 64), np.float32),
        ((frames,), np.int32),
        ((frames, 64), np.float32),
        ((frames, 64), np.float32),
        ((frames * 320,), np.float32),
    ]
    result = anonymizer.anonymize(clip, bank_ids=banks)
    np.testing.assert_array_equal(result.waveform, waveform)
    np.testing.assert_array_equal(result.cluster_ids, ids)
    np.testing.assert_array_equal(result.bank_ids, banks)


def test_a_seed_repeats_and_no_seed_does_not(artifacts: Artifacts, clip: np.ndarray) -> None:
    run = artifacts.anonymizer.anonymize
    first, again = run(clip, seed=7, utterance_id="u1"), run(clip, seed=7, utterance_id="u1")
    np.testing.assert_array_equal(first.waveform, again.waveform)
    assert not np.array_equal(first.bank_ids, run(clip, seed=8, utterance_id="u1").bank_ids)
    assert not np.array_equal(first.bank_ids, run(clip, seed=7, utterance_id="u2").bank_ids)
    assert not np.array_equal(run(clip).bank_ids, run(clip).bank_ids)


def test_modes_and_strides_differ_only_in_the_draws(artifacts: Artifacts, clip: np.ndarray) -> None:
    run = artifacts.anonymizer.anonymize
    every = run(clip, seed=3, utterance_id="u").bank_ids
    fourth = run(clip, stride=4, seed=3, utterance_id="u").bank_ids
    np.testing.assert_array_equal(fourth, every[np.arange(len(every)) // 4])
    whole = run(clip, mode="audio", seed=3, utterance_id="u")
    assert set(whole.bank_ids.tolist()) == {int(every[0])}
    np.testing.assert_array_equal(whole.waveform, run(clip, bank_ids=whole.bank_ids).waveform)


def test_frames_draw_from_the_entries_that_are_given(artifacts: Artifacts, clip: np.ndarray) -> None:
    anonymizer = artifacts.anonymizer
    entries = anonymizer.draw_entries(3, seed=7)
    assert len(entries) == 3
    every = anonymizer.anonymize(clip, seed=7, utterance_id="u", entries=entries)
    assert sorted(set(every.bank_ids.tolist())) == entries.tolist()  # numbers of the whole bank, each drawn
    backwards, other = anonymizer.anonymize_batch(
        [clip, clip[:32000]], seed=7, utterance_ids=["u", "v"], entries=entries[::-1]
    )
    np.testing.assert_array_equal(backwards.bank_ids, every.bank_ids)
    assert set(other.bank_ids.tolist()) <= set(entries.tolist())
    np.testing.assert_array_equal(every.waveform, anonymizer.anonymize(clip, bank_ids=every.bank_ids).waveform)
    with pytest.raises(BankError, match="bank_ids are given and entries"):
        anonymizer.anonymize(clip, bank_ids=every.bank_ids, entries=entries)
    with pytest.raises(BankError, match="entries are 0 to 8; the bank has 0 to 7"):
        anonymizer.anonymize(clip, entries=[0, 8])


def test_a_batch_gives_each_what_it_gets_alone_in_any_order(artifacts: Artifacts, clip: np.ndarray) -> None:
    waveforms = [clip[:400], clip[1000:30000], clip[:12345], clip]
    names = ["a", "b", "c", "d"]
    batch = artifacts.anonymizer.anonymize_batch(waveforms, seed=7, utterance_ids=names)
    backwards = artifacts.anonymizer.anonymize_batch(waveforms[::-1], seed=7, utterance_ids=names[::-1])[::-1]
    for waveform, name, result, other in zip(waveforms, names, batch, backwards, strict=True):
        alone = artifacts.anonymizer.anonymize(waveform, seed=7, utterance_id=name)
        for found in (result, other):
            np.testing.assert_array_equal(found.bank_ids, alone.bank_ids)
            np.testing.assert_array_equal(found.cluster_ids, alone.cluster_ids)
            np.testing.assert_allclose(found.waveform, alone.waveform, atol=1e-4, rtol=0)


def test_without_ids_a_seeded_batch_still_draws_apart(artifacts: Artifacts, clip: np.ndarray) -> None:
    first, second = artifacts.anonymizer.anonymize_batch([clip[:32000], clip[32000:64000]], seed=7)
    assert not np.array_equal(first.bank_ids, second.bank_ids)
    np.testing.assert_array_equal(first.bank_ids, artifacts.anonymizer.anonymize(clip[:32000], seed=7).bank_ids)


@pytest.mark.parametrize(
    ("waveform", "words"),
    [
        (np.zeros(399, np.float32), "399 samples"),
        (np.zeros((2, 1000), np.float32), r"\(2, 1000\)"),
        (np.zeros(1000, np.int16), "int16"),
        (np.full(1000, np.inf, np.float32), "not finite"),
        ([], "0 samples"),
    ],
)
def test_bad_waveforms_are_refused(waveform: object, words: str, artifacts: Artifacts) -> None:
    with pytest.raises(AudioError, match=words):
        artifacts.anonymizer.anonymize(waveform)  # type: ignore[arg-type]


def test_bad_arguments_are_refused(artifacts: Artifacts, clip: np.ndarray) -> None:
    run = artifacts.anonymizer.anonymize
    with pytest.raises(BankError, match="270 frames"):
        run(clip, bank_ids=[0, 1])
    with pytest.raises(BankError, match="entries 0 to 7"):
        run(clip, bank_ids=np.full(270, 8))
    with pytest.raises(MkcError, match="mode"):
        run(clip, mode="word")
    with pytest.raises(MkcError, match="stride"):
        run(clip, stride=0)
    with pytest.raises(MkcError, match="seed"):
        run(clip, seed="seven")  # type: ignore[arg-type]
    with pytest.raises(MkcError, match="2 waveforms, but 1"):
        artifacts.anonymizer.anonymize_batch([clip, clip], utterance_ids=["a"])
    for features in (np.zeros((0, 64), np.float32), np.zeros((3, 63), np.float32), np.full((3, 64), np.nan)):
        with pytest.raises(BankError):
            artifacts.anonymizer.restore(features)
        with pytest.raises(BankError):
            artifacts.anonymizer.vocode(features)


def test_what_cannot_be_loaded_is_refused(artifacts: Artifacts, tmp_path) -> None:
    with pytest.raises(ArtifactError, match="no such directory"):
        Anonymizer.load(tmp_path / "nothing", artifacts.bank)
    with pytest.raises(ArtifactError, match=r"no model\.json"):
        Anonymizer.load(artifacts.bank, artifacts.bank)
    for device in ("cuda:99", "gpu", "cuda:-1"):
        with pytest.raises(DeviceError, match="here are: cpu"):
            Anonymizer.load(artifacts.model, artifacts.bank, device=device)


def test_a_damaged_graph_is_refused_in_one_line(artifacts: Artifacts, tmp_path) -> None:
    import shutil

    shutil.copytree(artifacts.model, tmp_path / "model")
    for native in (tmp_path / "model").glob("*.native.onnx"):
        native.unlink()
    graph = tmp_path / "model" / "conformer.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    signed(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"conformer\.onnx") as caught:
        Anonymizer.load(tmp_path / "model", artifacts.bank)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["import mkc_fast, mkc_fast.cli", "from mkc_fast.cli import main; main(['--help'])"])
def test_importing_and_help_load_nothing_heavy(what: str) -> None:
    script = f"import sys; {what}; print({{'torch', 'onnxruntime', 'cupy', 'sklearn'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "set()"


def test_the_engine_never_loads_torch(artifacts: Artifacts) -> None:
    script = (
        "import sys; from mkc_fast import Anonymizer; import numpy as np;"
        "a = Anonymizer.load(sys.argv[1], sys.argv[2]); a.anonymize(np.zeros(4000, np.float32));"
        "import mkc_fast.engine.corpus; print({'torch', 'mkc_fast.export', 'onnx'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, str(artifacts.model), str(artifacts.bank)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_every_public_name_is_there() -> None:
    for name in mkc_fast.__all__:
        assert getattr(mkc_fast, name)
    with pytest.raises(AttributeError):
        mkc_fast.nothing  # noqa: B018
