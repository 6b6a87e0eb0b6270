"""Reads the published PyTorch checkpoints without executing anything in them, and checks what they say they are."""

from __future__ import annotations

import ast
import io
import json
import math
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import torch

from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.pickles import Refused, Source, StrictUnpickler, check_key, encode_latin1
from mkc_fast.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Weights = dict[str, torch.Tensor]

# What a count or a size in a configuration may be at most: far above any published model, far below what harms.
_MAX_SIZE = 1 << 20
# Samples a frame, 320 as published, and how far apart a convolution's taps may be, 12 as published: neither is held
# against a weight's shape, so nothing else bounds what a run would cost.
_MAX_HOP = 1 << 14
_MAX_DILATION = 1 << 10
# Of the pickle that says what tensors there are: 0.1 MB for WavLM Large.
_MAX_PICKLE_BYTES = 1 << 26
# Of the list of an archive's files, 0.04 MB for WavLM Large; and of one that holds neither the pickle nor weights, such
# as a version's number.
_MAX_DIRECTORY_BYTES = 1 << 22
_MAX_NOTE_BYTES = 1 << 16


@dataclass(frozen=True)
class WavLMConfig:
    """Sizes of a WavLM model, from the ``cfg`` of its checkpoint (microsoft/unilm, WavLM)."""

    conv_layers: tuple[tuple[int, int, int], ...]  # (channels, kernel, stride) of each
    extractor_mode: str  # "layer_norm" | "default" (GroupNorm over time in the first convolution)
    layer_norm_first: bool
    num_layers: int
    dim: int
    ffn_dim: int
    num_heads: int
    conv_pos: int
    conv_pos_groups: int
    relative_positions: bool
    gated: bool
    num_buckets: int
    max_distance: int

    def check_layer(self, path: Path, layer: int) -> None:
        """Check that there is such a layer.

        Raises:
            CheckpointError: There is not.
        """
        if not 1 <= layer <= self.num_layers:
            raise CheckpointError(f"{path}: has layers 1 to {self.num_layers}, so there is no layer {layer}")

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self.conv_layers)

    @property
    def min_samples(self) -> int:
        """Samples that the first frame needs."""
        samples = 1
        for _, kernel, stride in reversed(self.conv_layers):
            samples = (samples - 1) * stride + kernel
        return samples


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes of the conformer (names as in ``torchaudio.models.Conformer``); ``num_layers`` 0 means no conformer."""

    dim: int
    num_heads: int
    ffn_dim: int
    num_layers: int
    kernel_size: int


@dataclass(frozen=True)
class HifiGanConfig:
    """Sizes of the HiFi-GAN generator (jik876/hifi-gan, with a linear layer in front as in bshall/knn-vc)."""

    resblock: str  # "1" | "2"
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    input_dim: int  # hubert_dim: what the linear layer takes
    hidden_dim: int  # hifi_dim: what it gives
    sample_rate: int

    @property
    def hop(self) -> int:
        """Samples that a frame becomes."""
        return math.prod(self.upsample_rates)


# The published V1 values, used where a checkpoint names a configuration file that is not here.
HIFIGAN_V1: Mapping[str, Any] = {
    "resblock": "1",
    "upsample_rates": [10, 8, 2, 2],
    "upsample_kernel_sizes": [20, 16, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "hubert_dim": 1024,
    "hifi_dim": 512,
    "sampling_rate": 16000,
}


@dataclass(frozen=True)
class WavLMCheckpoint:
    """A WavLM checkpoint: its configuration and its weights under their published names."""

    config: WavLMConfig
    weights: Weights


@dataclass(frozen=True)
class VoiceCheckpoint:
    """A conformer + vocoder checkpoint, each part's weights under names relative to that part."""

    conformer: ConformerConfig
    conformer_weights: Weights
    hifigan: HifiGanConfig
    hifigan_weights: Weights


class _Opaque:
    """Stands in for a tensor, a storage, a dtype and the like."""

    def __init__(self, *_: object) -> None:
        pass


def _make_container(items: object = None) -> dict[Any, Any] | list[Any]:
    """What ``OrderedDict()``, ``Counter({...})`` and ``set([...])`` make, nearly."""
    if items is None:
        return {}
    if type(items) is not dict and type(items) is not list:
        raise Refused("an unusual container")
    for key in items:
        check_key(key)
    return items


