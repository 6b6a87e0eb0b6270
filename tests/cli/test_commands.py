"""The commands: what people type today works, a bad recording costs one line, a bad argument writes nothing."""

from __future__ import annotations

import json
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mkc_fast import __version__
from mkc_fast.cli import main
from mkc_fast.cli.arguments import normalized
from mkc_fast.engine.devices import cuda_device_names
from mkc_fast.engine.sessions.cpu import operators_used
from mkc_fast.export.random_checkpoints import Checkpoints
from tests.conftest import RECORDINGS, ROOT, Artifacts


@pytest.fixture
def corpus(tmp_path: Path, clip: np.ndarray) -> Path:
    """A list of three recordings, one of them 44.1 kHz stereo."""
    audio = tmp_path / "audio"
    audio.mkdir()
    soundfile.write(audio / "one.wav", clip[:20000], 16000)
    soundfile.write(audio / "two.flac", clip[20000:50000], 16000)
    soundfile.write(audio / "three.wav", np.random.default_rng(0).uniform(-0.1, 0.1, (44100, 2)), 44100)
    (tmp_path / "audio.scp").write_text("u1 audio/one.wav\n\naudio/two.flac\nu3 audio/three.wav\n")
    return tmp_path / "audio.scp"


def infer(artifacts: Artifacts, scp: Path, out: Path, *more: str) -> int:
    return main(
        ["infer", "--model", str(artifacts.model), "--bank", str(artifacts.bank), "--audio-scp", str(scp),
         "--output-dir", str(out), "--gpus", "cpu", *more]
    )  # fmt: skip


def errors_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "failed:"))]


def test_infer_writes_16_khz_pcm16_named_by_id(
    artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(artifacts, corpus, tmp_path / "out", "--mode", "frame", "--seed", "7") == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.wav")) == ["two.wav", "u1.wav", "u3.wav"]
    info = soundfile.info(tmp_path / "out" / "u3.wav")
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, "PCM_16", 49 * 320)
    shown = capsys.readouterr()
    assert "3 of 3 recordings" in shown.out
    for word in ("audio", "RTFx", "encode", "assign", "restore", "vocode"):
        assert word in shown.out
    assert "from seed 7, repeatable" in shown.err
    assert f"CPU, fp32, {operators_used(artifacts.model, 'fp32')}: the device is cpu" in shown.err.splitlines()


