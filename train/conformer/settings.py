"""How a conformer is trained."""

from __future__ import annotations

from dataclasses import dataclass

from mkc_fast.engine.draws import check_draw
from mkc_fast.errors import ArgumentError
from mkc_fast.names import AUDIO


@dataclass(frozen=True)
class ConformerSettings:
    """Sizes of the conformer, and of its training.

    The sizes, the dropout, the share of masked frames and the loss are as published. Nothing is published of the rest.

    Attributes:
        num_layers: Of the conformer.
        num_heads: Of its attention; divides D.
        ffn_dim: Inside its feed-forward modules.
        kernel_size: Of its depthwise convolution; odd.
        dropout: Of all its dropouts.
        mode: How bank entries are drawn: ``audio``: one for an utterance; ``frame``: one every ``stride`` frames.
        stride: Frames.
        masked: Share of the frames of each utterance that are replaced by zeros before they are quantized.
        batch_frames: The most frames of a batch, with padding.
        max_frames: Of longer utterances, another part of so many frames is taken each epoch.
        accumulate: Batches of each process whose gradients make one step.
        learning_rate: Of AdamW, after the warm-up.
        warmup: Steps over which the learning rate grows from 0.
        decay: Last steps over which it falls to 0.
        weight_decay: Of AdamW, for matrices.
        clip: Norm of all gradients together that is not exceeded.
        bf16: Compute in bfloat16 what autocast takes for safe; weights stay float32.
        valid_every: Steps between two looks at the held-out speakers.
        patience: So many looks without a lower loss end the training; 0: none do.
        save_every: Steps after which the state is saved.
    """

    num_layers: int = 12
    num_heads: int = 16
    ffn_dim: int = 4096
    kernel_size: int = 3
    dropout: float = 0.1
    mode: str = AUDIO
    stride: int = 1
    masked: float = 0.1
    batch_frames: int = 8000
    max_frames: int = 500
    accumulate: int = 1
    learning_rate: float = 2e-4
    warmup: int = 2000
    decay: int = 0
    weight_decay: float = 0.01
    clip: float = 1.0
    bf16: bool = False
    valid_every: int = 1000
    patience: int = 10
    save_every: int = 500

    def __post_init__(self) -> None:
        whole = ("num_layers", "num_heads", "ffn_dim", "kernel_size", "accumulate", "valid_every", "save_every")
        for name in whole:
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("warmup", "decay", "patience"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.max_frames < 2 or self.batch_frames < self.max_frames:
            raise ArgumentError(
                f"max_frames is {self.max_frames}, batch_frames {self.batch_frames}; expected at least 2, and no more "
                "in an utterance than in a batch"
            )
        if self.kernel_size % 2 == 0:
            raise ArgumentError(f"kernel_size is {self.kernel_size}; expected an odd number")
        for name in ("dropout", "masked"):
            if not 0 <= getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected a share from 0 to below 1")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ArgumentError(f"{name} is {getattr(self, name)}; expected more than 0")
        if not 0 <= self.weight_decay < float("inf"):
            raise ArgumentError(f"weight_decay is {self.weight_decay}; expected 0 or more")
        check_draw(self.mode, self.stride)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 1, of so many."""
        grown = min(1.0, step / self.warmup) if self.warmup else 1.0
        left = min(1.0, (steps - step + 1) / self.decay) if self.decay else 1.0
        return self.learning_rate * grown * left