_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Opaque,
    ("torch._utils", "_rebuild_tensor"): _Opaque,
    ("torch._utils", "_rebuild_parameter"): _Opaque,
    ("torch._utils", "_rebuild_parameter_with_state"): _Opaque,
    ("torch._tensor", "_rebuild_from_type_v2"): _Opaque,
    ("torch", "Size"): _Opaque,
    ("torch", "device"): _Opaque,
    ("collections", "OrderedDict"): _make_container,
    ("collections", "Counter"): _make_container,
    **{(module, "set"): _make_container for module in ("builtins", "__builtin__")},
    ("_codecs", "encode"): encode_latin1,
}
# Named by tensors of a class of their own; to call them is to ask for memory that nothing is stored in.
_CLASSES = (("torch", "Tensor"), ("torch.nn.parameter", "Parameter"))
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


class _CheckpointUnpickler(StrictUnpickler):
    """Walks through a checkpoint's pickle without making a tensor, and refuses what no state dict needs.

    ``torch.load`` with ``weights_only=True`` executes nothing either, but a few bytes have it fill the memory
    (``bytearray(10**12)``), never end (the hash of a tuple that holds itself twice, 50 levels deep; keys that collide)
    or, before 2.10, write where it must not (CVE-2026-24747).
    """

    names: ClassVar[Mapping[tuple[str, str], object]] = {
        **_FUNCTIONS,
        **{name: _Opaque() for name in _CLASSES},
        **{("torch", f"{storage}Storage"): _Opaque() for storage in _STORAGES},
        **{("torch", dtype): _Opaque() for dtype in _DTYPES},
    }
    functions: ClassVar[Collection[object]] = _FUNCTIONS.values()

    def __init__(self, source: Source, max_elements: int) -> None:
        super().__init__(source, _MAX_PICKLE_BYTES)
        self.dispatch[pickle.BINPERSID[0]] = type(self)._persistent
        self.elements: dict[str, int] = {}
        self.elements_left = max_elements

    def _persistent(self) -> None:
        """Take ``("storage", type, key, location, number of elements)``; old files add a None."""
        reference = self.stack.pop()
        if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
            raise Refused("a reference to something outside")
        key, count = reference[2], reference[4]
        if type(key) is not str or type(count) is not int or reference[5:] not in ((), (None,)):
            raise Refused("a storage of unknown form")
        if self.elements.get(key, count) != count:
            raise Refused("a storage of two sizes")
        if key not in self.elements:
            self.elements[key] = count
            self.elements_left -= count
        if count < 0 or self.elements_left < 0:
            raise Refused("more weights than the file holds")
        self.stack.append(_Opaque())

    def build(self, target: object, state: object) -> None:
        # Anything else in the state of an OrderedDict would take the place of its methods.
        if not (isinstance(target, dict) and isinstance(state, dict) and state.keys() <= {"_metadata"}):
            super().build(target, state)


_ZIP_MAGIC = b"PK\x03\x04"
_FOREIGN = "torch.save did not write it"


def _check_pickles(path: Path, file: BinaryIO, size: int) -> None:
    """Refuse a checkpoint that ``torch.load`` should not be given."""
    if file.read(4) == _ZIP_MAGIC:
        # Read before anything is made of it: an archive may list a million files in a few bytes each.
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end is None:
            raise ValueError(_FOREIGN)
        if end[5] > _MAX_DIRECTORY_BYTES:
            raise Refused("an archive of more files than weights need")
        entries = zipfile.ZipFile(file).infolist()
        # torch.save compresses nothing, and what is looked at here must be what torch.load reads.
        if len({entry.filename.lower() for entry in entries}) < len(entries) or any(e.compress_type for e in entries):
            raise Refused("an archive that torch.save would not write")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        notes = (e for e in entries if not e.filename.endswith("data.pkl") and "/data/" not in e.filename)
        if any(note.file_size > _MAX_NOTE_BYTES for note in notes):  # torch.load reads some of them whole
            raise Refused("an archive that torch.save would not write")
        if not pickles:
            raise ValueError(_FOREIGN)
        # torch.load finds the pickle with a reader of its own, which must mean the same bytes.
        reader: Any = torch._C.PyTorchFileReader(str(path))  # whose methods are not all in its type
        meant = reader.get_record_offset("data.pkl"), reader.get_record_size("data.pkl")
        found = []
        for entry in pickles:
            file.seek(entry.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)
            found.append((file.tell(), entry.file_size))
            _CheckpointUnpickler(Source(file, min(entry.file_size, _MAX_PICKLE_BYTES)), size).load()
        if meant not in found:
            raise Refused("an archive that two readers take for two")
        return
    # Before 1.6, torch.save wrote five pickles in a row, then the weights: a number, two of versions, the checkpoint
    # and the order of its storages.
    file.seek(0)
    source = Source(file, size)
    magic = _CheckpointUnpickler(source, size).load()
    if magic != torch.serialization.MAGIC_NUMBER:
        raise ValueError(_FOREIGN)
    *_, keys = (_CheckpointUnpickler(source, size).load() for _ in range(4))
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise Refused("storages of unknown form")


