"""The errors that mkc-fast raises on purpose: one tree under ``MkcError``."""

from __future__ import annotations

from mkc_fast.text import one_line


class MkcError(Exception):
    """Base of every error that mkc-fast raises on purpose; its text is one line, made to be shown to a person.

    Whatever names and texts of files it quotes, it is printable and not long.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class ArgumentError(MkcError, ValueError):
    """An argument has a value that is not possible: an unknown mode, a stride below 1, a seed that is too large."""


class CheckpointError(MkcError):
    """A published checkpoint is missing, damaged, hostile or not of the expected form."""


class InexactError(CheckpointError):
    """A graph made of a checkpoint is further from float64 than PyTorch's own float32 explains."""


class ArtifactError(MkcError):
    """A ``model/`` or ``bank/`` directory is missing, damaged or of another format version."""


class BankError(MkcError, ValueError):
    """Features, bank ids or cluster ids do not fit the bank."""


class AudioError(MkcError, ValueError):
    """A recording or waveform is missing, unreadable, truncated, too short, of a wrong scale or not finite."""


class StageError(MkcError):
    """A stage gave values that are not finite: the model or bank is damaged, or the precision is too low."""


class DownloadError(MkcError):
    """A published file cannot be downloaded, is not what was recorded, or its terms were not accepted."""


class ListError(MkcError):
    """A list of recordings or of k-means models is unreadable, empty or contradictory."""


class OutputError(MkcError):
    """An output cannot be written at the given path."""


class WriteError(OutputError):
    """An output could not be written during a run, mostly because the disk is full; earlier outputs are complete."""


class StoppedError(MkcError):
    """A run had to stop; what was written is complete, and the same command continues it."""


class DeviceError(MkcError):
    """A device or provider is not available here, or fails."""


class RuntimeMissingError(DeviceError, ImportError):
    """ONNX Runtime is not installed."""


class DeviceMemoryError(DeviceError):
    """The device has too little memory for what was to run at once."""


class LostDeviceError(DeviceError):
    """The device no longer answers this process; a new process may be able to use it."""
