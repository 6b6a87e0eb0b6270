"""The Python API: draws and results depend on what they should, errors are exceptions, imports are light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import mkc_fast
from mkc_fast import (
    Anonymizer,
    ArgumentError,
    ArtifactError,
    AudioError,
    BankError,
    DeviceError,
    MkcError,
    OutputError,
)
from mkc_fast.engine.audio.read import read_waveform
from mkc_fast.engine.audio.waveform import to_pcm16
from mkc_fast.export import build_bank
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
        (np.zeros(1000, np.int32), "int32"),
        (np.zeros(1000, bool), "bool"),
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "word"}, "mode"),
        ({"mode": ["frame"]}, "mode"),
        ({"stride": 0}, "stride"),
        ({"stride": -(2**70)}, "stride"),
        ({"stride": 1.5}, "stride"),
        ({"stride": -(10**5000)}, "stride"),
        ({"seed": 10**5000}, "seed is an integer of 16610 bits"),
        ({"seed": -(2**256)}, "256 bits"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_impossible_arguments_are_value_errors_too(options: dict, words: str, artifacts: Artifacts, clip) -> None:
    for run, waveform in ((artifacts.anonymizer.anonymize, clip), (artifacts.anonymizer.anonymize_batch, [clip])):
        with pytest.raises(ValueError, match=words) as caught:
            run(waveform, **options)
        assert isinstance(caught.value, MkcError)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("stride", [2**63, 2**64, 10**300, np.uint64(2**63), 270, np.int8(100)])
def test_a_stride_may_be_of_any_size_and_type(stride: int, artifacts: Artifacts, clip: np.ndarray) -> None:
    found = artifacts.anonymizer.anonymize(clip, stride=stride, seed=1, utterance_id="u").bank_ids
    every = artifacts.anonymizer.anonymize(clip, seed=1, utterance_id="u").bank_ids
    np.testing.assert_array_equal(found, every[np.arange(len(every)) // min(int(stride), 1000)])


@pytest.mark.parametrize("stride", [np.uint64(3), np.int64(3), np.uint8(3)])
def test_numpys_integers_are_strides_and_seeds(stride: int, artifacts: Artifacts, clip: np.ndarray) -> None:
    run = artifacts.anonymizer.anonymize
    expected = run(clip, stride=3, seed=7, utterance_id="u")
    found = run(clip, stride=stride, seed=np.uint64(7), utterance_id="u")  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.bank_ids, expected.bank_ids)
    run(clip[:400], seed=2**256 - 1)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -float("inf"), 0, 7.9, 1e9, 10**400, "long", None])
def test_impossible_windows_are_refused(seconds: object, artifacts: Artifacts) -> None:
    with pytest.raises(ValueError, match="max_window_s") as caught:
        Anonymizer.load(artifacts.model, artifacts.bank, max_window_s=seconds)  # type: ignore[arg-type]
    assert isinstance(caught.value, MkcError)


def test_outputs_are_padded_to_their_inputs_length(artifacts: Artifacts, clip: np.ndarray) -> None:
    for size in (400, 719, 720, 12345, len(clip)):
        plain = artifacts.anonymizer.anonymize(clip[:size], seed=1)
        assert 5 <= (size - len(plain.waveform)) / 16 < 25  # ms
        padded = artifacts.anonymizer.anonymize(clip[:size], seed=1, pad=True)
        assert len(padded.waveform) == size
        np.testing.assert_array_equal(padded.waveform[: len(plain.waveform)], plain.waveform)
        assert not padded.waveform[len(plain.waveform) :].any()
    batch = artifacts.anonymizer.anonymize_batch([clip[:5000], clip[:6000]], pad=True, batch_s=60)
    assert [len(result.waveform) for result in batch] == [5000, 6000]
    half = artifacts.anonymizer.anonymize(clip[:12345], sample_rate=48000, pad=True)
    assert len(half.waveform) == 12345 // 3


@pytest.mark.parametrize("suffix", ["wav", "flac", "WAV"])
def test_a_file_is_anonymized_into_a_file(suffix: str, artifacts: Artifacts, clip: np.ndarray, tmp_path) -> None:
    soundfile.write(tmp_path / "u1.flac", np.stack([clip, clip], axis=1), 16000)
    out = tmp_path / f"out.{suffix}"
    result = artifacts.anonymizer.anonymize_file(tmp_path / "u1.flac", out, seed=7, pad=True)
    waveform = read_waveform(tmp_path / "u1.flac", 16000)
    expected = artifacts.anonymizer.anonymize(waveform, seed=7, utterance_id="u1", pad=True)
    np.testing.assert_array_equal(result.waveform, expected.waveform)
    written, rate = soundfile.read(out, dtype="int16")
    assert rate == 16000
    np.testing.assert_array_equal(written, to_pcm16(expected.waveform))
    again = artifacts.anonymizer.anonymize_file(str(tmp_path / "u1.flac"), mode="audio", seed=7)
    assert len(set(again.bank_ids.tolist())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["u1.flac", out.name])


def test_what_a_file_cannot_become_is_refused_and_leaves_nothing(
    artifacts: Artifacts, clip: np.ndarray, tmp_path
) -> None:
    recording = tmp_path / "u1.wav"
    soundfile.write(recording, clip, 16000)
    before = recording.read_bytes()
    (tmp_path / "link.wav").symlink_to(recording)
    run = artifacts.anonymizer.anonymize_file
    for out in ("out.mp3", "out", "out.wav.txt"):
        with pytest.raises(ArgumentError, match=r"expected \.wav or \.flac"):
            run(recording, tmp_path / out)
    for out in (recording, tmp_path / "link.wav"):
        with pytest.raises(OutputError, match="is the recording itself"):
            run(recording, out)
    with pytest.raises(OutputError, match="cannot be written"):
        run(recording, tmp_path / "nowhere" / "out.wav")
    with pytest.raises(AudioError, match="no such file"):
        run(tmp_path / "gone.wav", tmp_path / "out.wav")
    assert recording.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.wav", "u1.wav"]


def test_another_bank_shares_the_model_and_gives_what_it_gives_alone(
    artifacts: Artifacts, clip: np.ndarray, golden: Path, tmp_path: Path
) -> None:
    build_bank(golden / "kmeans.scp", tmp_path / "other", kmeans_num=2, seed=1)
    with Anonymizer.load(artifacts.model, artifacts.bank) as first:
        other = first.with_bank(tmp_path / "other")
        assert other._sessions is first._sessions
    with Anonymizer.load(artifacts.model, tmp_path / "other") as alone:
        expected = alone.anonymize(clip, seed=1, utterance_id="u")
    found = other.anonymize(clip, seed=1, utterance_id="u")  # after the first was closed
    np.testing.assert_array_equal(found.waveform, expected.waveform)
    np.testing.assert_array_equal(found.bank_ids, expected.bank_ids)
    with pytest.raises(MkcError, match="closed"):
        first.with_bank(tmp_path / "other")
    with pytest.raises(ArtifactError):
        other.with_bank(tmp_path / "nowhere")


def test_as_a_context_manager_it_is_closed_at_the_end(artifacts: Artifacts, clip: np.ndarray) -> None:
    with Anonymizer.load(artifacts.model, artifacts.bank) as anonymizer:
        features = anonymizer.encode(clip)
    banks = np.zeros(len(features), int)
    for use in (
        lambda: anonymizer.anonymize(clip),
        lambda: anonymizer.encode(clip),
        lambda: anonymizer.assign(features, banks),
        lambda: anonymizer.lookup(banks, banks),
        lambda: anonymizer.restore(features),
        lambda: anonymizer.vocode(features),
    ):
        with pytest.raises(MkcError, match="closed"):
            use()
    anonymizer.close()


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


def test_help_loads_few_modules() -> None:
    # Time to answer is time to import. Typer and Rich need some 340 modules; NumPy alone would add 130.
    script = "import sys; from mkc_fast.cli import main; main(['--help']); print(len(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout.splitlines()[-1]) < 420


def test_the_engine_never_loads_torch(artifacts: Artifacts) -> None:
    script = (
        "import sys; from mkc_fast import Anonymizer; import numpy as np;"
        "a = Anonymizer.load(sys.argv[1], sys.argv[2]); a.anonymize(np.zeros(4000, np.float32));"
        "import mkc_fast.engine.corpus.run; print({'torch', 'mkc_fast.export', 'onnx'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, str(artifacts.model), str(artifacts.bank)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_every_public_name_is_there() -> None:
    for name in mkc_fast.__all__:
        assert getattr(mkc_fast, name)
    with pytest.raises(AttributeError):
        mkc_fast.nothing  # noqa: B018