def load_torch(path: Path) -> dict[str, Any]:
    """Load a ``torch.save`` file with ``weights_only=True``.

    Raises:
        CheckpointError: The file is missing, empty, damaged, no dict, or holds objects beyond tensors and plain data.
    """
    if not _is_file(path):
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        size = path.stat().st_size
        if size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        with path.open("rb") as file:
            _check_pickles(path, file, size)
            file.seek(0)
            zipped = file.read(4) == _ZIP_MAGIC
        # Mapped rather than read: of WavLM Large's 24 layers only the first 6 are ever touched.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Refused as refused:
        raise CheckpointError(
            f"{path}: refused: it needs {refused}, and only tensors and plain data are loaded"
        ) from None
    except EOFError:
        raise CheckpointError(f"{path}: truncated or damaged") from None
    except pickle.UnpicklingError:  # torch's text advises to load it unsafely
        raise CheckpointError(f"{path}: not a checkpoint of tensors and plain data alone") from None
    except MemoryError:
        raise CheckpointError(f"{path}: refused: it asks for more memory than there is") from None
    except Exception as error:  # torch raises many types on damaged files, and none may become a traceback
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint ({_first_line(error)})") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: expected a dict, found {type(loaded).__name__}")
    return loaded


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__)


def _shown(value: object) -> str:
    """A value from a checkpoint for an error: one short line, whatever it is (some would take years to format)."""
    if isinstance(value, str):
        return f"'{printable(value, 60)}'"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    return repr(value) if value is None or isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def _sizes(tensor: torch.Tensor) -> str:
    return printable(str(tuple(tensor.shape[:16])))


def load_wavlm(path: Path) -> WavLMCheckpoint:
    """Load ``{"cfg": dict, "model": state_dict}``."""
    loaded = load_torch(path)
    cfg, model = loaded.get("cfg"), loaded.get("model")
    if not isinstance(cfg, dict) or not isinstance(model, dict):
        keys = ", ".join(map(_shown, list(loaded)[:8]))
        raise CheckpointError(f"{path}: not a WavLM checkpoint: expected keys cfg and model, found {keys}")
    weights = _weights(path, model)
    read = _Reader(path, cfg)
    config = WavLMConfig(
        conv_layers=parse_conv_layers(path, read.any("conv_feature_layers")),
        extractor_mode=read.choice("extractor_mode", ("layer_norm", "default"), "default"),
        layer_norm_first=read.flag("layer_norm_first", default=False),
        num_layers=read.size("encoder_layers"),
        dim=read.size("encoder_embed_dim"),
        ffn_dim=read.size("encoder_ffn_embed_dim"),
        num_heads=read.size("encoder_attention_heads"),
        conv_pos=read.size("conv_pos", 128),
        conv_pos_groups=read.size("conv_pos_groups", 16),
        relative_positions=read.flag("relative_position_embedding", default=False),
        gated=read.flag("gru_rel_pos", default=False),
        num_buckets=read.size("num_buckets", 320),
        max_distance=read.size("max_distance", 1280),
    )
    read.choice("activation_fn", ("gelu",), "gelu")
    if config.dim % config.num_heads:
        raise CheckpointError(f"{path}: {config.dim} dimensions do not divide into {config.num_heads} heads")
    if config.relative_positions and not 0 < config.num_buckets // 4 < config.max_distance <= 100_000:
        raise CheckpointError(f"{path}: max_distance {config.max_distance} does not fit {config.num_buckets} buckets")
    if config.hop > _MAX_HOP:
        raise CheckpointError(f"{path}: conv_feature_layers take more than {_MAX_HOP} samples a frame")
    return WavLMCheckpoint(config, weights)