def test_the_json_summary_says_what_the_graphs_ran_on(
    artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(artifacts, corpus, tmp_path / "out", "--json", "--num-proc", "2") == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == [
        f"CPU, fp32, {operators_used(artifacts.model, 'fp32')}: the device is cpu"
    ]


def test_engines_that_cannot_be_built_are_one_line_before_any_work(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if cuda_device_names():
        pytest.skip("there is a GPU here")
    given = ["--wavlm-ckpt", str(checkpoints.wavlm), "--ckpt", str(checkpoints.ckpt)]
    for more in (given, []):
        assert main(["export", "--warm", "--out", str(tmp_path / "model"), *more]) == 2
        (line,) = errors_of(capsys)
        assert "device cuda:0: not here" in line
    assert main(["export", "--warm", "--device", "cpu", "--out", str(tmp_path / "model")]) == 2
    assert "needs a GPU" in errors_of(capsys)[0]
    assert main(["export", "--out", str(tmp_path / "model")]) == 2
    assert "give --wavlm-ckpt and --ckpt" in errors_of(capsys)[0]
    assert not (tmp_path / "model").exists()


def test_infer_writes_what_the_api_gives(artifacts: Artifacts, corpus: Path, tmp_path: Path) -> None:
    from mkc_fast.engine.audio.read import read_waveform
    from mkc_fast.engine.audio.waveform import to_pcm16

    assert infer(artifacts, corpus, tmp_path / "out", "--mode", "audio", "--seed", "5", "--format", "flac") == 0
    waveform = read_waveform(corpus.parent / "audio" / "one.wav", 16000)
    expected = artifacts.anonymizer.anonymize(waveform, mode="audio", seed=5, utterance_id="u1").waveform
    found, _ = soundfile.read(tmp_path / "out" / "u1.flac", dtype="int16")
    assert np.abs(found.astype(int) - to_pcm16(expected)).max() <= 1


def test_without_a_seed_it_says_so(
    artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(artifacts, corpus, tmp_path / "a") == 0
    assert "system's entropy" in capsys.readouterr().err
    assert infer(artifacts, corpus, tmp_path / "b") == 0
    assert (tmp_path / "a" / "u1.wav").read_bytes() != (tmp_path / "b" / "u1.wav").read_bytes()


def test_todays_command_runs_with_only_the_name_changed(
    checkpoints: Checkpoints,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MKC_FAST_CACHE", str(tmp_path / "cache"))
    command = (
        f"infer --mode frame --kmeans_scp {checkpoints.kmeans_scp} --audio_scp {corpus} --output_dir {{out}} "
        f"--wavlm_ckpt {checkpoints.wavlm} --ckpt {checkpoints.ckpt} --num_proc 8 "
        "--gpus cpu cpu --stride 1 --kmeans_num 100"
    )
    assert main(command.format(out=tmp_path / "out").split()) == 0
    assert len(list((tmp_path / "out").glob("*.wav"))) == 3
    made = sorted(path.name for path in (tmp_path / "cache").glob("*-*"))
    assert [name.split("-")[0] for name in made] == ["bank", "model"]
    monkeypatch.setattr("mkc_fast.export.cache.discard", lambda *_: pytest.fail("converted twice"))
    assert main(command.format(out=tmp_path / "again").split()) == 0
    # One bank serves every subset; more than there are is said once, with both numbers, and the manifest has the rest.
    capsys.readouterr()
    few = command.format(out=tmp_path / "few").replace("--kmeans_num 100", "--kmeans_num 3 --seed 7").split()
    assert main(few) == 0
    assert "from seed 7, repeatable, from 3 of 8 k-means models" in capsys.readouterr().err
    assert main(command.format(out=tmp_path / "all").split()) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert warned == ["warning: kmeans_num is 100, the bank has 8 k-means models: all of them are used"]
    assert sorted(path.name for path in (tmp_path / "cache").glob("*-*")) == made
    headers = [json.loads((tmp_path / name / "manifest.jsonl").read_text().splitlines()[0]) for name in ("few", "all")]
    assert [header["kmeans_num"] for header in headers] == [3, 8]


def test_a_subset_of_a_bank_is_the_bank_of_that_subset(
    artifacts: Artifacts, checkpoints: Checkpoints, corpus: Path, tmp_path: Path
) -> None:
    from mkc_fast.engine.audio.read import read_waveform
    from mkc_fast.engine.audio.waveform import to_pcm16

    given = ["--kmeans-num", "3", "--seed", "7"]
    assert infer(artifacts, corpus, tmp_path / "subset", *given) == 0
    entries = artifacts.anonymizer.draw_entries(3, seed=7)
    waveform = read_waveform(corpus.parent / "audio" / "one.wav", 16000)
    expected = artifacts.anonymizer.anonymize(waveform, seed=7, utterance_id="u1", entries=entries).waveform
    found, _ = soundfile.read(tmp_path / "subset" / "u1.wav", dtype="int16")
    np.testing.assert_array_equal(found, to_pcm16(expected))
    scp = ["--kmeans-scp", str(checkpoints.kmeans_scp)]
    assert main(["bank", "build", *scp, *given, "--out", str(tmp_path / "bank")]) == 0
    assert infer(replace(artifacts, bank=tmp_path / "bank"), corpus, tmp_path / "bank of it", "--seed", "7") == 0
    for name in ("u1", "two", "u3"):
        files = [(tmp_path / folder / f"{name}.wav").read_bytes() for folder in ("subset", "bank of it")]
        assert files[0] == files[1]


def test_what_ran_is_recorded_and_another_precision_is_refused(
    artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    assert infer(artifacts, corpus, tmp_path / "out", "--seed", "7") == 0
    header = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])
    ran = header["ran"]
    known = {"provider": "cpu", "precision": "fp32", "onnxruntime": onnxruntime.__version__, "package": __version__}
    assert ran.items() >= known.items()
    native = "native operators" in operators_used(artifacts.model, "fp32") and "no native" not in operators_used(
        artifacts.model, "fp32"
    )
    assert ran["operators"].startswith("native" if native else "onnxruntime")
    assert ("threads" in ran) != native  # native operators give the same bits with any number
    manifest = tmp_path / "out" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"precision": "fp32"', '"precision": "int8"'))
    (tmp_path / "out" / "u1.wav").unlink()
    capsys.readouterr()
    assert infer(artifacts, corpus, tmp_path / "out", "--seed", "7") == 2
    (line,) = errors_of(capsys)
    assert (
        "its outputs were made with precision int8; this run has precision fp32, which is not equal to the last bit"
        in line
    )
    assert not (tmp_path / "out" / "u1.wav").exists()


def test_a_private_manifest_holds_no_paths(artifacts: Artifacts, corpus: Path, tmp_path: Path) -> None:
    corpus.write_text(corpus.read_text() + "missing audio/nowhere.wav\n")
    out = tmp_path / "out"
    for code, more in ((1, "missing"), (1, "again")):  # the second run knows what the first has done
        assert infer(artifacts, corpus, out, "--seed", "7", "--private-manifest") == code, more
    text = (out / "manifest.jsonl").read_text()
    assert "audio" not in text
    assert "nowhere" not in text
    assert [line.count('"file"') for line in text.splitlines()].count(1) == 3


def test_a_missing_model_is_said_before_anything_else(
    artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(replace(artifacts, model=tmp_path / "nowhere"), corpus, tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path / 'nowhere'}: no such directory"


def test_one_recording_is_one_recording(
    artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.write_text("audio/one.wav\n")
    given = ["infer", "--model", str(artifacts.model), "--bank", str(artifacts.bank), "--audio-scp", str(corpus)]
    assert main([*given, "-o", str(tmp_path / "out"), "--device", "cpu", "cpu"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("1 recording, ")
    assert "1 of 1 recording written" in shown.out


def test_options_of_infer_come_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "--help"]) == 0
    shown = capsys.readouterr().out
    for group in ("Input", "Output", "Draws", "Model and bank", "Devices", "Run"):
        assert f" {group} " in shown
    assert "audio|frame" in shown


def test_a_missing_gpu_is_an_error_that_says_what_is_there(
    artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(artifacts, corpus, tmp_path / "out", "--gpus", "cuda:97") == 2
    (line,) = errors_of(capsys)
    assert "cuda:97: not here; here are: cpu" in line
    assert not (tmp_path / "out").exists()


def test_bad_recordings_cost_a_line_each_and_the_others_go_on(
    artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = corpus.parent / "audio"
    (audio / "empty.wav").write_bytes(b"")
    (audio / "text.wav").write_text("no audio")
    soundfile.write(audio / "short.wav", np.zeros(399), 16000)
    soundfile.write(audio / "nan.wav", np.full(1000, np.nan), 16000, subtype="FLOAT")
    bad = ["empty", "text", "short", "nan", "missing"]
    corpus.write_text(corpus.read_text() + "".join(f"audio/{name}.wav\n" for name in bad))
    assert infer(artifacts, corpus, tmp_path / "out") == 1
    lines = errors_of(capsys)
    assert len(lines) == 5
    for name in bad:
        assert sum(f"failed: {name}: " in line for line in lines) == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.wav")) == ["two.wav", "u1.wav", "u3.wav"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("u audio/one.wav\nu audio/two.flac\n", "named u"),
        ("audio/one.wav\nother/one.flac\n", "named one"),
        ("../u audio/one.wav\n", "cannot name an output file"),
        (".. audio/one.wav\n", "cannot name an output file"),
        ("a/b audio/one.wav\n", "cannot name an output file"),
        ("u sox x.wav -t wav - rate 8k |\n", "a command"),
    ],
)
def test_bad_lists_are_refused_before_any_work(
    text: str, words: str, artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.write_text(text)
    assert infer(artifacts, corpus, tmp_path / "out") == 2
    (line,) = errors_of(capsys)
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        ["--mode", "word"],
        ["--stride", "0"],
        ["--seed", "x"],
        ["--format", "mp3"],
        ["--nothing"],
        ["--kmeans-scp", "x"],
        ["--audio-scp", "missing.scp"],
        ["--model", "missing"],
        ["--bank", "missing"],
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(
    change: list[str], artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(artifacts, corpus, tmp_path / "out", *change) == 2
    assert len(errors_of(capsys)) == 1
    assert not (tmp_path / "out").exists()


def test_bad_checkpoints_are_one_line_and_write_nothing(
    checkpoints: Checkpoints, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    code = main(
        ["infer", "--audio-scp", str(corpus), "--output-dir", str(tmp_path / "out"), "--gpus", "cpu", "--wavlm-ckpt",
         str(tmp_path / "text.pt"), "--ckpt", str(checkpoints.ckpt), "--kmeans-scp", str(checkpoints.kmeans_scp),
         "--cache-dir", str(tmp_path / "cache")]
    )  # fmt: skip
    assert code == 2
    (line,) = errors_of(capsys)
    assert "text.pt" in line
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused(
    artifacts: Artifacts, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    assert infer(artifacts, corpus, tmp_path / "out") == 2
    assert len(errors_of(capsys)) == 1


def test_recordings_are_never_overwritten_by_their_own_output(
    artifacts: Artifacts, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.write_text("audio/one.wav\n")
    before = (corpus.parent / "audio" / "one.wav").read_bytes()
    assert infer(artifacts, corpus, corpus.parent / "audio") == 2
    assert (corpus.parent / "audio" / "one.wav").read_bytes() == before


def test_golden_checkpoints_through_the_command(
    golden: Path, golden_artifacts: Artifacts, tmp_path: Path, speech: Path
) -> None:
    # The draws are the command's own, so the expected waveforms are those of the API given the same draws, and the
    # API's equal the reference for the reference's draws (test_golden.py).
    for mode in ("frame", "audio"):
        out = tmp_path / mode
        assert infer(golden_artifacts, golden / "audio.scp", out, "--mode", mode, "--seed", "1") == 0
        for name in RECORDINGS:
            waveform, _ = soundfile.read(golden / "audio" / f"{name}.wav", dtype="float32")
            expected = golden_artifacts.anonymizer.anonymize(waveform, mode, seed=1, utterance_id=name).waveform
            found, _ = soundfile.read(out / f"{name}.wav", dtype="float32")
            np.testing.assert_allclose(found, expected, atol=1.5 / 32768)
    scp = tmp_path / "speech.scp"
    scp.write_text("".join(f"{path}\n" for path in sorted(speech.glob("*.flac"))))
    assert infer(golden_artifacts, scp, tmp_path / "speech") == 0
    assert len(list((tmp_path / "speech").glob("*.wav"))) == 2


def test_export_and_bank_commands(checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, bank = str(tmp_path / "model"), str(tmp_path / "bank")
    assert (
        main(["export", "--wavlm-ckpt", str(checkpoints.wavlm), "--ckpt", str(checkpoints.ckpt), "--out", model]) == 0
    )
    assert main(["bank", "build", "--kmeans_scp", str(checkpoints.kmeans_scp), "--kmeans_num", "5", "--out", bank]) == 0
    shown = capsys.readouterr()
    assert "judged against float64" in shown.out
    assert "5 of 5" in shown.err
    assert main(["bank", "info", bank, "--all"]) == 0
    text = capsys.readouterr().out
    for words in ("N = 5", "K = 32", "D = 64", "MB", "unused", "duplicates", "spk_000"):
        assert words in text
    assert main(["bank", "build", "--kmeans-scp", str(checkpoints.kmeans_scp), "--out", bank]) == 2
    assert "already there" in errors_of(capsys)[0]
    assert (
        main(["bank", "build", "--kmeans-scp", str(checkpoints.kmeans_scp), "--half", "--overwrite", "--out", bank])
        == 0
    )
    assert main(["bank", "info", bank]) == 0
    assert "with a copy in float16" in capsys.readouterr().out


def test_the_demo_ends_with_speech_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for words in ("protect nobody", "demo.html", "synthetic_frame.wav", "mkc-fast download", "2508.07086"):
        assert words in shown
    for name in ("wavlm.pt", "conformer_vocoder.pt"):
        assert lzma.decompress((ROOT / "cli" / "demo_set" / f"{name}.xz").read_bytes()) == (out / name).read_bytes()
    page = (out / "demo.html").read_text()
    assert page.count("data:audio/flac;base64,") == 6
    assert page.count("data:image/png;base64,") == 2
    assert "://" not in page
    for prefix in ("", "synthetic_"):
        original, audio, frame = (
            soundfile.read(out / f"{prefix}{name}.wav")[0] for name in ("original", "audio", "frame")
        )
        for made in (audio, frame):
            assert 0 < len(original) - len(made) < 640
            # Loud and quiet are where they were, as they are not in noise.
            assert np.corrcoef(_loudness(original[: len(made)]), _loudness(made))[0, 1] > 0.6


def _loudness(waveform: np.ndarray) -> np.ndarray:
    frames = waveform[: len(waveform) // 800 * 800].reshape(-1, 800)
    return np.log(np.square(frames).mean(1) + 1e-5)


def test_the_set_of_the_demo_is_small_and_has_its_card() -> None:
    files = [path for path in (ROOT / "cli" / "demo_set").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10_000_000
    card = (ROOT / "cli" / "demo_set" / "README.md").read_text()
    assert "protect nobody" in card


def test_random_weights_run_the_whole_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--random", "--out", str(tmp_path / "demo")]) == 0
    shown = capsys.readouterr().out
    for words in ("weights are random", "noise, not speech", "WavLM-Large.pt", "1E9NDTnsQp73bHu1Xn8", "1pQx_nFZ",
                  "2508.07086", "mkc-fast export", "mkc-fast bank build", "mkc-fast infer"):  # fmt: skip
        assert words in shown
    png = (tmp_path / "demo" / "demo.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 50_000
    original, frame = (
        soundfile.read(tmp_path / "demo" / "original.wav")[0],
        soundfile.read(tmp_path / "demo" / "frame.wav")[0],
    )
    assert 0 < len(original) - len(frame) < 640
    assert frame.std() > 0.01


def test_a_demo_that_trains_takes_no_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--train", "--random", "--out", str(tmp_path / "demo")]) == 2
    assert "--train" in errors_of(capsys)[0]
    assert not (tmp_path / "demo").exists()


def test_the_demo_leaves_other_peoples_folders_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "something else" in errors_of(capsys)[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--audio_scp", "a_b"], ["--audio-scp", "a_b"]),
        (["--audio_scp=a_b"], ["--audio-scp=a_b"]),
        (["--gpus", "cuda:0", "cuda:1", "--seed", "1"], ["--gpus", "cuda:0", "--gpus", "cuda:1", "--seed", "1"]),
        (["--gpus=cpu", "x"], ["--gpus=cpu", "x"]),
        (["--gpus", "--seed", "1"], ["--gpus", "--seed", "1"]),
        (["--gpus"], ["--gpus"]),
        (["--seed", "-1", "--gpus", "a", "-h"], ["--seed", "-1", "--gpus", "a", "-h"]),
        (["--a_b", "--", "--c_d"], ["--a-b", "--", "--c_d"]),
        (["infer", "--device", "cpu", "cuda:1"], ["infer", "--device", "cpu", "--device", "cuda:1"]),
        (["infer", "--gpus", "cpu", "speech/", "a.wav"], ["infer", "--gpus", "cpu", "speech/", "a.wav"]),
        (["infer", "--input", "a", "b", "-o", "c"], ["infer", "--input", "a", "--input", "b", "-o", "c"]),
        (["doctor", "--device", "a", "b"], ["doctor", "--device", "a", "b"]),
    ],
)
def test_command_lines_are_normalized(given: list[str], expected: list[str]) -> None:
    assert normalized(given) == expected
