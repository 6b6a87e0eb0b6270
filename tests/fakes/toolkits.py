"""Checkouts that have the interface of the VoicePrivacy toolkits, and a command that records how it was called."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

# What a toolkit's run_anonymization.py does, as far as a pipeline notices: the options, the variable for the devices,
# the config's references and paths, the sets, and the call.
RUNNER = """\
import argparse
import os
from pathlib import Path

import yaml

parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--gpu_ids", default="0")
parser.add_argument("--force_compute", default=False, type=bool)
parser.add_argument("--cpu", action="store_true", help="of this imitation: there is no GPU")
args = parser.parse_args()
if "CUDA_VISIBLE_DEVICES" in os.environ:
    ids = [str(place) for place, _ in enumerate(os.environ["CUDA_VISIBLE_DEVICES"].split(","))]
else:
    ids = args.gpu_ids.split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = args.gpu_ids


class Device:
    def __init__(self, kind, index=None):
        self.type, self.index = kind, index

    def __str__(self):
        return self.type if self.index is None else "%s:%d" % (self.type, self.index)


class Loader(yaml.SafeLoader):
    pass


def paths(tree):
    for key, value in tree.items():
        if isinstance(value, dict):
            paths(value)
        elif any(end in key for end in ("_dir", "_file", "_path", "_folder")) and value is not None:
            tree[key] = Path(value)


Loader.add_constructor("!ref", lambda loader, node: "ref:" + loader.construct_scalar(node))
config = yaml.load(Path(args.config).read_text(), Loader)
for tree in (config, config["modules"]):
    for key, value in tree.items():
        if isinstance(value, str) and value.startswith("ref:<"):
            tree[key] = config[value[5:-1]]
paths(config)

datasets = {}
for group in config["datasets"]:
    ends = [end for kind in ("trials", "enrolls") for end in group.get(kind, [])] or [""]
    for end in ends:
        datasets[group["data"] + end] = Path(config["data_dir"], group["data"] + end)

try:
    import mkc_fast
except ImportError:
    pass
else:
    raise SystemExit("the environment of the imitation holds mkc_fast")
assert config["pipeline"] == "template"
from anonymization.pipelines.template import TemplatePipeline as Pipeline

devices = [Device("cpu")] if args.cpu else [Device("cuda", int(index)) for index in ids]
Pipeline(config=config, force_compute=args.force_compute, devices=devices).run_anonymization_pipeline(datasets)
"""

COMMAND = """\
#!{python}
import json, os, sys
call = {{"arguments": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ)}}
with open({calls!r}, "a") as file:
    file.write(json.dumps(call) + "\\n")
print("progress", file=sys.stderr)
sys.exit(int(os.environ.get("FAKE_EXIT", 0)))
"""


def make_checkout(root: Path, *tracks: str) -> Path:
    """A checkout of 2026 with these tracks (``track1``, ``track2``), or of 2024 without any."""
    for folder in ("anonymization/pipelines/mcadams", "utils", "configs", *(f"configs/{track}" for track in tracks)):
        (root / folder).mkdir(parents=True)
    (root / "run_anonymization.py").write_text(RUNNER)
    (root / "anonymization/pipelines/__init__.py").touch()
    (root / "anonymization/pipelines/mcadams/__init__.py").write_text("class McAdamsPipeline: ...\n")
    for folder in tracks or (".",):
        (root / "configs" / folder / "eval_pre.yaml").write_text("eval: true\n")
    return root


def make_example(root: Path) -> None:
    """The example that 2024 has in the pipeline's place."""
    folder = root / "anonymization/pipelines/template"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .template_pipeline import TemplatePipeline\n")
    (folder / "template_pipeline.py").write_text("from ...modules.template.anonymise_dir import process_data\n")


def make_command(folder: Path) -> Path:
    """A command that records its calls in ``calls.jsonl`` beside it."""
    folder.mkdir(parents=True)
    path = folder / "mkc-fast"
    path.write_text(COMMAND.format(python=sys.executable, calls=str(folder / "calls.jsonl")))
    path.chmod(0o755)
    return path


def calls(command: Path) -> list[dict[str, object]]:
    """What a command of ``make_command`` was called with so far."""
    path = command.with_name("calls.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_toolkit(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the imitation in its checkout, in an environment that holds PyYAML and not mkc_fast."""
    packages = root.parent / "packages"
    if not packages.exists():
        shutil.copytree(Path(str(yaml.__file__)).parent, packages / "yaml")
    own = {key: value for key, value in os.environ.items() if not key.startswith(("CUDA", "PYTHON", "FAKE"))}
    own |= {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "", **environment}
    return subprocess.run(
        [sys.executable, "-S", "run_anonymization.py", *arguments],
        cwd=root, env=own, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def tree(root: Path) -> dict[str, str]:
    """All files and folders of a tree, each file with its digest; without what Python caches outside the pipeline."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
    }