def parse_conv_layers(path: Path, text: object) -> tuple[tuple[int, int, int], ...]:
    """Parse ``[(512,10,5)] + [(512,3,2)] * 4`` (or the list itself) without evaluating it."""
    layers: object = text
    if isinstance(text, str):
        try:
            if len(text) > 1000:
                raise ValueError("too long")
            layers = _literal(ast.parse(text.strip(), mode="eval").body)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise CheckpointError(
                f"{path}: conv_feature_layers is not a list of (channels, kernel, stride): {_shown(text)}"
            ) from None
    if not isinstance(layers, (list, tuple)) or not 1 <= len(layers) <= 32:
        raise CheckpointError(f"{path}: conv_feature_layers is not a list of 1 to 32 layers: {_shown(text)}")
    parsed: list[tuple[int, int, int]] = []
    for layer in layers:
        if not (
            isinstance(layer, (list, tuple))
            and len(layer) == 3
            and all(type(n) is int and 0 < n <= _MAX_SIZE for n in layer)
        ):
            raise CheckpointError(f"{path}: conv_feature_layers holds {_shown(layer)}, not (channels, kernel, stride)")
        parsed.append((layer[0], layer[1], layer[2]))
    return tuple(parsed)


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Tuple(elts=items):
            return tuple(_literal(item) for item in items)
        case ast.List(elts=items):
            return [_literal(item) for item in items]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _literal(left), _literal(right)
            if isinstance(first, list) and isinstance(second, list):
                return first + second
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            first, second = _literal(left), _literal(right)
            items, times = (first, second) if isinstance(first, list) else (second, first)
            if isinstance(items, list) and type(times) is int and 0 <= times <= 32 and times * len(items) <= 32:
                return items * times
    raise ValueError("not a list of layers")


def load_voice(path: Path, hifi_config: Path | None = None) -> VoiceCheckpoint:
    """Load a conformer + vocoder checkpoint, or a vocoder alone (``{"generator": state_dict}``, then no conformer).

    ``hifi_config`` is a JSON file with the vocoder's sizes; it goes before what the checkpoint says.
    """
    loaded = load_torch(path)
    given = _read_json(hifi_config) if hifi_config is not None else None
    if "model_state_dict" not in loaded and isinstance(loaded.get("generator"), dict):
        hifigan_weights = _weights(path, loaded["generator"])
        own = loaded.get("hifi_config")
        hifigan = _hifigan_config(path, given or (own if isinstance(own, dict) else HIFIGAN_V1), hifigan_weights)
        none = ConformerConfig(dim=hifigan.input_dim, num_heads=1, ffn_dim=0, num_layers=0, kernel_size=1)
        return VoiceCheckpoint(none, {}, hifigan, hifigan_weights)

    extra, state = loaded.get("extra"), loaded.get("model_state_dict")
    model_config = extra.get("model_config") if isinstance(extra, dict) else None
    if not isinstance(model_config, dict) or not isinstance(state, dict):
        keys = ", ".join(map(_shown, list(loaded)[:8]))
        raise CheckpointError(
            f"{path}: not a conformer checkpoint: expected keys extra.model_config and model_state_dict, found {keys}"
        )
    weights = _weights(path, state)
    conformer_weights = _under(weights, "conformer.conformer_layers.")
    hifigan_weights = _under(weights, "hifi.model.")
    if not hifigan_weights:
        raise CheckpointError(f"{path}: holds no vocoder: no key starts with hifi.model.")
    read = _Reader(path, model_config)
    conformer = ConformerConfig(
        dim=read.size("feature_dim", 1024),
        num_heads=read.size("conformer_num_heads", 16),
        ffn_dim=read.size("ffn_dim", 4096),
        num_layers=read.size("conformer_num_layers", 12),
        kernel_size=read.size("kernel_size", 3),
    )
    if conformer.dim % conformer.num_heads:
        raise CheckpointError(f"{path}: {conformer.dim} dimensions do not divide into {conformer.num_heads} heads")
    if conformer.kernel_size % 2 == 0:
        raise CheckpointError(f"{path}: kernel_size {conformer.kernel_size} is even; a conformer's is odd")
    indices = [key.split(".")[0] for key in conformer_weights]
    found = 1 + max((int(index) for index in indices if index.isdecimal() and len(index) < 8), default=-1)
    if found != conformer.num_layers:
        raise CheckpointError(
            f"{path}: model_config says {conformer.num_layers} conformer layers, the weights have {found}"
        )
    own = model_config.get("hifi_config")
    if given is None and isinstance(own, str):
        # A path on the machine where it was trained. Only a plain JSON file is ever read from it.
        candidates = [Path(own), path.parent / own, path.parent / Path(own).name]
        existing = next((candidate for candidate in candidates if _is_file(candidate)), None)
        own = _read_json(existing) if existing else None
    source = given or (own if isinstance(own, dict) else HIFIGAN_V1)
    hifigan = _hifigan_config(path, source, hifigan_weights)
    if hifigan.input_dim != conformer.dim:
        raise CheckpointError(
            f"{path}: the vocoder takes {hifigan.input_dim} dimensions, the conformer gives {conformer.dim}"
        )
    return VoiceCheckpoint(conformer, conformer_weights, hifigan, hifigan_weights)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _read_json(path: Path) -> dict[str, Any]:
    if not _is_file(path):
        raise CheckpointError(f"{path}: no such configuration file")
    try:
        if path.stat().st_size > 1 << 20:
            raise ValueError("larger than 1 MB")
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable JSON configuration ({_first_line(error)})") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(loaded).__name__}")
    return loaded


