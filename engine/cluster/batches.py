"""Anonymization as a step of people's own Ray Data pipelines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mkc_fast.engine.audio.read import read_encoded, read_waveform
from mkc_fast.engine.audio.waveform import resampled
from mkc_fast.engine.draws import waveform_id
from mkc_fast.engine.storage.fetching import fetched_bank, fetched_model
from mkc_fast.errors import LostDeviceError, MkcError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from mkc_fast.engine.options import EngineOptions
    from mkc_fast.names import Mode


class AnonymizeBatch:
    """A class for ``ray.data.Dataset.map_batches``: rows with recordings in, rows with anonymized speech out.

    A row has ``path``, or ``bytes`` (an encoded file), or ``array`` (samples, (S,) float) with ``sampling_rate``; and
    perhaps ``id``, which decides its draws if there is a seed. Without one, its path, else a digest of its samples is
    its id. The other fields of a row are kept, and added are: ``audio`` (S′,) float32, ``sampling_rate``, ``bank_ids``
    (T,) and ``error``, the reason why a recording has no speech: then both arrays are empty. Nothing is raised for a
    recording, since Ray would try the whole batch again.

    Use it with actors, so that each opens the model once::

        rows.map_batches(AnonymizeBatch, fn_constructor_kwargs={"model": …, "bank": …}, concurrency=4, num_gpus=1)
    """

    def __init__(
        self,
        model: str | PathLike[str],
        bank: str | PathLike[str],
        *,
        device: str | None = None,
        mode: Mode = "frame",
        stride: int = 1,
        seed: int | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        """Open the model and the bank.

        Args:
            model: Directory made by ``export_model``, on a path that this machine sees; or its address
                (``s3://bucket/model``), which each machine fetches once into its cache folder.
            bank: Directory made by ``build_bank``, or its address.
            device: ``cpu`` or ``cuda:0``. Default: the GPU that Ray gave to this actor, or the CPU if it gave none.
            mode: As in ``Anonymizer.anonymize``.
            stride: The same.
            seed: The same.
            options: How the engine runs. Default: ``EngineOptions()``, on a CPU with the cores that Ray gave.

        Raises:
            ArtifactError: The model or the bank is missing or damaged, or they do not fit each other.
            DeviceError: The device cannot be used.
        """
        from mkc_fast.engine.anonymizer import Anonymizer
        from mkc_fast.engine.devices import cuda_device_names
        from mkc_fast.engine.options import EngineOptions

        device = device or ("cuda:0" if cuda_device_names() else "cpu")
        if options is None:
            options = EngineOptions(threads=_cores_given() if device == "cpu" else None)
        here = fetched_model(model, options.cache), fetched_bank(bank, options.cache)
        self.anonymizer = Anonymizer.load(*here, device, options=options)
        self.mode, self.stride, self.seed = mode, stride, seed

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Anonymize the rows of a batch, which has an array of each field."""
        count = len(next(iter(batch.values())))
        rows = [{name: values[number] for name, values in batch.items()} for number in range(count)]
        read = [self._read(row) for row in rows]
        ids = [self._id_of(row, waveform) for row, (waveform, _) in zip(rows, read, strict=True)]
        errors = [error for _, error in read]
        audio = [np.zeros(0, np.float32)] * count
        bank_ids = [np.zeros(0, np.int64)] * count
        good = [number for number in range(count) if not errors[number]]
        for number, result in self._anonymized(good, [waveform for waveform, _ in read], ids):
            if isinstance(result, str):
                errors[number] = result
            else:
                audio[number], bank_ids[number] = result
        kept = {name: values for name, values in batch.items() if name not in {"bytes", "array"}}
        return {
            **kept,
            "id": np.array(ids, dtype=object),
            "audio": _ragged(audio),
            "sampling_rate": np.full(count, self.anonymizer.info.sample_rate),
            "bank_ids": _ragged(bank_ids),
            "error": np.array(errors, dtype=object),
        }

    def _read(self, row: Mapping[str, Any]) -> tuple[NDArray[np.float32], str]:
        """The samples of a row, or why there are none."""
        info = self.anonymizer.info
        try:
            if row.get("array") is not None:
                return resampled(np.asarray(row["array"], np.float32), int(row["sampling_rate"]), info.sample_rate), ""
            if row.get("bytes") is not None:
                name = str(row.get("path") or row.get("id") or "bytes")
                return read_encoded(bytes(row["bytes"]), name, info.sample_rate, info.min_samples), ""
            return read_waveform(Path(str(row["path"])), info.sample_rate, info.min_samples), ""
        except KeyError as error:
            return np.zeros(0, np.float32), f"the row has no {error}; expected path, bytes, or array and sampling_rate"
        except MkcError as error:
            return np.zeros(0, np.float32), str(error)

    @staticmethod
    def _id_of(row: Mapping[str, Any], waveform: NDArray[np.float32]) -> str:
        return str(row.get("id") or row.get("path") or waveform_id(waveform))

    def _anonymized(
        self, good: list[int], waveforms: list[NDArray[np.float32]], ids: list[str]
    ) -> Iterator[tuple[int, tuple[NDArray[np.float32], NDArray[np.int64]] | str]]:
        """The result or the error of each recording that could be read; all in one call if nothing fails."""
        parts = [good] if good else []
        while parts:
            part = parts.pop()
            try:
                results = self.anonymizer.anonymize_batch(
                    [waveforms[number] for number in part],
                    self.mode,
                    self.stride,
                    self.seed,
                    [ids[number] for number in part],
                )
            except LostDeviceError:
                raise  # Ray starts another actor
            except MkcError as error:
                if len(part) == 1:
                    yield part[0], str(error)
                else:
                    parts += [[number] for number in part]
            else:
                for number, result in zip(part, results, strict=True):
                    yield number, (result.waveform, result.bank_ids)


def _ragged(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of several lengths as one of objects."""
    whole = np.empty(len(arrays), dtype=object)
    for number, array in enumerate(arrays):
        whole[number] = array
    return whole


def _cores_given() -> int | None:
    """The cores that Ray gave to this actor; None where it is none."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    return int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0)) or None
