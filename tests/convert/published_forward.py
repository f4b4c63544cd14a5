"""The arithmetic of the published ADM denoiser, written from its paper, on weights under their own names.

It knows nothing of diffusers or of the package, and is itself held against outputs of the published
implementation (the goldens `adm_unet_*`): what it says of an upsampler, of which there is no golden of
theirs, is derived independently of the conversion. Dhariwal and Nichol (arXiv:2105.05233), section 3 and
appendix C; scale-shift normalisation and the legacy order of attention as released.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _convolved(w: Weights, name: str, x: Tensor) -> Tensor:
    kernel = w[f"{name}.weight"]
    return functional.conv2d(x, kernel, w[f"{name}.bias"], padding=kernel.shape[-1] // 2)


def _normed(w: Weights, name: str, x: Tensor) -> Tensor:
    return functional.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def _resampled(x: Tensor, way: str) -> Tensor:
    if way == "down":
        return functional.avg_pool2d(x, 2)
    return functional.interpolate(x, scale_factor=2, mode="nearest") if way == "up" else x


def _residual(w: Weights, name: str, x: Tensor, embedding: Tensor, way: str = "") -> Tensor:
    """Normalise, activate, resample, convolve; scale and shift by the embedding; add the input."""
    hidden = _resampled(functional.silu(_normed(w, f"{name}.in_layers.0", x)), way)
    hidden = _convolved(w, f"{name}.in_layers.2", hidden)
    told = _linear(w, f"{name}.emb_layers.1", functional.silu(embedding))[..., None, None]
    scale, shift = told.chunk(2, dim=1)
    hidden = _normed(w, f"{name}.out_layers.0", hidden) * (1 + scale) + shift
    hidden = _convolved(w, f"{name}.out_layers.3", functional.silu(hidden))
    x = _resampled(x, way)
    if f"{name}.skip_connection.weight" in w:
        x = _convolved(w, f"{name}.skip_connection", x)
    return x + hidden


def _attention(w: Weights, name: str, x: Tensor, heads: int, new_order: bool) -> Tensor:
    """Softmax attention over positions; legacy order: queries, keys and values head by head."""
    flat = x.flatten(2)
    qkv = functional.conv1d(_normed(w, f"{name}.norm", flat), w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"])
    if new_order:
        queries, keys, values = (part.unflatten(1, (heads, -1)) for part in qkv.chunk(3, dim=1))
    else:
        queries, keys, values = qkv.unflatten(1, (heads, -1)).chunk(3, dim=2)
    agreement = torch.einsum("bhcq,bhck->bhqk", queries, keys) / math.sqrt(queries.shape[2])
    out = torch.einsum("bhqk,bhck->bhcq", agreement.softmax(-1), values).flatten(1, 2)
    out = functional.conv1d(out, w[f"{name}.proj_out.weight"], w[f"{name}.proj_out.bias"])
    return x + out.unflatten(2, x.shape[2:])


def denoised_output(
    w: Weights, flags: Mapping[str, Any], x: Tensor, timesteps: Tensor, labels: Tensor | None = None
) -> Tensor:
    """The output of the denoiser of these flags, with use_scale_shift_norm and resblock_updown."""
    size = flags.get("large_size") or flags["image_size"]
    multipliers = [float(each) for each in str(flags["channel_mult"]).strip("()[]").split(",")]
    rates = {size // int(each) for each in str(flags["attention_resolutions"]).split(",")}
    layers, base = int(flags["num_res_blocks"]), int(flags["num_channels"])
    head_channels = int(flags.get("num_head_channels", -1))
    new_order = bool(flags.get("use_new_attention_order", False))

    def attended(name: str, x: Tensor) -> Tensor:
        heads = int(flags.get("num_heads", 4)) if head_channels == -1 else x.shape[1] // head_channels
        return _attention(w, name, x, heads, new_order)

    half = base // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
    angles = timesteps.float()[:, None] * frequencies
    embedding = _linear(w, "time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype))
    embedding = _linear(w, "time_embed.2", functional.silu(embedding))
    if labels is not None:
        embedding = embedding + w["label_emb.weight"][labels]

    x, rate, number = _convolved(w, "input_blocks.0.0", x), 1, 1
    kept = [x]
    for level in range(len(multipliers)):
        for _ in range(layers):
            x = _residual(w, f"input_blocks.{number}.0", x, embedding)
            if rate in rates:
                x = attended(f"input_blocks.{number}.1", x)
            kept.append(x)
            number += 1
        if level < len(multipliers) - 1:
            x = _residual(w, f"input_blocks.{number}.0", x, embedding, "down")
            kept.append(x)
            number, rate = number + 1, rate * 2
    x = _residual(w, "middle_block.0", x, embedding)
    x = _residual(w, "middle_block.2", attended("middle_block.1", x), embedding)
    number = 0
    for level in reversed(range(len(multipliers))):
        for layer in range(layers + 1):
            name, place = f"output_blocks.{number}", 1
            x = _residual(w, f"{name}.0", torch.cat([x, kept.pop()], dim=1), embedding)
            if rate in rates:
                x, place = attended(f"{name}.1", x), 2
            if level and layer == layers:
                x, rate = _residual(w, f"{name}.{place}", x, embedding, "up"), rate // 2
            number += 1
    return _convolved(w, "out.2", functional.silu(_normed(w, "out.0", x)))
