"""``mkc-fast demo --train``: from speech to a bank, a conformer and anonymized speech, on synthetic speakers."""

from __future__ import annotations

import json
import shutil
import time
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from mkc_fast.cli.demo_steps import Row, timed, timing_table
from mkc_fast.cli.show import console, steps
from mkc_fast.engine.devices import cores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mkc_fast.train.restoration import Restored

_SEED = 7
_CLUSTERS = 32
_STEPS = 400
_EVERY = 50
# Nothing is trained on their speech, and the conformer sees none of their k-means models.
_HELD_OUT = ("spk03", "spk06", "spk09", "spk12")
_INK, _QUANTIZED, _RESTORED = "#22313f", "#90a4ae", "#00796b"


def run_training(out: Path) -> None:
    """Train on the synthetic speakers that are shipped, into a prepared directory, and print what training did."""
    from mkc_fast import Anonymizer
    from mkc_fast.engine.audio.write import write_waveform
    from mkc_fast.export import export_model
    from mkc_fast.export.random_checkpoints import write_voice, write_wavlm
    from mkc_fast.train import ConformerSettings, KMeansSettings, make_features, train_bank, train_conformer
    from mkc_fast.train.restoration import measure_restoration

    begin = time.perf_counter()
    rows: list[Row] = []
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    wavlm, vocoder, trained = checkpoints / "WavLM.pt", checkpoints / "vocoder.pth", checkpoints / "trained.pth"
    for folder in (out / "bank.training", out / "features.making", checkpoints / "trained.pth.training"):
        shutil.rmtree(folder, ignore_errors=True)  # of a demo that was interrupted
    (out / "held_out").write_text("".join(f"{name}\n" for name in _HELD_OUT))
    with steps() as show, as_file(files("mkc_fast.cli") / "demo_speakers") as speech:
        step = timed(show, rows)
        with step("random encoder and vocoder") as tell:
            write_wavlm(wavlm, averaging=True)
            write_voice(vocoder)
            encoder = export_model(wavlm, vocoder, out / "encoder", overwrite=True)
            tell(f"{encoder.dim} dimensions, layer {encoder.layer}")
        with step("features of 16 synthetic speakers") as tell:
            made = make_features(out / "encoder", out / "features", audio_list=speech / "wav.scp", overwrite=True)
            tell(f"{made.facts.utterances} recordings, {made.frames * encoder.hop / encoder.sample_rate:.0f} s")
        with step("bank: a k-means model a speaker") as tell:
            bank = train_bank(
                out / "encoder",
                out / "bank",
                audio_list=speech / "wav.scp",
                settings=KMeansSettings(_CLUSTERS, n_init=1),
                seed=_SEED,
                jobs=cores(),
                overwrite=True,
            )
            tell(f"{len(bank.info.names)} models of {_CLUSTERS} clusters")
        with step("conformer") as tell:
            conformer = train_conformer(
                out / "encoder",
                out / "bank",
                vocoder,
                trained,
                steps=_STEPS,
                features=out / "features",
                valid=str(out / "held_out"),
                settings=ConformerSettings(
                    num_layers=2,
                    num_heads=4,
                    ffn_dim=128,
                    batch_frames=1000,
                    max_frames=100,
                    learning_rate=2e-3,
                    warmup=20,
                    decay=min(100, _STEPS),
                    valid_every=_EVERY,
                    patience=0,
                ),
                seed=_SEED,
                threads=1,
                overwrite=True,
            )
            tell(f"{conformer.steps} steps, weights of step {conformer.step}")
        with step("export to ONNX") as tell:
            export_model(wavlm, trained, out / "model", overwrite=True)
            tell("with the trained conformer")
        with step("held-out speakers and models") as tell, Anonymizer.load(out / "model", out / "bank") as anonymizer:
            restored = measure_restoration(anonymizer, out / "features", _HELD_OUT)
            tell(f"{sum(each.frames for each in restored.values())} frames, by the exported graphs")
        with step("anonymize") as tell, Anonymizer.load(out / "model", out / "bank") as anonymizer:
            from mkc_fast.engine.audio.read import read_waveform

            waveform = read_waveform(speech / f"{_HELD_OUT[0]}-0.flac", encoder.sample_rate, encoder.min_samples)
            result = anonymizer.anonymize(waveform, "audio", seed=_SEED, utterance_id="demo")
            write_waveform(out / "anonymized.wav", result.waveform, encoder.sample_rate)
            tell("noise still, since encoder and vocoder are random")
        with step("picture") as tell:
            log = checkpoints / "trained.pth.training" / "log.jsonl"
            _draw(out / "training.png", restored, [json.loads(line) for line in log.read_text().splitlines()])
            tell(str(out / "training.png"))
    timing_table(rows, time.perf_counter() - begin)
    _show(restored)
    console.print(f"\nIn {out}: training.png, bank/, features/, model/, anonymized.wav, checkpoints/", soft_wrap=True)


def _show(restored: Mapping[str, Restored]) -> None:
    """Print the errors of each held-out speaker."""
    from rich.table import Table

    console.print("\nMean squared error of features, speakers and models that training never saw:")
    table = Table("speaker", "frames", "quantized", "restored", "less", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, each in restored.items():
        table.add_row(name, str(each.frames), f"{each.quantized:.3f}", f"{each.restored:.3f}", f"{each.less:.0%}")
    console.print(table)


def _draw(path: Path, restored: Mapping[str, Restored], log: Sequence[Mapping[str, float]]) -> None:
    """Draw the errors of each held-out speaker, and how the error fell in training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    places = range(len(restored))
    for shift, color, name in ((-0.2, _QUANTIZED, "quantized"), (0.2, _RESTORED, "restored")):
        heights = [getattr(each, name) for each in restored.values()]
        left.bar([place + shift for place in places], heights, 0.4, color=color, label=name)
    left.set_xticks(list(places), list(restored))
    left.set_ylabel("mean squared error")
    left.set_ylim(0, 1.25 * max(each.quantized for each in restored.values()))  # room for the legend
    left.set_title("held-out speakers, held-out models")
    left.legend()
    looks = [line for line in log if "valid_restored" in line]
    right.plot([line["step"] for line in looks], [line["valid_restored"] for line in looks], ".-", color=_RESTORED)
    right.axhline(looks[0]["valid_quantized"], color=_QUANTIZED)
    taken = [line for line in log if "squared" in line]
    right.plot([line["step"] for line in taken], [line["squared"] for line in taken], color=_INK, linewidth=0.4)
    right.set_xlabel("step")
    right.set_title("restored: training (thin), held out (dots); quantized: line")
    figure.suptitle("mkc-fast demo --train: random encoder, synthetic speakers", color=_INK)
    figure.savefig(path, dpi=110)
