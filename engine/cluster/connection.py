"""A Ray cluster that runs are spread over: connects to it, or starts one here, and shares its devices out."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mkc_fast.engine.cluster.actors import Actors, Share
from mkc_fast.engine.cluster.ray_module import asking_no_cloud, forget_token, load_ray, set_variables
from mkc_fast.engine.corpus.protocol import AHEAD_ON_GPU
from mkc_fast.engine.options import default_batch_s
from mkc_fast.errors import ArgumentError, DeviceError, MkcError
from mkc_fast.names import CPU
from mkc_fast.text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from mkc_fast.engine.corpus.protocol import WorkerConfig
    from mkc_fast.engine.options import EngineOptions

LOCAL = "local"
_ADDRESS = re.compile(r"local|auto|ray://[^\s/]+|[^\s/:]+:\d{1,5}")
# Cores that an actor with a GPU asks for: it decodes and writes beside the device.
_CORES_BESIDE_GPU = 2
# Rows are paths, so hardly anything is kept in Ray's object store: the least that Ray admits.
_OBJECT_STORE_BYTES = 80 << 20
_CUDA = "cuda:0"  # Ray shows each actor its own GPU alone
# What a cluster of this machine asks of who connects; Ray would keep one for all its clusters in the home folder.
_TOKEN = secrets.token_hex(32)
_TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105 - its name
_TOKEN_PLACES = (_TOKEN_VARIABLE, "RAY_AUTH_TOKEN_PATH")
# Set by Ray where it finds a token; left behind, it would ask the next cluster of this process for one.
_TOKEN_MODE = "RAY_AUTH_MODE"  # noqa: S105 - its name


class RayCluster:
    """A Ray cluster, connected to while it is used as a context; a ``Cluster`` of ``anonymize_corpus``.

    With the address ``local`` a cluster of this machine alone is started: without a dashboard, with a token that this
    process alone has, in a folder that only this user can read and that is removed at the end. Ray's usage statistics
    are off in what is started here.
    """

    def __init__(
        self, address: str = "auto", *, num_cpus: int | None = None, object_store_bytes: int = _OBJECT_STORE_BYTES
    ) -> None:
        """Prepare to connect.

        Args:
            address: ``local``, ``auto`` (the cluster of this job: ``RAY_ADDRESS``, or one started on this machine),
                ``host:port``, or ``ray://host:port``.
            num_cpus: Cores that a ``local`` cluster shares out. Default: all.
            object_store_bytes: Memory of a ``local`` cluster for Ray's objects. A run needs hardly any, and a pipeline
                of Ray Data keeps its rows there.

        Raises:
            ArgumentError: The address is none of these.
            MkcError: Ray is not installed.
        """
        if not _ADDRESS.fullmatch(address):
            raise ArgumentError(f"Ray address {address[:60]!r}: expected local, auto, host:port or ray://host:port")
        self.address = address
        self._num_cpus = num_cpus
        self._object_store_bytes = object_store_bytes
        self._ray = load_ray()
        self._folder: str | None = None
        self._share = Share(1)
        self._environment: dict[str, str | None] = {}
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> RayCluster:  # noqa: PYI034 - Self is in Python 3.11
        """Connect.

        Raises:
            DeviceError: There is no such cluster, or it does not answer.
        """
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address == LOCAL:
            # Ray's sessions have logs and sockets, which other users could read in its own folder. Paths of sockets
            # may have 107 characters, so this one is short.
            self._folder = tempfile.mkdtemp(prefix="mkc-ray-", dir="/tmp")
            options |= {"include_dashboard": False, "_temp_dir": self._folder, "num_cpus": self._num_cpus}
            options["object_store_memory"] = self._object_store_bytes
            self._before = {name: os.environ.get(name) for name in (_TOKEN_VARIABLE, _TOKEN_MODE)}
            if not any(name in os.environ for name in _TOKEN_PLACES):
                os.environ[_TOKEN_VARIABLE] = _TOKEN
        forget_token()
        try:
            with ExitStack() as stack:
                if self.address == LOCAL:
                    self._environment = stack.enter_context(asking_no_cloud())
                self._ray.init(self.address, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            self._remove_folder()
            raise DeviceError(f"Ray at {self.address}: no cluster answers ({one_line(str(error), 200)})") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect; a cluster that was started here ends."""
        self._ray.shutdown()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            set_variables(self._before)

    @property
    def pool(self) -> Actors:
        """Where workers run: as actors, each with its share."""
        return Actors(self._ray, self._share, self._environment)

    def devices(self, asked: Sequence[str] | None) -> list[str]:
        """GPUs if the cluster has any, else CPUs; of what is asked for, only ``cpu`` is a choice."""
        if asked is not None and list(asked) != [CPU]:
            raise ArgumentError("on a cluster, each worker gets a device: give cpu, or leave the devices out")
        return [_CUDA] if asked is None and self._ray.cluster_resources().get("GPU", 0) >= 1 else [CPU]

    def batch_s(self, devices: Sequence[str], options: EngineOptions) -> float:
        """As given, else the default of the device."""
        return default_batch_s(devices[0]) if options.batch_s is None else options.batch_s

    def configs(self, config: WorkerConfig, devices: Sequence[str], num_proc: int | None) -> list[WorkerConfig]:
        """A worker for each GPU, or for each machine without GPUs; or so many, each with its share of the cores.

        On a cluster without a core yet, workers of a given number ask for one core each.

        Raises:
            MkcError: The cluster has no core.
        """
        (device,) = devices
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
        if not cores:
            if num_proc is None or device != CPU:
                raise MkcError(f"Ray at {self.address}: the cluster has no core to compute on")
            cores = [1] * num_proc  # it starts machines once workers ask for them
        if device == CPU:
            count = num_proc or len(cores)
            per_core = max(1, sum(cores) // count)
            self._share = Share(min(per_core, *cores))
            options = replace(config.options, threads=self._share.cpus)
            made = replace(config, device=CPU, options=options, host_threads=1, blas_threads=self._share.cpus)
            return [made] * count
        count = num_proc or int(sum(node.get("GPU", 0) for node in nodes))
        beside = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
        self._share = Share(max(0, min([_CORES_BESIDE_GPU, *beside])), 1)
        options = replace(config.options, threads=None)
        threads = max(2, min([*beside, 8]))
        made = replace(config, device=device, options=options, host_threads=threads, ahead=AHEAD_ON_GPU)
        return [made] * count
