"""First stages of latent-diffusion, as they were published, to VariationalAutoencoder.

The layers are AutoencoderKL's, under other names and with the decoder's levels counted from the image.

Raw latents are what the published network calls z; a latent-diffusion model multiplies them by its
`scale_factor` s. Here latents are standardised by the model: tell it by
`model.set_latent_statistics([0] * channels, [1 / s] * channels)`, and nothing else has to know s.

References:
    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv:2112.10752),
        section 3.1 and appendix G.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.convert.rename import Rename, layer, load_renamed
from guided_diffusers.convert.values import read_flags
from guided_diffusers.core.checks import check_that
from guided_diffusers.models.autoencoder import VariationalAutoencoder

DDCONFIG: dict[str, Any] = {
    "embed_dim": 0,
    "double_z": True,
    "z_channels": 0,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": (1, 2, 4, 8),
    "num_res_blocks": 2,
    "attn_resolutions": (),
    "dropout": 0.0,
    "resamp_with_conv": True,
}
"""What a configuration may have, and the defaults; the first two sizes have none."""
_BESIDE = ("ckpt_path", "colorize_nlabels", "ignore_keys", "image_key", "lossconfig", "monitor")
_PREFIX, _LOSS = "first_stage_model.", "loss."


def ldm_autoencoder(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> VariationalAutoencoder:
    """A KL autoencoder of latent-diffusion, in evaluation mode; its latents are the raw ones.

    Args:
        state_dict: The autoencoder's checkpoint, under its original names, or that of a whole model of
            latent-diffusion, of which the tensors under "first_stage_model." are taken. What training kept
            beside it ("loss.": discriminator, perceptual network) is left out. Tensors are copied.
        config: `embed_dim` and the ddconfig: z_channels, resolution, in_channels, out_ch, ch, ch_mult,
            num_res_blocks, attn_resolutions; flat, or with `ddconfig` nested as in the published YAML.
            `dropout` is left out: it acts in training only.

    Raises:
        ValueError: An unknown name, an autoencoder that is not a KL one (double_z) or has
            another embed_dim than z_channels, or a checkpoint that does not fit.
    """
    flags = _flags(config)
    with torch.device("meta"):
        model = _autoencoder(flags)
    load_renamed(model, _renames(flags), _first_stage(state_dict))
    return model.eval()


def _flags(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in config.items() if name != "ddconfig" and name not in _BESIDE}
    flags = read_flags({**config.get("ddconfig", {}), **flat}, DDCONFIG)
    fits, channels = flags["embed_dim"] == flags["z_channels"] > 0, flags["z_channels"]
    check_that(fits, "embed_dim", flags["embed_dim"], f"z_channels, {channels}; both are needed")
    for name in ("double_z", "resamp_with_conv"):
        check_that(flags[name], name, flags[name], "True, as KL autoencoders have it")
    return flags


def _levels(flags: Mapping[str, Any]) -> list[tuple[int, bool]]:
    """The channels of each level, and whether there is attention at its resolution."""
    wanted = [int(resolution) for resolution in flags["attn_resolutions"]]
    return [
        (int(flags["ch"] * multiplier), flags["resolution"] // 2**level in wanted)
        for level, multiplier in enumerate(flags["ch_mult"])
    ]


def _autoencoder(flags: Mapping[str, Any]) -> VariationalAutoencoder:
    levels = _levels(flags)
    return VariationalAutoencoder(
        in_channels=flags["in_channels"],
        out_channels=flags["out_ch"],
        down_block_types=tuple(f"{'Attn' if attends else ''}DownEncoderBlock2D" for _, attends in levels),
        up_block_types=tuple(f"{'Attn' if attends else ''}UpDecoderBlock2D" for _, attends in levels[::-1]),
        block_out_channels=tuple(width for width, _ in levels),
        layers_per_block=flags["num_res_blocks"],
        latent_channels=flags["z_channels"],
        sample_size=flags["resolution"],
    )


def _first_stage(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if any(name.startswith(_PREFIX) for name in state_dict):
        state_dict = {
            name.removeprefix(_PREFIX): tensor
            for name, tensor in state_dict.items()
            if name.startswith(_PREFIX)
        }
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith(_LOSS)}


def _renames(flags: Mapping[str, Any]) -> Iterator[Rename]:
    last, layers = len(flags["ch_mult"]) - 1, flags["num_res_blocks"]
    for half in ("encoder", "decoder"):
        yield from layer(f"{half}.conv_in", f"{half}.conv_in")
        yield from layer(f"{half}.norm_out", f"{half}.conv_norm_out")
        yield from layer(f"{half}.conv_out", f"{half}.conv_out")
        for number in (0, 1):
            yield from _residual(f"{half}.mid.block_{number + 1}", f"{half}.mid_block.resnets.{number}")
        yield from _attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
    for level in range(last + 1):
        down = (f"encoder.down.{level}", f"encoder.down_blocks.{level}")
        up = (f"decoder.up.{level}", f"decoder.up_blocks.{last - level}")
        for (source, target), count in ((down, layers), (up, layers + 1)):
            for number in range(count):
                yield from _residual(f"{source}.block.{number}", f"{target}.resnets.{number}")
                yield from _attention(f"{source}.attn.{number}", f"{target}.attentions.{number}")
        yield from layer(f"{down[0]}.downsample.conv", f"{down[1]}.downsamplers.0.conv")
        yield from layer(f"{up[0]}.upsample.conv", f"{up[1]}.upsamplers.0.conv")
    for name in ("quant_conv", "post_quant_conv"):
        yield from layer(name, name)


def _residual(source: str, target: str) -> Iterator[Rename]:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield from layer(f"{source}.{name}", f"{target}.{name}")
    yield from layer(f"{source}.nin_shortcut", f"{target}.conv_shortcut")


def _attention(source: str, target: str) -> Iterator[Rename]:
    yield from layer(f"{source}.norm", f"{target}.group_norm")
    for theirs, ours in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield from layer(f"{source}.{theirs}", f"{target}.{ours}", dimensions=2)
