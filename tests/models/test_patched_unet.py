"""UNets on patches are those of diffusers on rearranged samples."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from tiny import LATENT, WIDTH, tiny_components, tiny_unet
from tiny_upsampler import tiny_upsampler_unet
from torch import nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from guided_diffusers import PatchedUNet2DConditionModel, PatchedUNet2DModel, TextToImagePipeline
from guided_diffusers.hub.component import load_network

PLAIN = {UNet2DModel: tiny_upsampler_unet, UNet2DConditionModel: tiny_unet}
PATCHED = {UNet2DModel: PatchedUNet2DModel, UNet2DConditionModel: PatchedUNet2DConditionModel}
CONFIG = {name: value for name, value in tiny_unet().config.items() if not name.startswith(("_", "conv_"))}
TOLD = {
    UNet2DModel: {"class_labels": torch.tensor([3, 5])},
    UNet2DConditionModel: {"encoder_hidden_states": torch.linspace(-1, 1, 2 * 3 * WIDTH).view(2, 3, WIDTH)},
}


def patched(stock: type, size: int) -> nn.Module:
    """The sibling on patches of the tiny network of a class, with weights of its own."""
    torch.manual_seed(0)
    config = {name: value for name, value in PLAIN[stock]().config.items() if not name.startswith("_")}
    return PATCHED[stock](**config, patch_size=size).eval()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("stock", PLAIN)
def test_it_is_the_stock_network_of_rearranged_samples(stock: type, size: int) -> None:
    network = patched(stock, size)
    channels = {name: network.config[name] * size**2 for name in ("in_channels", "out_channels")}
    plain = PLAIN[stock](**channels)
    weights = {name.replace("conv_in.1.", "conv_in."): value for name, value in network.state_dict().items()}
    plain.load_state_dict({name.replace("conv_out.0.", "conv_out."): each for name, each in weights.items()})
    sample = torch.randn(2, network.config.in_channels, 16, 32)
    with torch.no_grad():
        seen = plain(pixel_unshuffle(sample, size), 7, **TOLD[stock]).sample
        torch.testing.assert_close(network(sample, 7, **TOLD[stock]).sample, pixel_shuffle(seen, size))


@pytest.mark.parametrize("stock", PLAIN)
def test_sides_that_are_no_multiples_of_a_patch_are_refused(stock: type) -> None:
    network = patched(stock, 4)
    with pytest.raises(RuntimeError, match="divisible by downscale_factor, .* by 4"):
        network(torch.randn(2, network.config.in_channels, 16, 18), 7, **TOLD[stock])
    with pytest.raises(ValueError, match="patch_size"):
        patched(stock, 0)
    with pytest.raises(ValueError, match="sample_size is .*; allowed: a multiple of 3, the patch_size"):
        patched(stock, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_patches_that_do_not_halve_evenly_are_drawn_too(size: int) -> None:
    network = PatchedUNet2DConditionModel(**{**CONFIG, "sample_size": None, "patch_size": size}).eval()
    for side in (5, 6, 7):
        sample = torch.randn(2, LATENT[0], side * size, 4 * size)
        assert network(sample, 7, **TOLD[UNet2DConditionModel]).sample.shape == sample.shape


def test_kernels_are_those_of_the_configuration() -> None:
    network = PatchedUNet2DConditionModel(**CONFIG, conv_in_kernel=5, conv_out_kernel=1)
    assert (network.conv_in[1].kernel_size, network.conv_out[0].kernel_size) == ((5, 5), (1, 1))


def test_a_pipeline_refuses_sides_of_half_patches() -> None:
    pipeline = TextToImagePipeline(
        **tiny_components(unet=patched(UNet2DConditionModel, 4)), requires_safety_checker=False
    )
    with pytest.raises(ValueError, match="height is 12; allowed: a positive multiple of 8"):
        pipeline("a boot", height=12)


@pytest.mark.parametrize("stock", PLAIN)
def test_a_folder_of_one_loads_where_the_stock_class_is_asked_for(stock: type, tmp_path) -> None:
    network = patched(stock, 2)
    network.save_pretrained(tmp_path)
    again = load_network(stock, str(tmp_path), "unet")
    assert type(again) is PATCHED[stock] and again.config.patch_size == 2
    assert all(
        torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True)
    )


def test_pipelines_of_ours_and_of_diffusers_load_it(tmp_path) -> None:
    ours = TextToImagePipeline(
        **{**tiny_components(), "unet": patched(UNet2DConditionModel, 2)}, requires_safety_checker=False
    )
    image = UNet2DModel(**{**tiny_upsampler_unet().config, "in_channels": 1, "class_embed_type": None})
    config = {name: value for name, value in image.config.items() if not name.startswith("_")}
    stock = DDPMPipeline(PatchedUNet2DModel(**config, patch_size=2), DDIMScheduler())
    for name, pipeline in {"ours": ours, "stock": stock}.items():
        pipeline.save_pretrained(tmp_path / name)
        again = DiffusionPipeline.from_pretrained(tmp_path / name)
        assert type(again) is type(pipeline) and type(again.unet) is type(pipeline.unet)
    drawing = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(1)}
    assert again(**drawing).images.shape == (1, 64, 64, 1)