def _hifigan_config(path: Path, source: Mapping[str, Any], weights: Weights) -> HifiGanConfig:
    """Read the vocoder's sizes and check them against its weights' shapes."""
    read = _Reader(path, dict(source))
    lin_pre = weights.get("lin_pre.weight")
    if lin_pre is None or lin_pre.ndim != 2:
        raise CheckpointError(f"{path}: the vocoder has no lin_pre.weight of two dimensions")
    config = HifiGanConfig(
        resblock=read.choice("resblock", ("1", "2"), "1"),
        upsample_rates=read.sizes("upsample_rates"),
        upsample_kernel_sizes=read.sizes("upsample_kernel_sizes"),
        upsample_initial_channel=read.size("upsample_initial_channel"),
        resblock_kernel_sizes=read.sizes("resblock_kernel_sizes"),
        resblock_dilation_sizes=read.nested_sizes("resblock_dilation_sizes"),
        input_dim=read.size("hubert_dim", lin_pre.shape[1]),
        hidden_dim=read.size("hifi_dim", lin_pre.shape[0]),
        sample_rate=read.size("sampling_rate", 16000),
    )
    if len(config.upsample_rates) != len(config.upsample_kernel_sizes):
        raise CheckpointError(f"{path}: upsample_rates and upsample_kernel_sizes differ in length")
    if len(config.resblock_kernel_sizes) != len(config.resblock_dilation_sizes):
        raise CheckpointError(f"{path}: resblock_kernel_sizes and resblock_dilation_sizes differ in length")
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        if kernel < rate:
            raise CheckpointError(f"{path}: upsampling kernel {kernel} is shorter than its rate {rate}")
    for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
        if max(dilations) > _MAX_DILATION:
            raise CheckpointError(f"{path}: a residual dilation is {max(dilations)}, more than {_MAX_DILATION}")
        if any((kernel - 1) * dilation % 2 for dilation in (*dilations, 1 if config.resblock == "1" else 2)):
            raise CheckpointError(f"{path}: residual kernel {kernel} with dilations {dilations} changes the length")
    if config.hop > _MAX_HOP:
        raise CheckpointError(f"{path}: upsample_rates make more than {_MAX_HOP} samples a frame")
    if config.upsample_initial_channel >> len(config.upsample_rates) < 1:
        raise CheckpointError(
            f"{path}: {config.upsample_initial_channel} channels cannot be halved for every upsampling"
        )
    return config


