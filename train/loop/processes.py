"""Several processes that train one network together, each on its own GPU, as ``torchrun`` starts them.

PyTorch's own ``DistributedDataParallel`` is all that this needs. Accelerate and Lightning Fabric wrap the same, bring
dependencies and options for what is not used here, and hide in which order random numbers are drawn, on which an exact
resume depends.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn

from mkc_fast.engine.devices import cuda_index
from mkc_fast.errors import ArgumentError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: Its number; 0 writes the files.
        count: How many there are.
        device: Of this one.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether it writes the files."""
        return self.rank == 0

    def wrapped(self, module: nn.Module) -> nn.Module:
        """A module whose backward pass averages gradients over the processes."""
        if self.count == 1:
            return module
        # Without device_ids it leaves the inputs where they are: lengths belong on the CPU.
        return nn.parallel.DistributedDataParallel(module)

    def equalize(self, module: nn.Module) -> None:
        """Give all processes the first one's running statistics, as a step of training does."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def average_gradients(self, module: nn.Module) -> None:
        """Give all processes the mean of their gradients."""
        if self.count > 1:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.count

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the processes."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def shared(self, text: str) -> str:
        """What the first process says."""
        if self.count == 1:
            return text
        said = [text]
        distributed.broadcast_object_list(said, src=0)
        return said[0]


def own_device(device: str) -> str:
    """The device of this process: with several on GPUs, that of its local number, else what was given."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and cuda_index(device) is not None:
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    return device


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started with this one; without it, there is one.

    Args:
        device: ``cpu`` or ``cuda:<number>``. With several processes each takes the GPU of its local number, and
            ``cuda:0`` says that they use GPUs.

    Raises:
        ArgumentError: The device has another form.
        DeviceError: It is not here.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    index = cuda_index(own_device(device))
    if index is not None:
        if index >= torch.cuda.device_count():
            raise DeviceError(
                f"device cuda:{index}: PyTorch sees {torch.cuda.device_count()} CUDA devices; its build must be one "
                "for CUDA"
            )
        torch.cuda.set_device(index)
    used = torch.device("cpu") if index is None else torch.device("cuda", index)
    if count == 1:
        yield Processes(0, 1, used)
        return
    try:
        distributed.init_process_group("gloo" if index is None else "nccl")
    except (ValueError, RuntimeError) as error:
        raise ArgumentError(f"WORLD_SIZE is {count}, but the processes cannot be joined ({error})") from None
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), used)
    finally:
        distributed.destroy_process_group()
