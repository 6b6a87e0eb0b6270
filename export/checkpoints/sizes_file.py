"""Reads the conformer's sizes from a YAML file, which goes with a checkpoint that is a bare state dict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mkc_fast.errors import CheckpointError
from mkc_fast.export.checkpoints.configs import CONFORMER_PUBLISHED, shown
from mkc_fast.export.checkpoints.torch_files import first_line, is_file
from mkc_fast.extras import required

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 1 << 16  # a training's whole configuration has 2 kB
_INTEGER = "tag:yaml.org,2002:int"


def read_sizes(path: Path) -> dict[str, int]:
    """The sizes that a YAML file gives, under the names of ``CONFORMER_PUBLISHED``; other entries are not looked at.

    The file is parsed but no object of its kinds is made, so that neither a tag nor an alias in it has an effect.

    Raises:
        CheckpointError: The file is missing, larger than 64 kB or not YAML, or a size is not a whole number.
        MkcError: PyYAML, which comes with the extra ``export``, is not installed.
    """
    if not is_file(path):
        raise CheckpointError(f"{path}: no such file of sizes")
    with required("reading a YAML file", "yaml"):
        import yaml
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("larger than 64 kB")
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: not a readable YAML file ({first_line(error)})") from None
    if not isinstance(root, yaml.MappingNode):
        raise CheckpointError(f"{path}: holds no sizes, as in 'ffn_dim: 2048'")
    return {
        key.value: _integer(path, key.value, node)
        for key, node in root.value
        if isinstance(key, yaml.ScalarNode) and key.value in CONFORMER_PUBLISHED
    }


def _integer(path: Path, name: str, node: Any) -> int:
    try:
        if node.tag != _INTEGER or len(node.value) > 20:
            raise ValueError
        return int(node.value.replace("_", ""))
    except ValueError:
        said = shown(node.value) if isinstance(node.value, str) else "a list"
        raise CheckpointError(f"{path}: {name} is {said}, not a size") from None
