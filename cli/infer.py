"""``mkc-fast infer``: recordings in any form of corpus → anonymized recordings in the same form."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mkc_fast.cli import panels
from mkc_fast.cli.choices import Format, InputForm, Level, Mode, OnFailure, Precision, Provider
from mkc_fast.cli.run_options import (
    AllowCommandsOption,
    AllowMixedOption,
    AudioColumnOption,
    BatchSecondsOption,
    FormatOption,
    GpusOption,
    IdColumnOption,
    InputFormOption,
    InputOption,
    InputsArgument,
    JsonOption,
    KmeansNumOption,
    LevelOption,
    MaxWindowOption,
    OnFailureOption,
    OverwriteOption,
    PadOption,
    PrecisionOption,
    PrivateManifestOption,
    ProviderOption,
    QuietOption,
    RangedNumProcOption,
    RayOption,
    RecordDrawsOption,
    SeedOption,
    ShardOption,
    SpeakerColumnOption,
    StrideOption,
    TimeoutOption,
    check_inputs,
)
from mkc_fast.cli.running import decoders_off_stdout, signals
from mkc_fast.cli.show import counted, shown_warnings
from mkc_fast.cli.sources import Given, resolved
from mkc_fast.engine.options import DEFAULT_WINDOW_S, EngineOptions
from mkc_fast.errors import MkcError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkc_fast.engine.corpus.pool import Cluster

EXIT_FAILED = 1  # some recordings failed, the others were written


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command("infer")(infer)


def infer(
    inputs: InputsArgument = None,
    input_: InputOption = None,
    input_form: InputFormOption = InputForm.auto,
    audio_column: AudioColumnOption = None,
    id_column: IdColumnOption = None,
    speaker_column: SpeakerColumnOption = "speaker_id",
    audio_scp: Annotated[
        Path | None,
        typer.Option(
            help="Or a list of 'path' or 'utt-id path' a line (wav.scp), or s3:// addresses; - is standard input.",
            rich_help_panel=panels.INPUT,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "--out",
            "-o",
            help="Where outputs go: a folder, or an address (s3://).",
            rich_help_panel=panels.OUTPUT,
        ),
    ] = None,
    data_dir: Annotated[
        list[Path] | None, typer.Option(help="Or Kaldi data directories.", rich_help_panel=panels.INPUT)
    ] = None,
    anon_suffix: Annotated[
        str, typer.Option(help="Of the directories written beside them.", rich_help_panel=panels.OUTPUT)
    ] = "_mkc",
    format_: FormatOption = Format.wav,
    pad: PadOption = False,
    allow_commands: AllowCommandsOption = False,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="Draw one k-means model for a recording, or one every STRIDE frames (default: frame; audio with "
            "--kmeans-path).",
            rich_help_panel=panels.DRAWS,
        ),
    ] = None,
    stride: StrideOption = 1,
    seed: SeedOption = None,
    level: LevelOption = Level.utterance,
    utt2spk: Annotated[
        Path | None,
        typer.Option(
            help="List of 'utt-id speaker' a line, for --level speaker (default: beside the list).",
            rich_help_panel=panels.DRAWS,
        ),
    ] = None,
    kmeans_num: KmeansNumOption = None,
    record_draws: RecordDrawsOption = False,
    model: Annotated[
        Path | None, typer.Option(help="Exported model (from 'export').", rich_help_panel=panels.ARTIFACTS)
    ] = None,
    bank: Annotated[
        Path | None, typer.Option(help="Bank (from 'bank build').", rich_help_panel=panels.ARTIFACTS)
    ] = None,
    wavlm_ckpt: Annotated[
        Path | None, typer.Option(help="WavLM checkpoint, instead of --model.", rich_help_panel=panels.ARTIFACTS)
    ] = None,
    ckpt: Annotated[
        Path | None,
        typer.Option(help="Conformer + vocoder checkpoint, instead of --model.", rich_help_panel=panels.ARTIFACTS),
    ] = None,
    ckpt_path: Annotated[
        list[Path] | None,
        typer.Option(help="The same, as older scripts name it.", rich_help_panel=panels.ARTIFACTS),
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            help="YAML with the conformer's sizes, for a --ckpt that is a bare state dict.",
            rich_help_panel=panels.ARTIFACTS,
        ),
    ] = None,
    kmeans_scp: Annotated[
        Path | None, typer.Option(help="List of k-means models, instead of --bank.", rich_help_panel=panels.ARTIFACTS)
    ] = None,
    kmeans_path: Annotated[
        list[Path] | None,
        typer.Option(help="Files of k-means models, instead of a list.", rich_help_panel=panels.ARTIFACTS),
    ] = None,
    hifi_config: Annotated[
        Path | None, typer.Option(help="JSON with the vocoder's sizes.", rich_help_panel=panels.ARTIFACTS)
    ] = None,
    layer: Annotated[
        int, typer.Option(help="WavLM layer, with --wavlm-ckpt.", min=1, rich_help_panel=panels.ARTIFACTS)
    ] = 6,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where converted checkpoints are kept.", rich_help_panel=panels.ARTIFACTS)
    ] = None,
    gpus: GpusOption = None,
    provider: ProviderOption = Provider.auto,
    precision: PrecisionOption = Precision.auto,
    num_proc: RangedNumProcOption = None,
    ray: RayOption = None,
    batch_seconds: BatchSecondsOption = None,
    max_window_seconds: MaxWindowOption = DEFAULT_WINDOW_S,
    timeout_seconds: TimeoutOption = 900.0,
    on_failure: OnFailureOption = OnFailure.stop,
    shard: ShardOption = None,
    overwrite: OverwriteOption = False,
    allow_mixed: AllowMixedOption = False,
    private_manifest: PrivateManifestOption = False,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> int:
    """Anonymize recordings; run the same command again to continue.

    Give files and folders, JSONL manifests, WebDataset shards or --audio-scp, and --output-dir; or --data-dir. Give
    --model and --bank, or the published checkpoints (--wavlm-ckpt, --ckpt, --kmeans-scp), which are converted once and
    kept. What the research scripts have default paths for may be left out if the file is there.

    Outputs have 16 kHz, and are 5 to 25 ms shorter than their recordings; --pad fills them up with silence.
    """
    from mkc_fast.cli.watch import watching
    from mkc_fast.engine.corpus.anonymize import anonymize_corpus, default_devices, open_corpus
    from mkc_fast.engine.corpus.run import check_fit
    from mkc_fast.engine.datasets.shards import Shard
    from mkc_fast.engine.datasets.tables import Columns
    from mkc_fast.engine.devices import cuda_index
    from mkc_fast.engine.storage.addresses import Address, place_of
    from mkc_fast.engine.storage.fetching import fetched_bank, fetched_model

    least, most = _workers(num_proc, ranged=ray is not None)
    devices: list[str] | None = gpus
    if ray is None:
        devices = gpus or default_devices()
        for device in devices:
            cuda_index(device)
    options = EngineOptions(
        provider=provider.value, precision=precision.value, batch_s=batch_seconds, max_window_s=max_window_seconds
    )
    given_inputs = [*(inputs or []), *(input_ or [])]
    check_inputs(given_inputs, audio_scp, output_dir, data_dir)
    with shown_warnings():
        corpus = open_corpus(
            audio_list=audio_scp,
            input=given_inputs,
            input_form=None if input_form is InputForm.auto else input_form.value,
            columns=Columns(audio_column, id_column, speaker_column),
            out=output_dir,
            data_dirs=data_dir or [],
            anon_suffix=anon_suffix,
            audio_format=format_.value,
            allow_commands=allow_commands,
            shard=None if shard is None else Shard.parse(shard),
            level=level.value,
            utt2spk=utt2spk,
        )
    sources = resolved(
        Given(
            model=model,
            bank=bank,
            wavlm_ckpt=wavlm_ckpt,
            ckpt=ckpt,
            ckpt_path=ckpt_path or [],
            config=config or [],
            hifi_config=hifi_config,
            kmeans_scp=kmeans_scp,
            kmeans_path=kmeans_path or [],
            layer=layer,
            mode=mode.value if mode else None,
        )
    )
    for note in () if quiet else sources.notes:
        print(note, file=sys.stderr)
    model, bank = sources.model_directory(cache_dir), sources.bank_directory(cache_dir)
    for place in () if quiet else map(place_of, (model, bank)):
        if isinstance(place, Address):
            print(f"{place} is fetched into the cache folder, unless it is there", file=sys.stderr)
    models = check_fit(fetched_model(model), fetched_bank(bank))
    if not quiet:
        draws = "from the system's entropy, not repeatable" if seed is None else f"from seed {seed}, repeatable"
        count = sum(len(folder.utterances) for folder in corpus.folders)
        subset = f", from {kmeans_num} of {models} k-means models" if kmeans_num and kmeans_num < models else ""
        shared = "" if level is Level.utterance else f", level {level.value}"
        settings = f"{sources.mode} mode, stride {stride}{shared}"
        part = "" if shard is None else f" of shard {shard}"
        print(f"{counted(count, 'recording')}{part}, {settings}; draws {draws}{subset}", file=sys.stderr)
    with (
        _cluster(ray) as cluster,
        signals() as signalled,
        watching(quiet=quiet, as_json=json_, where=corpus.folders) as watch,
    ):
        try:
            with decoders_off_stdout(), shown_warnings():
                summary = anonymize_corpus(
                    model,
                    bank,
                    corpus=corpus,
                    mode=sources.mode,
                    stride=stride,
                    seed=seed,
                    kmeans_num=kmeans_num,
                    pad=pad,
                    record_draws=record_draws,
                    devices=devices,
                    num_proc=most,
                    least_proc=least,
                    cluster=cluster,
                    options=options,
                    timeout_s=timeout_seconds,
                    overwrite=overwrite,
                    allow_mixed=allow_mixed,
                    private_manifest=private_manifest,
                    on_failure=on_failure.value,
                    progress=watch,
                    stopped=lambda: bool(signalled),
                )
        finally:
            watch.print_summary()  # of a run that came to its end, even if its data directories cannot be completed
    if summary.interrupted:
        return 128 + signalled[0]
    return EXIT_FAILED if len(summary.failed) > summary.silenced else 0


def _workers(given: str | None, *, ranged: bool) -> tuple[int | None, int | None]:
    """The least and the most workers of ``--num-proc``: ``8``, or ``4:64`` where that is possible."""
    if given is None:
        return None, None
    match = re.fullmatch(r"(?:([1-9]\d{0,5}):)?([1-9]\d{0,5})", given)
    if match is None or (match[1] and int(match[1]) > int(match[2])):
        raise MkcError(f"--num-proc is {given[:40]!r}; expected a number from 1 up, or MIN:MAX with --ray")
    if match[1] and not ranged:
        raise MkcError("--num-proc MIN:MAX is for a cluster that grows (--ray); here, give one number")
    return int(match[1]) if match[1] else None, int(match[2])


@contextmanager
def _cluster(address: str | None) -> Iterator[Cluster | None]:
    """The Ray cluster at an address, connected to; None without one."""
    if address is None:
        yield None
        return
    from mkc_fast.engine.cluster.connection import RayCluster

    with RayCluster(address) as cluster:
        yield cluster
