"""Which model and bank ``infer`` runs: artifacts, or checkpoints under the names and default paths of the scripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mkc_fast.cli.show import counting, steps
from mkc_fast.errors import MkcError
from mkc_fast.names import AUDIO, FRAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mkc_fast.names import Mode

# Where the research scripts look for what their command line leaves out, against the working directory.
_WAVLM = Path("ckpt/WavLM-Large.pt")
_CKPTS = (Path("ckpt/librispeech_conformer_e_50.pth"), Path("ckpt/librispeech_conformer_e_43.pth"))
_CKPT_PATH = Path("ckpt/step160000_model.pth")
_KMEANS_PATH = Path("ckpt/LibriSpeech_wavlm_k1000_L7.pt")
_HIFI_CONFIG = Path("hifigan_config_v1_wavlm.json")


@dataclass(frozen=True)
class Given:
    """What the options of ``infer`` name: artifacts, or the checkpoints that they are made from."""

    model: Path | None = None
    bank: Path | None = None
    wavlm_ckpt: Path | None = None
    ckpt: Path | None = None
    ckpt_path: Sequence[Path] = ()
    config: Sequence[Path] = ()
    hifi_config: Path | None = None
    kmeans_scp: Path | None = None
    kmeans_path: Sequence[Path] = ()
    layer: int = 6
    mode: Mode | None = None


@dataclass(frozen=True)
class Sources:
    """A model and a bank to run, each an artifact or checkpoints to convert.

    Attributes:
        model: Exported model, or None: then ``wavlm_ckpt`` and ``ckpt`` are converted.
        bank: Bank, or None: then ``kmeans`` is.
        kmeans: A list of k-means models, or their files.
        mode: As given, else that of the scripts which take files of k-means models, else frame mode.
        notes: Lines for the user: what was not given, and is used.
    """

    model: Path | None
    bank: Path | None
    wavlm_ckpt: Path | None
    ckpt: Path | None
    config: Path | None
    hifi_config: Path | None
    kmeans: Path | list[Path] | None
    layer: int
    mode: Mode
    notes: list[str] = field(default_factory=list)

    def model_directory(self, cache_dir: Path | None) -> Path:
        """The exported model; checkpoints are converted into the cache folder if that does not hold it."""
        if self.model is not None:
            return self.model
        from mkc_fast.engine.cache_folder import default_cache
        from mkc_fast.export.cache import cached_model

        assert self.wavlm_ckpt is not None
        assert self.ckpt is not None
        with steps() as progress:
            return cached_model(
                self.wavlm_ckpt,
                self.ckpt,
                self.hifi_config,
                self.layer,
                cache_dir or default_cache(),
                progress,
                self.config,
            )

    def bank_directory(self, cache_dir: Path | None) -> Path:
        """The bank; k-means models are combined in the cache folder if that does not hold it."""
        if self.bank is not None:
            return self.bank
        from mkc_fast.engine.cache_folder import default_cache
        from mkc_fast.export.cache import cached_bank

        assert self.kmeans is not None
        with counting("k-means models") as progress:
            return cached_bank(self.kmeans, cache_dir or default_cache(), progress)


def resolved(given: Given) -> Sources:
    """Choose what to run; for what is left out, the path that the scripts have for it, if there is such a file.

    Raises:
        MkcError: Something is missing, or options exclude each other.
        ListError: The list of k-means models is unreadable or empty, or a model is there twice.
    """
    notes: list[str] = []
    config, ckpt_path = _only("--config", given.config), _only("--ckpt-path", given.ckpt_path)
    if config is not None and str(config).lower() == "none" and not config.is_file():
        config = None  # as some of the scripts spell "the published sizes"
    if given.ckpt is not None and ckpt_path is not None:
        raise MkcError("give --ckpt or --ckpt-path, not both: they are two names for one thing")
    wavlm, ckpt = given.wavlm_ckpt, given.ckpt or ckpt_path
    hifi_config = given.hifi_config
    if given.model is not None:
        if wavlm is not None or ckpt is not None:
            raise MkcError("give --model, or --wavlm-ckpt and --ckpt, not both")
        if config is not None:
            raise MkcError("--config gives the sizes of a --ckpt; an exported --model has its own")
    else:
        wavlm = wavlm or _default("--wavlm-ckpt", (_WAVLM,), notes)
        if ckpt is None:
            ckpt = _default("--ckpt", (*_CKPTS, _CKPT_PATH), notes)
            ckpt_path = ckpt if ckpt == _CKPT_PATH else None
        if wavlm is None or ckpt is None:
            raise MkcError("give --model, or --wavlm-ckpt and --ckpt")
        if ckpt_path is not None:  # only the scripts with this option read the vocoder's sizes from a file
            hifi_config = hifi_config or _default("--hifi-config", (_HIFI_CONFIG,), notes)
    kmeans: Path | list[Path] | None = list(given.kmeans_path) or given.kmeans_scp
    if sum(map(bool, (given.bank, given.kmeans_scp, given.kmeans_path))) > 1:
        raise MkcError("give one of --bank, --kmeans-scp and --kmeans-path, not two")
    if given.bank is None and kmeans is None:
        default = None if given.model is not None else _default("--kmeans-path", (_KMEANS_PATH,), notes)
        if default is None:
            raise MkcError("give --bank, --kmeans-scp or --kmeans-path")
        kmeans = [default]
    if kmeans is not None:
        from mkc_fast.export.bank import named_models

        named_models(kmeans)  # a list that cannot be used is refused before checkpoints are converted
    mode: Mode = given.mode or (AUDIO if given.kmeans_path else FRAME)
    if given.mode is None and len(given.kmeans_path) > 1:
        notes.append("no --mode is given: with --kmeans-path it is audio, one k-means model for a recording")
    if given.mode is None and given.kmeans_scp is not None:
        notes.append("no --mode is given: it is frame; --mode audio draws one k-means model for a recording")
    return Sources(given.model, given.bank, wavlm, ckpt, config, hifi_config, kmeans, given.layer, mode, notes)


def _only(option: str, paths: Sequence[Path]) -> Path | None:
    if len(paths) > 1:
        raise MkcError(
            f"{option}: a run has one conformer, and here are {len(paths)}: split the list, and run once for each"
        )
    return paths[0] if paths else None


def _default(option: str, paths: Sequence[Path], notes: list[str]) -> Path | None:
    """The one of the scripts' paths where there is a file; if there are several, the user must choose."""
    found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        raise MkcError(f"give {option}: which is meant, {' or '.join(map(str, found))}?")
    if not found:
        return None
    notes.append(f"no {option} is given: {found[0]} is used")
    return found[0]
