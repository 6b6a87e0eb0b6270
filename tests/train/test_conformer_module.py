"""The conformer and its loss are what their definitions say, in values and in gradients."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mkc_fast.export.checkpoints.configs import ConformerConfig
from mkc_fast.export.checkpoints.published import VoiceCheckpoint
from mkc_fast.export.checkpoints.weights import under
from mkc_fast.export.networks.conformer import Conformer as ExportedConformer
from mkc_fast.train.conformer.loss import restoration_losses
from mkc_fast.train.conformer.module import Conformer

CONFIG = ConformerConfig(dim=16, num_heads=4, ffn_dim=24, num_layers=2, kernel_size=3)
LENGTHS = torch.tensor([9, 14, 5])


def plain_layer(weights: dict[str, torch.Tensor], x: torch.Tensor, valid: list[int]) -> list[torch.Tensor]:
    """A conformer layer in training, without dropout, written out: utterances (T, D), BatchNorm over all of them."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (CONFIG.dim,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def feed_forward(name: str, x: torch.Tensor) -> torch.Tensor:
        inner = norm(f"{name}.0", x) @ weights[f"{name}.1.weight"].T + weights[f"{name}.1.bias"]
        return (inner * torch.sigmoid(inner)) @ weights[f"{name}.4.weight"].T + weights[f"{name}.4.bias"]

    def attention(x: torch.Tensor) -> torch.Tensor:
        head = CONFIG.dim // CONFIG.num_heads
        query, key, value = (x @ weights["self_attn.in_proj_weight"].T + weights["self_attn.in_proj_bias"]).chunk(3, 1)
        mixed = []
        for number in range(CONFIG.num_heads):
            part = slice(number * head, (number + 1) * head)
            scores = query[:, part] @ key[:, part].T / math.sqrt(head)
            mixed.append(torch.softmax(scores, 1) @ value[:, part])
        return torch.cat(mixed, 1) @ weights["self_attn.out_proj.weight"].T + weights["self_attn.out_proj.bias"]

    conv = "conv_module.sequential"
    before, depthwise = [], []
    for utterance, frames in zip(x, valid, strict=True):
        y = utterance[:frames]
        y = y + feed_forward("ffn1.sequential", y) / 2
        y = y + attention(norm("self_attn_layer_norm", y))
        before.append(y)
        y = norm("conv_module.layer_norm", y) @ weights[f"{conv}.0.weight"][:, :, 0].T + weights[f"{conv}.0.bias"]
        y = y[:, : CONFIG.dim] * torch.sigmoid(y[:, CONFIG.dim :])
        padded = F.pad(y, (0, 0, 1, 1))
        kernel = weights[f"{conv}.2.weight"][:, 0]
        depthwise.append(sum(padded[k : k + frames] * kernel[:, k] for k in range(3)) + weights[f"{conv}.2.bias"])
    every = torch.cat(depthwise)
    mean, variance = every.mean(0), every.var(0, unbiased=False)
    outputs = []
    for residual, inside in zip(before, depthwise, strict=True):
        z = (inside - mean) / torch.sqrt(variance + 1e-5) * weights[f"{conv}.3.weight"] + weights[f"{conv}.3.bias"]
        z = z * torch.sigmoid(z)
        y = residual + z @ weights[f"{conv}.5.weight"][:, :, 0].T + weights[f"{conv}.5.bias"]
        y = y + feed_forward("ffn2.sequential", y) / 2
        outputs.append(norm("final_layer_norm", y))
    return outputs


def perturbed(module: nn.Module) -> nn.Module:
    """With every parameter and statistic off its initial value, so that none can be left out unnoticed."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor) if "running_var" in name else 0.2 * torch.randn_like(tensor))
    return module


def test_values_and_gradients_of_the_module_are_those_of_the_plain_definition() -> None:
    torch.manual_seed(1)
    module = perturbed(Conformer(CONFIG, dropout=0.0)).double().train()
    x = torch.randn(3, 14, CONFIG.dim, dtype=torch.float64)
    toward = torch.randn_like(x)
    ours = module(x, LENGTHS)
    sum((ours[i, :n] * toward[i, :n]).sum() for i, n in enumerate(LENGTHS)).backward()
    weights = {name: value.detach().requires_grad_() for name, value in module.named_parameters()}
    plain = list(x)
    for number in range(CONFIG.num_layers):
        plain = plain_layer(under(weights, f"conformer_layers.{number}."), plain, LENGTHS.tolist())
    sum((y * toward[i, : len(y)]).sum() for i, y in enumerate(plain)).backward()
    for i, y in enumerate(plain):
        torch.testing.assert_close(ours[i, : len(y)], y, rtol=1e-9, atol=1e-9)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-8, atol=1e-9, msg=name)


def test_the_trained_module_is_the_exported_one(tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = perturbed(Conformer(CONFIG)).eval()
    exported = ExportedConformer(
        tmp_path, VoiceCheckpoint(CONFIG, under(module.state_dict(), "conformer_layers."), None, {})
    )
    x = torch.randn(3, 14, CONFIG.dim)
    with torch.no_grad():
        ours, theirs = module(x, LENGTHS), exported(x, LENGTHS)
    for i, frames in enumerate(LENGTHS):
        torch.testing.assert_close(ours[i, :frames], theirs[i, :frames], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module(x[i : i + 1, :frames], LENGTHS[i : i + 1])[0], ours[i, :frames])


def plain_ssim(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """SSIM of two maps (T, D) as Wang et al. define it, place by place, with zeros past the edges."""
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    rows = []
    for t in range(one.shape[0]):
        row = []
        for d in range(one.shape[1]):
            a, b = (F.pad(x, (5, 5, 5, 5))[t : t + 11, d : d + 11] for x in (one, other))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
            both = (window * a * b).sum() - mean_a * mean_b
            row.append(
                (2 * mean_a * mean_b + 0.01**2)
                * (2 * both + 0.03**2)
                / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))
            )
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_values_and_gradients_of_the_loss_are_those_of_the_plain_definition() -> None:
    torch.manual_seed(3)
    original = torch.randn(2, 13, 12, dtype=torch.float64)
    restored = (original + torch.randn_like(original)).requires_grad_()
    lengths = torch.tensor([7, 13])
    losses = restoration_losses(restored, original, lengths)
    (gradient,) = torch.autograd.grad(losses.total, restored)
    plain = torch.zeros((), dtype=torch.float64)
    for i, frames in enumerate(lengths):
        a, b = restored[i, :frames], original[i, :frames]
        plain = plain + ((a - b) ** 2).mean(1).sum() + (1 - plain_ssim(a, b)).mean(1).sum()
    (expected,) = torch.autograd.grad(plain, restored)
    torch.testing.assert_close(losses.total, plain)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-10)
    assert not gradient[0, 7:].any()


def test_the_loss_falls_as_maps_grow_alike() -> None:
    torch.manual_seed(4)
    original, noise = torch.randn(1, 20, 16), torch.randn(1, 20, 16)
    lengths = torch.tensor([20])
    unlike = [float(restoration_losses(original + s * noise, original, lengths).unlike) for s in (0, 0.1, 0.5, 2)]
    assert unlike == sorted(unlike)
    assert unlike[0] == pytest.approx(0, abs=1e-4)


def test_large_values_leave_the_loss_finite_and_bounded() -> None:
    torch.manual_seed(5)
    original = 300 + torch.randn(1, 30, 16)
    losses = restoration_losses(original + 0.01 * torch.randn_like(original), original, torch.tensor([30]))
    assert 0 <= float(losses.unlike) <= 2 * 30
