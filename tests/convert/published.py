"""Names and shapes of published checkpoints, generated from how the original networks are put together.

Independent of the package: it walks the original modules in their own order and knows nothing of diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

GOLDENS = Path(__file__).parent.parent / "goldens"
Shapes = dict[str, tuple[int, ...]]


def golden(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Configuration, weights under their original names, and values of a golden file."""
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        config = json.loads(opened.metadata()["config"])
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return config, weights, {k: v for k, v in tensors.items() if not k.startswith(prefix)}


def meta(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def total(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())


def affine(name: str, *weight: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def res_block(name: str, before: int, after: int, embedding: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """With use_scale_shift_norm."""
    yield from affine(f"{name}.in_layers.0", before)
    yield from affine(f"{name}.in_layers.2", after, before, 3, 3)
    yield from affine(f"{name}.emb_layers.1", 2 * after, embedding)
    yield from affine(f"{name}.out_layers.0", after)
    yield from affine(f"{name}.out_layers.3", after, after, 3, 3)
    if before != after:
        yield from affine(f"{name}.skip_connection", after, before, 1, 1)


def attention_block(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from affine(f"{name}.norm", width)
    yield from affine(f"{name}.qkv", 3 * width, width, 1)
    yield from affine(f"{name}.proj_out", width, width, 1)


def adm_encoder(
    base: int, multipliers: Sequence[float], layers: int, rates: Sequence[int], in_channels: int
) -> tuple[Shapes, list[int], int, int]:
    """The shapes, the widths that the decoder will take in, the last width and the last rate."""
    embedding, width, rate, number = 4 * base, int(multipliers[0] * base), 1, 1
    shapes = dict(affine("time_embed.0", embedding, base))
    shapes |= affine("time_embed.2", embedding, embedding)
    shapes |= affine("input_blocks.0.0", width, in_channels, 3, 3)
    skips = [width]
    for level, multiplier in enumerate(multipliers):
        for _ in range(layers):
            after = int(multiplier * base)
            shapes |= res_block(f"input_blocks.{number}.0", width, after, embedding)
            width = after
            if rate in rates:
                shapes |= attention_block(f"input_blocks.{number}.1", width)
            skips.append(width)
            number += 1
        if level != len(multipliers) - 1:
            shapes |= res_block(f"input_blocks.{number}.0", width, width, embedding)
            skips.append(width)
            number += 1
            rate *= 2
    shapes |= res_block("middle_block.0", width, width, embedding)
    shapes |= attention_block("middle_block.1", width)
    shapes |= res_block("middle_block.2", width, width, embedding)
    return shapes, skips, width, rate


def adm_unet(
    base: int,
    multipliers: Sequence[float],
    layers: int,
    rates: Sequence[int],
    classes: int | None,
    in_channels: int = 3,
) -> Shapes:
    """Of a denoiser with learned variance, use_scale_shift_norm and resblock_updown."""
    shapes, skips, width, rate = adm_encoder(base, multipliers, layers, rates, in_channels)
    if classes is not None:
        shapes["label_emb.weight"] = (classes, 4 * base)
    number = 0
    for level, multiplier in list(enumerate(multipliers))[::-1]:
        for layer in range(layers + 1):
            name, place = f"output_blocks.{number}", 1
            shapes |= res_block(f"{name}.0", width + skips.pop(), int(multiplier * base), 4 * base)
            width = int(multiplier * base)
            if rate in rates:
                shapes |= attention_block(f"{name}.1", width)
                place = 2
            if level and layer == layers:
                shapes |= res_block(f"{name}.{place}", width, width, 4 * base)
                rate //= 2
            number += 1
    assert not skips
    shapes |= affine("out.0", width)
    shapes |= affine("out.2", 6, width, 3, 3)
    return shapes


def adm_classifier(
    base: int, multipliers: Sequence[float], layers: int, rates: Sequence[int], size: int
) -> Shapes:
    """Of 1000 classes, with attention pooling, use_scale_shift_norm and resblock_updown."""
    shapes, _, width, rate = adm_encoder(base, multipliers, layers, rates, 3)
    shapes |= affine("out.0", width)
    shapes["out.2.positional_embedding"] = (width, (size // rate) ** 2 + 1)
    shapes |= affine("out.2.qkv_proj", 3 * width, width, 1)
    shapes |= affine("out.2.c_proj", 1000, width, 1)
    return shapes


def ldm_block(name: str, before: int, after: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from affine(f"{name}.norm1", before)
    yield from affine(f"{name}.conv1", after, before, 3, 3)
    yield from affine(f"{name}.norm2", after)
    yield from affine(f"{name}.conv2", after, after, 3, 3)
    if before != after:
        yield from affine(f"{name}.nin_shortcut", after, before, 1, 1)


def ldm_attention(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from affine(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from affine(f"{name}.{part}", width, width, 1, 1)


def ldm_autoencoder(
    base: int, multipliers: Sequence[int], layers: int, channels: int, size: int, attention: Sequence[int]
) -> Shapes:
    """Of a KL autoencoder of colour images with as many latent channels as the encoder puts out."""
    width, last = base, base * multipliers[-1]
    shapes = dict(affine("encoder.conv_in", base, 3, 3, 3))
    resolutions = [size // 2**level for level in range(len(multipliers))]
    for level, multiplier in enumerate(multipliers):
        for number in range(layers):
            shapes |= ldm_block(f"encoder.down.{level}.block.{number}", width, base * multiplier)
            width = base * multiplier
            if resolutions[level] in attention:
                shapes |= ldm_attention(f"encoder.down.{level}.attn.{number}", width)
        if level != len(multipliers) - 1:
            shapes |= affine(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    shapes |= affine("encoder.norm_out", last)
    shapes |= affine("encoder.conv_out", 2 * channels, last, 3, 3)
    shapes |= affine("quant_conv", 2 * channels, 2 * channels, 1, 1)
    shapes |= affine("post_quant_conv", channels, channels, 1, 1)
    shapes |= affine("decoder.conv_in", last, channels, 3, 3)
    for level in reversed(range(len(multipliers))):
        for number in range(layers + 1):
            shapes |= ldm_block(f"decoder.up.{level}.block.{number}", width, base * multipliers[level])
            width = base * multipliers[level]
            if resolutions[level] in attention:
                shapes |= ldm_attention(f"decoder.up.{level}.attn.{number}", width)
        if level != 0:
            shapes |= affine(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    shapes |= affine("decoder.norm_out", width)
    shapes |= affine("decoder.conv_out", 3, width, 3, 3)
    for half in ("encoder", "decoder"):
        shapes |= ldm_block(f"{half}.mid.block_1", last, last)
        shapes |= ldm_attention(f"{half}.mid.attn_1", last)
        shapes |= ldm_block(f"{half}.mid.block_2", last, last)
    return shapes
