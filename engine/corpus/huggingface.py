"""Anonymization as a function for ``datasets.Dataset.map``; ``datasets`` itself is not imported here."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile

from mkc_fast.engine.anonymizer import Anonymizer
from mkc_fast.engine.audio.read import read_encoded, read_waveform
from mkc_fast.engine.audio.waveform import to_pcm16
from mkc_fast.engine.devices import cuda_device_names
from mkc_fast.engine.options import EngineOptions
from mkc_fast.errors import ArgumentError, AudioError
from mkc_fast.names import CPU, FLAC, FORMATS, FRAME

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mkc_fast.names import AudioFormat, Mode


@dataclass
class AnonymizeRows:
    """Anonymizes batches of rows, for ``Dataset.map(…, batched=True, with_indices=True, with_rank=True)``.

    The column holds the Audio feature undecoded, ``Audio(decode=False)``: ``bytes`` and ``path``. So neither torch nor
    torchcodec is needed. It is given back in the same form, with encoded bytes at the model's rate. The model is opened
    once in each process, on the GPU of its rank. Processes are given this object without the model.

    Attributes:
        model: Directory made by ``export_model``.
        bank: Directory made by ``build_bank``.
        column: The column with the recordings.
        id_column: The column whose values are utterance ids. Default: the row's number, with ``with_indices=True``.
        device: ``cpu`` or ``cuda:0``. Default: the GPU whose number is the rank, or the CPU if there is none.
        mode: As in ``Anonymizer.anonymize``.
        stride: The same.
        seed: The same.
        pad: The same.
        audio_format: Of the bytes: ``flac`` or ``wav``, 16-bit.
        options: How the engine runs.
    """

    model: str | Path
    bank: str | Path
    column: str = "audio"
    id_column: str | None = None
    device: str | None = None
    mode: Mode = FRAME
    stride: int = 1
    seed: int | None = None
    pad: bool = False
    audio_format: AudioFormat = FLAC
    options: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        if self.audio_format not in FORMATS:
            raise ArgumentError(f"audio_format is {self.audio_format!r}; expected one of {', '.join(FORMATS)}")
        self._anonymizer: Anonymizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the model itself; and ``datasets`` names its cache by what is here.
        return {**self.__dict__, "_anonymizer": None}

    def __call__(
        self, batch: Mapping[str, list[Any]], indices: Sequence[int] | int | None = None, rank: int | None = None
    ) -> dict[str, list[Any]]:
        """Anonymize rows.

        Args:
            batch: The values of each column.
            indices: Numbers of the rows, with ``with_indices=True``.
            rank: Number of the process, with ``with_rank=True``.

        Returns:
            The column, anew.

        Raises:
            ArgumentError: The column is missing or decoded, or with a seed nothing tells the ids of the rows.
            AudioError: A recording cannot be read.
            ArtifactError, DeviceError: The artifacts or the device cannot be used.
        """
        if isinstance(indices, int):  # with_rank alone
            indices, rank = None, indices
        if self.column not in batch:
            raise ArgumentError(f"the rows have no column {self.column!r}; they have {', '.join(batch)}")
        rows = batch[self.column]
        ids = self._ids(batch, indices, len(rows))
        anonymizer = self._opened(rank or 0)
        shown = [str(number) for number in range(len(rows))] if ids is None else ids
        waveforms = [self._read(row, name, anonymizer) for row, name in zip(rows, shown, strict=True)]
        results = anonymizer.anonymize_batch(waveforms, self.mode, self.stride, self.seed, ids, pad=self.pad)
        made = []
        for row, name, result in zip(rows, shown, results, strict=True):
            file = io.BytesIO()
            rate = anonymizer.info.sample_rate
            soundfile.write(file, to_pcm16(result.waveform), rate, "PCM_16", format=self.audio_format.upper())
            path = row.get("path") if isinstance(row, dict) else None
            stem = Path(str(path or name)).stem
            made.append({"bytes": file.getvalue(), "path": f"{stem}.{self.audio_format}"})
        return {self.column: made}

    def _ids(self, batch: Mapping[str, list[Any]], indices: Sequence[int] | None, count: int) -> list[str] | None:
        if self.id_column is not None:
            if self.id_column not in batch:
                raise ArgumentError(f"the rows have no column {self.id_column!r}; they have {', '.join(batch)}")
            return [str(value) for value in batch[self.id_column]]
        if indices is not None:
            return [str(index) for index in indices]
        if self.seed is not None and count:
            raise ArgumentError("with a seed, rows need ids: give id_column, or map with with_indices=True")
        return None

    def _opened(self, rank: int) -> Anonymizer:
        if self._anonymizer is None:
            count = len(cuda_device_names())
            device = self.device or (f"cuda:{rank % count}" if count else CPU)
            self._anonymizer = Anonymizer.load(self.model, self.bank, device, options=self.options)
        return self._anonymizer

    @staticmethod
    def _read(row: Any, name: str, anonymizer: Anonymizer) -> Any:
        info, shown = anonymizer.info, f"row {name}"
        if isinstance(row, dict) and isinstance(row.get("bytes"), bytes):
            return read_encoded(row["bytes"], shown, info.sample_rate, info.min_samples)
        if isinstance(row, dict) and isinstance(row.get("path"), str):
            if "://" in row["path"] or "::" in row["path"]:
                raise AudioError(f"{shown}: its path is an address; only local files are read")
            return read_waveform(Path(row["path"]), info.sample_rate, info.min_samples)
        raise ArgumentError(
            f"{shown}: is no undecoded recording; cast the column first, with cast_column(…, Audio(decode=False))"
        )