class _Reader:
    """Reads typed values out of a configuration dict that may hold anything."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config

    def any(self, key: str, default: object = None) -> Any:
        value = self.config.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path}: the configuration lacks {key}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        return self._positive(key, self.any(key, default))

    def sizes(self, key: str) -> tuple[int, ...]:
        return self._list(key, self.any(key))

    def nested_sizes(self, key: str) -> tuple[tuple[int, ...], ...]:
        value = self.any(key)
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 64:
            raise CheckpointError(f"{self.path}: {key} is not a list of lists: {_shown(value)}")
        return tuple(self._list(key, item) for item in value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.any(key, default)
        if not isinstance(value, int) or value not in (0, 1):
            raise CheckpointError(f"{self.path}: {key} is {_shown(value)}, not true or false")
        return bool(value)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self.any(key, default)
        text = value if isinstance(value, str) else _shown(value)  # resblock may be 1 or "1"
        if text not in choices:
            raise CheckpointError(f"{self.path}: {key} is {_shown(value)}, not one of {', '.join(choices)}")
        return text

    def _list(self, key: str, value: object) -> tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 64:
            raise CheckpointError(f"{self.path}: {key} is not a list of sizes: {_shown(value)}")
        return tuple(self._positive(key, item) for item in value)

    def _positive(self, key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIZE:
            raise CheckpointError(f"{self.path}: {key} is {_shown(value)}, not a positive size")
        return value


def _weights(path: Path, state: dict[Any, Any]) -> Weights:
    """Keep the tensors of a state dict, without the ``module.`` that data-parallel training puts before every key."""
    weights: Weights = {}
    storages: dict[int, int] = {}
    for key, value in state.items():
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            weights[key] = value
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    if not weights:
        raise CheckpointError(f"{path}: the state dict holds no tensors")
    # A tensor may repeat its data without end, and two may share it (a few do); made whole they must fit in memory.
    if sum(value.numel() * value.element_size() for value in weights.values()) > 4 * sum(storages.values()):
        raise CheckpointError(f"{path}: the weights are many times as large as their data")
    for _ in range(4):
        if all(key.startswith("module.") for key in weights):
            weights = _under(weights, "module.")
    return weights


def _under(weights: Weights, prefix: str) -> Weights:
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


class WeightReader:
    """Takes named weights out of a state dict as float32, checking shapes, with weight norm folded."""

    def __init__(self, path: Path, weights: Weights) -> None:
        self.path = path
        self.weights = weights

    def has(self, name: str) -> bool:
        """Whether a weight of this name is there, plain or weight-normed."""
        return any(name + suffix in self.weights for suffix in ("", "_g")) or self._parametrized(name) in self.weights

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The weight as a float32 tensor of this shape.

        Raises:
            CheckpointError: It is missing, of another shape, or not finite.
        """
        parametrized = self._parametrized(name)
        if name in self.weights:
            value = self._plain(name)
        elif name + "_g" in self.weights and name + "_v" in self.weights:
            value = self._folded(name + "_g", name + "_v", shape)
        elif parametrized in self.weights and parametrized[:-1] + "1" in self.weights:
            value = self._folded(parametrized, parametrized[:-1] + "1", shape)
        else:
            raise CheckpointError(f"{self.path}: lacks the weight {name}")
        if tuple(value.shape) != shape:
            raise CheckpointError(f"{self.path}: {name} has shape {_sizes(value)}, expected {shape}")
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{self.path}: {name} holds values that are not finite")
        return value

    def take_or_zeros(self, name: str, *shape: int) -> torch.Tensor:
        """The weight, or zeros where a layer was trained without this bias."""
        return self.take(name, *shape) if self.has(name) else torch.zeros(shape)

    @staticmethod
    def _parametrized(name: str) -> str:
        head, _, tail = name.rpartition(".")
        return f"{head}.parametrizations.{tail}.original0"

    def _plain(self, name: str) -> torch.Tensor:
        value = self.weights[name].detach()
        if value.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise CheckpointError(f"{self.path}: {name} is of {value.dtype}, not of floats")
        return value.to(torch.float32, copy=True).contiguous()

    def _folded(self, gain_name: str, direction_name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """``g * v / ‖v‖``; the norm runs over every axis along which g has size 1 (Salimans and Kingma 2016)."""
        gain, direction = self._plain(gain_name), self._plain(direction_name)
        if tuple(direction.shape) != shape:
            return direction  # of the wrong shape: the caller says so
        axes = [axis for axis, size in enumerate(gain.shape) if size == 1]
        if tuple(gain.shape) != tuple(1 if axis in axes else size for axis, size in enumerate(shape)) or not axes:
            raise CheckpointError(
                f"{self.path}: {gain_name} has shape {_sizes(gain)}, which is no norm of {tuple(direction.shape)}"
            )
        norm: torch.Tensor = torch.linalg.vector_norm(direction.double(), dim=axes, keepdim=True)
        folded: torch.Tensor = (gain.double() * direction.double() / norm).float()
        return folded
