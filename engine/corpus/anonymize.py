"""A whole corpus in one call: any form of corpus in, the same form of anonymized recordings out."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.engine.artifacts import BANK_FILE, MODEL_FILE
from mkc_fast.engine.corpus.outputs import Folder, plan_folder
from mkc_fast.engine.corpus.protocol import Settings
from mkc_fast.engine.corpus.provenance import write_provenance
from mkc_fast.engine.corpus.remote import publish, working_folder
from mkc_fast.engine.corpus.run import Run, run_corpus
from mkc_fast.engine.corpus.status import Status, Summary
from mkc_fast.engine.corpus.watchdog import DEFAULT_TIMEOUT_S
from mkc_fast.engine.datasets.forms import Asked, read_inputs
from mkc_fast.engine.datasets.jsonl import JsonlManifests
from mkc_fast.engine.datasets.kaldi import AUDIO_FOLDER, DataDirectory, read_data_directory
from mkc_fast.engine.datasets.path_lists import AudioList, read_audio_list
from mkc_fast.engine.datasets.shards import Shard, shared_salt
from mkc_fast.engine.datasets.speakers import with_draw_ids
from mkc_fast.engine.datasets.tables import Columns
from mkc_fast.engine.devices import cuda_device_names, cuda_index
from mkc_fast.engine.options import EngineOptions
from mkc_fast.engine.storage.addresses import Address, is_address, place_of
from mkc_fast.engine.storage.fetching import RemoteArtifact, looked_up, on_this_machine
from mkc_fast.engine.storage.file_systems import file_system
from mkc_fast.engine.storage.writing import remove_object
from mkc_fast.errors import ArgumentError, ListError
from mkc_fast.names import CPU, FRAME, STOP, UTTERANCE, WAV

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from os import PathLike

    from mkc_fast.engine.corpus.pool import Cluster
    from mkc_fast.engine.datasets.dataset import Dataset
    from mkc_fast.engine.storage.addresses import Place
    from mkc_fast.names import AudioFormat, Level, Mode, OnFailure

DEFAULT_SUFFIX = "_mkc"
# What is kept in one process, and what is only read.
_NOT_WRITTEN = frozenset({"memory", "http", "https", "data"})


@dataclass(frozen=True)
class Corpus:
    """Recordings to anonymize and where their outputs go, read and checked; nothing is written yet.

    Attributes:
        datasets: What goes in and comes out.
        folders: The planned outputs of each.
        audio_format: Of the outputs, ``wav`` or ``flac``.
    """

    datasets: list[Dataset]
    folders: list[Folder]
    audio_format: AudioFormat

    def finish(self, summary: Summary, model: Path, bank: Path) -> None:
        """Complete each output folder, but not those with recordings that failed and got no output.

        Args:
            summary: Of the run that wrote them.
            model: What they were made with.
            bank: The bank of the folders that name none.

        Raises:
            OutputError: A file cannot be written.
        """
        for dataset, folder in zip(self.datasets, self.folders, strict=True):
            done = summary.folders[folder.outputs.folder]
            if not done.complete:
                _unfinish(dataset, folder)
                continue
            if dataset.described and folder.utterances:
                write_provenance(folder, model, folder.bank or bank, silenced=done.silenced, role=folder.role)
            dataset.finish(folder.outputs)
            if folder.remote is not None:
                publish(folder)

    def unfinish(self, audio_dirs: Collection[Path]) -> None:
        """Mark output folders as incomplete again: those whose recordings go to ``audio_dirs``.

        Raises:
            OutputError: It cannot be removed.
        """
        for dataset, folder in zip(self.datasets, self.folders, strict=True):
            if dataset.audio_dir in audio_dirs:
                _unfinish(dataset, folder)


def _unfinish(dataset: Dataset, folder: Folder) -> None:
    dataset.unfinish()
    if folder.remote is not None and isinstance(dataset, JsonlManifests):
        for source in dataset.sources:
            remove_object(folder.remote / source.path.name)


def open_corpus(
    *,
    audio_list: str | PathLike[str] | None = None,
    input: str | PathLike[str] | Sequence[str | PathLike[str]] = (),  # noqa: A002 - as the command has it
    input_form: str | None = None,
    columns: Columns | None = None,
    out: str | PathLike[str] | None = None,
    data_dirs: Sequence[str | PathLike[str]] = (),
    anon_suffix: str = DEFAULT_SUFFIX,
    audio_format: AudioFormat = WAV,
    allow_commands: bool = False,
    level: Level = UTTERANCE,
    utt2spk: str | PathLike[str] | None = None,
    audio_folder: str = AUDIO_FOLDER,
    shard: Shard | None = None,
) -> Corpus:
    """Read what goes in and plan its outputs; the arguments are those of ``anonymize_corpus``, and one more.

    ``columns`` says which columns of a dataset of Hugging Face have the recordings, the ids and the speakers.
    ``anonymize_corpus`` does this itself. Call it before a slow step, such as the conversion of checkpoints, so that a
    bad list is reported first.

    Raises:
        ArgumentError: Not exactly one form of input is given, or the format is unknown.
        ListError: A list is unreadable, empty or contradictory, or a data directory is given twice.
        OutputError: An output folder cannot be used, or an output would replace a recording.
    """
    datasets: list[Dataset]
    remote, folder = (None, Path()) if out is None else _output_place(out)
    if remote is not None and shard is not None:
        raise ArgumentError(f"{remote}: parts of a corpus go into folders; give a path, or run without shard")
    inputs = [input] if isinstance(input, (str, os.PathLike)) else list(input)
    if data_dirs:
        if audio_list is not None or out is not None or inputs:
            raise ArgumentError("give data_dirs, or audio_list and out, not both")
        directories = [
            read_data_directory(Path(p), anon_suffix, allow_commands=allow_commands, audio_folder=audio_folder)
            for p in data_dirs
        ]
        seen: set[Path] = set()
        for directory in directories:
            resolved = directory.out.resolve()
            if resolved in seen:
                raise ListError(f"{directory.path}: the data directory is given twice")
            seen.add(resolved)
        if utt2spk is not None:
            raise ArgumentError("utt2spk is for audio_list; data directories have their own")
        datasets = [at_level(each, level) for each in directories]
    elif out is None or (audio_list is None) == (not inputs):
        raise ArgumentError("give input and out, or audio_list and out, or data_dirs")
    elif inputs:
        speakers = None if utt2spk is None else Path(utt2spk)
        asked = Asked(folder, level, speakers, allow_commands, columns or Columns(), remote)
        datasets = [read_inputs([os.fspath(each) for each in inputs], asked, input_form)]
    else:
        assert audio_list is not None
        where = place_of(audio_list)
        utterances = read_audio_list(where, allow_commands=allow_commands)
        utterances = with_draw_ids(utterances, level, _utt2spk_of(where, utt2spk))
        datasets = [AudioList(utterances, folder)]
    return plan_corpus(datasets, audio_format=audio_format, level=level, shard=shard, remote=remote)


def _output_place(out: str | PathLike[str]) -> tuple[Address | None, Path]:
    """The address of an output folder, if it is at one; and the folder, or the working folder for it.

    Raises:
        ArgumentError: Nothing can be written at the address.
        MkcError: The package of its protocol is not installed.
    """
    place = place_of(out)
    if not isinstance(place, Address):
        return None, place
    if place.protocol in _NOT_WRITTEN:
        raise ArgumentError(f"{place}: outputs cannot be written at {place.protocol}:// addresses")
    file_system(place.url)
    return place, working_folder(place)


def at_level(directory: DataDirectory, level: Level) -> DataDirectory:
    """A data directory whose utterances share draws as the level says, by its own speakers.

    Raises:
        ArgumentError: The level is unknown.
        ListError: Speakers are needed and not known.
    """
    return replace(directory, utterances=with_draw_ids(directory.utterances, level, directory.path / "utt2spk"))


def plan_corpus(
    datasets: Sequence[Dataset],
    *,
    audio_format: AudioFormat = WAV,
    level: Level = UTTERANCE,
    shard: Shard | None = None,
    remote: Address | None = None,
) -> Corpus:
    """Plan the outputs of what was read; nothing is written.

    Args:
        datasets: What was read, at its level.
        audio_format: Of the outputs.
        level: Recorded as theirs.
        shard: Only the utterances of this part.
        remote: The address of the output folder of all of them, if it is at one.

    Raises:
        OutputError: An output folder cannot be used, or an output would replace a recording.
        MkcError: The format is unknown, or two outputs have one name here.
    """
    ids = [[utterance.id for utterance in each.utterances] for each in datasets]
    datasets = [each if shard is None else each.part(shard) for each in datasets]
    _check_protocols(datasets)
    settings = Settings(format=audio_format)
    folders = [
        plan_folder(each.utterances, each.record_dir, each.audio_dir, settings, each.out, each.groups, remote)
        for each in datasets
    ]
    folders = [replace(folder, level=level) for folder in folders]
    if shard is not None:
        folders = [
            replace(folder, shard=shard, salt=shared_salt(shard, whole))
            for folder, whole in zip(folders, ids, strict=True)
        ]
    return Corpus(datasets, folders, audio_format)


def _utt2spk_of(audio_list: Place, given: str | PathLike[str] | None) -> Path | None:
    """The list of speakers: the one given, else ``utt2spk`` beside the list of recordings, if it is there."""
    if given is not None:
        return Path(given)
    if isinstance(audio_list, Address):
        return None
    beside = audio_list.parent / "utt2spk"
    return beside if str(audio_list) != "-" and beside.is_file() else None


def _check_protocols(datasets: Sequence[Dataset]) -> None:
    """Find the packages of all protocols of the recordings' addresses here, before each recording fails without them.

    Raises:
        MkcError: One is not installed, or a protocol is unknown.
    """
    found: dict[str, str] = {}
    for dataset in datasets:
        for utterance in dataset.utterances:
            text = str(utterance.file)
            if "://" in text and utterance.command is None and is_address(text):
                found.setdefault(text.partition("://")[0].lower(), text)
    for text in found.values():
        file_system(text)


def default_devices() -> list[str]:
    """All CUDA devices of this machine, or the CPU if there is none."""
    return [f"cuda:{index}" for index in range(len(cuda_device_names()))] or [CPU]


def anonymize_corpus(
    model: str | PathLike[str],
    bank: str | PathLike[str],
    *,
    audio_list: str | PathLike[str] | None = None,
    input: str | PathLike[str] | Sequence[str | PathLike[str]] = (),  # noqa: A002 - as the command has it
    input_form: str | None = None,
    out: str | PathLike[str] | None = None,
    data_dirs: Sequence[str | PathLike[str]] = (),
    anon_suffix: str = DEFAULT_SUFFIX,
    audio_format: AudioFormat = WAV,
    allow_commands: bool = False,
    level: Level = UTTERANCE,
    utt2spk: str | PathLike[str] | None = None,
    shard: Shard | None = None,
    corpus: Corpus | None = None,
    mode: Mode = FRAME,
    stride: int = 1,
    seed: int | None = None,
    kmeans_num: int | None = None,
    pad: bool = False,
    record_draws: bool = False,
    devices: Sequence[str] | None = None,
    num_proc: int | None = None,
    options: EngineOptions | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    overwrite: bool = False,
    allow_mixed: bool = False,
    private_manifest: bool = False,
    on_failure: OnFailure = STOP,
    cluster: Cluster | None = None,
    least_proc: int | None = None,
    progress: Callable[[Status], None] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Summary:
    """Anonymize the recordings of a corpus, as ``mkc-fast infer`` does.

    The recordings are processed in worker processes. Outputs are written atomically, and the same call continues a run
    that was stopped: it processes what is missing and retries what failed. Workers are new interpreters that do not
    import the calling script, so the call needs no ``if __name__ == "__main__"``.

    Args:
        model: Directory made by ``export_model``; or the address of one (``s3://bucket/model``), which each machine
            fetches once into its cache folder.
        bank: Directory made by ``build_bank``, or its address.
        audio_list: List of ``path`` or ``utt-id path`` a line (Kaldi ``wav.scp``); ``-`` is the standard input. The
            list and the paths in it may be addresses (``s3://bucket/key``, through fsspec).
        input: Or files and folders of recordings, JSONL manifests, WebDataset shards, files of a dataset of Hugging
            Face; or one CutSet or Shar directory of Lhotse.
        input_form: ``"files"``, ``"jsonl"``, ``"webdataset"``, ``"huggingface"``, ``"lhotse"`` or ``"shar"``. Default:
            by the inputs' names and what they hold.
        out: Output folder for ``audio_list`` and ``input``: ``<utt-id>.wav`` of each recording, and ``manifest.jsonl``;
            or what the form has instead. It may be an address, for lists, files, JSONL manifests and shards.
        data_dirs: Or Kaldi data directories, without ``out``. Each gets an anonymized directory
            beside it, with a ``wav.scp`` and copies of its other lists.
        anon_suffix: Added to the name of each data directory, it names the anonymized one.
        audio_format: Of the outputs: ``"wav"`` or ``"flac"``, 16-bit at 16 kHz.
        allow_commands: Run the commands (lines that end in ``|``) of a ``wav.scp``.
        level: Which utterances share a draw: none (``"utterance"``), those of a speaker (``"speaker"``; in frame mode
            they share a sequence of draws), or all (``"constant"``).
        utt2spk: List of ``utt-id speaker`` a line for ``level="speaker"``. Default: the file ``utt2spk`` beside the
            list, in the folder or in each data directory, or the speakers in a JSONL manifest.
        shard: Only the utterances of this part of the corpus. They go into a folder beside the output folder whose name
            says which part it is; ``merge_corpus`` joins all parts.
        corpus: What ``open_corpus`` returned, instead of the eleven arguments above.
        mode: ``"audio"`` draws one bank entry for a recording, ``"frame"`` one every ``stride`` frames.
        stride: Frames (20 ms) that share a draw in frame mode.
        seed: Makes the draws repeatable. Default: the operating system's entropy.
        kmeans_num: Draw from a random subset of so many bank entries. Default: from all.
        pad: Fill each output's end with silence, up to the length of its recording.
        record_draws: Record the bank entry of each frame in the manifest; it helps an attacker.
        devices: ``"cpu"``, ``"cuda:0"``, …. Default: all CUDA devices, or the CPU if there is none.
        num_proc: Number of worker processes, over the devices in turn. Default: one for each device.
        options: How the engine runs on each device: provider, precision, window, batch. Default: ``EngineOptions()``.
        timeout_s: Seconds. A worker that reports nothing for longer, beyond what the length of its recordings explains,
            is replaced; 0 never replaces one.
        overwrite: Start over, whatever the output folders hold.
        allow_mixed: Continue with another device, provider, precision or version, whose results differ in the last bit.
        private_manifest: Record salted digests of the recordings' paths instead of the paths.
        on_failure: What becomes of a recording that fails twice, the second time alone. ``"stop"``: it gets no output,
            and its data directory is not completed: it has no ``wav.scp``. ``"copy-silence"``: its output is silence of
            its length.
        cluster: The machines that the workers run on, such as an open ``mkc_fast.engine.cluster.RayCluster``. All of
            them must see the paths of recordings, outputs, model and bank. Default: this machine.
        least_proc: On a cluster, so many of the ``num_proc`` workers are kept to the end; the others are let go once
            there is nothing left for them, so that their machines can be returned. Default: all.
        progress: Called with a ``Status`` several times a second, in this thread, and with ``Status.done`` at the end.
            If it raises, the workers are ended and the error is passed on.
        stopped: Called often. Once it returns true, the run ends within seconds and ``Summary.interrupted`` is set.
            Data directories are then not completed.

    Returns:
        What was done. Recordings that failed are in ``failed``, with the reason; they raise nothing.

    Raises:
        ArgumentError: Not exactly one form of input is given, or a value is not possible.
        ListError: A list is unreadable, empty or contradictory.
        ArtifactError: The model or the bank is missing or damaged, or they do not fit each other.
        DeviceError: A device or provider cannot be used.
        OutputError: An output folder holds outputs of other settings, recordings or programs, or cannot be written.
        WriteError: The disk is full, or a manifest was removed during the run.
        StoppedError: Workers no longer start. What was written is complete, and the same call continues.
    """
    if cluster is not None:
        used = cluster.devices(devices)
    else:
        used = default_devices() if devices is None else list(devices)
        for device in used:
            cuda_index(device)
    if corpus is None:
        corpus = open_corpus(
            audio_list=audio_list,
            input=input,
            input_form=input_form,
            out=out,
            data_dirs=data_dirs,
            anon_suffix=anon_suffix,
            audio_format=audio_format,
            allow_commands=allow_commands,
            level=level,
            utt2spk=utt2spk,
            shard=shard,
        )
    elif audio_list is not None or out is not None or data_dirs or input:
        raise ArgumentError("give corpus, or what it is read from, not both")
    for folder in corpus.folders if cluster is not None else ():
        if folder.remote is not None and folder.groups is not None:
            raise ArgumentError(
                f"{folder.remote}: on a cluster, outputs that become files together need a folder that all machines "
                "see, not an address"
            )
    options = options or EngineOptions()
    looked = looked_up(model, MODEL_FILE), looked_up(bank, BANK_FILE)
    model_here, bank_here = (on_this_machine(each, options.cache) for each in looked)
    run = Run(
        folders=corpus.folders,
        model=model_here,
        bank=bank_here,
        settings=Settings(mode, stride, seed, corpus.audio_format, record_draws, pad),
        devices=used,
        num_proc=num_proc,
        options=options,
        overwrite=overwrite,
        timeout_s=timeout_s,
        kmeans_num=kmeans_num,
        allow_mixed=allow_mixed,
        private_manifest=private_manifest,
        on_failure=on_failure,
        cluster=cluster,
        least=least_proc,
        remote={
            here: each
            for here, each in zip((model_here, bank_here), looked, strict=True)
            if isinstance(each, RemoteArtifact)
        },
    )
    watch = progress or (lambda _: None)
    summary = run_corpus(run, stopped=stopped or (lambda: False), watch=watch, begun=corpus.unfinish)
    watch(Status(summary, 0.0, summary.wall_s - summary.start_up_s, [], done=True))
    if not summary.interrupted:
        corpus.finish(summary, run.model, run.bank)
    return summary
