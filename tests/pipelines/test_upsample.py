"""UpsamplePipeline: parity with stock, ADM's upsamplers, pictures of people's own, tiles, refusals."""

import numpy as np
import pytest
import torch
from convert.published import golden
from convert.published_forward import denoised_output
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tiny import WIDTH, tiny_text_encoder, tiny_tokenizer, tiny_unet
from tiny_upsampler import tiny_upsampler, tiny_upsampler_unet

from guided_diffusers import GuidedDDPMScheduler, UpsamplePipeline
from guided_diffusers.convert import adm_unet
from guided_diffusers.guidance import AutoGuidance, ClassifierFreeGuidance, ProjectedGuidance
from guided_diffusers.models.super_resolution import SuperResolutionNetwork, scaled_up
from guided_diffusers.pipelines.pictures import read_pictures, resized

SMALL = torch.rand(2, 1, 12, 10, generator=torch.Generator().manual_seed(0))


def drawn(pipeline, image=SMALL, *arguments, seed=3, **options):
    generator = [torch.Generator().manual_seed(seed + number) for number in range(len(image))]
    return pipeline(image, *arguments, **{"generator": generator, "output_type": "pt", **options}).images


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory):
    """StableDiffusionUpscalePipeline of random weights, and its folder."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    blocks = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
    sides = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    sides |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8}
    channels = {"in_channels": 7, "out_channels": 4, "num_class_embeds": 100, "cross_attention_dim": WIDTH}
    vae = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    stock = StableDiffusionUpscalePipeline(
        vae=AutoencoderKL(
            **vae, block_out_channels=[8, 8, 16], latent_channels=4, norm_num_groups=4, scaling_factor=0.08333
        ),
        text_encoder=tiny_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=16, **blocks, **sides, **channels),
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear", num_train_timesteps=100),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False, steps_offset=1
        ),
        max_noise_level=50,
    )
    stock.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("upscaler")
    stock.save_pretrained(folder)
    return stock, folder


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_folder_of_the_stock_upscaler_gives_its_pictures(upscaler, scale):
    stock, folder = upscaler
    ours = UpsamplePipeline.from_pretrained(folder)
    ours.set_progress_bar_config(disable=True)
    image, prompts = torch.rand(2, 3, 24, 16), ["a boot", "a bag"]
    options = {"num_inference_steps": 3, "guidance_scale": scale, "output_type": "np"}
    theirs = stock(
        prompts, image=image, noise_level=20, generator=torch.Generator().manual_seed(3), **options
    ).images
    own = ours(
        image, prompts, augmentation_level=20, generator=torch.Generator().manual_seed(3), **options
    ).images
    assert own.shape == theirs.shape == (2, 96, 64, 3)
    assert abs(own - theirs).max() < 1e-5 < 0.1 < theirs.std()
    assert (ours.config.max_noise_level, ours.config.augmentation_level, ours.config.scale) == (50, 20, 4)


@torch.no_grad()
def test_adm_upsamplers_are_the_published_arithmetic():
    """The derivation gives the published outputs of denoisers, and the conversion what it derives."""
    for name in ("adm_unet_new_order", "adm_unet_legacy_order", "adm_unet_four_heads"):
        flags, weights, values = golden(name)
        inputs = (values["sample"], values["timesteps"], values.get("class_labels"))
        torch.testing.assert_close(
            denoised_output(weights, flags, *inputs), values["output"], atol=1e-5, rtol=0
        )
    flags, weights, values = golden("adm_upsampler")
    seen = scaled_up(values["low_res"], values["sample"].shape[2:])
    network = SuperResolutionNetwork(adm_unet(weights, flags))
    output = network(values["sample"], values["timesteps"], low_res=seen, class_labels=values["class_labels"])
    torch.testing.assert_close(output.sample, values["output"], atol=1e-5, rtol=0)


def test_an_adm_upsampler_draws_for_a_class_without_augmentation():
    flags, weights, values = golden("adm_upsampler")
    scheduler = GuidedDDPMScheduler(variance_type="learned_range")
    pipeline = UpsamplePipeline(adm_unet(weights, flags), scheduler, scale=4, image_size=32)
    pipeline.set_progress_bar_config(disable=True)
    image, options = (values["low_res"] + 1) / 2, {"num_inference_steps": 3, "class_labels": [3, 7]}
    images = drawn(pipeline, image, **options)
    assert images.shape == (2, 3, 32, 32) and images.std() > 0.1
    others = drawn(pipeline, image, **{**options, "class_labels": 3})
    assert torch.equal(images[0], others[0]) and not torch.equal(images[1], others[1])
    for wrong, message in (
        ({"augmentation_level": 20}, "augmentation_level is 20; allowed: None or 0"),
        ({"guidance_scale": 2.0}, "no null class"),
        ({"class_labels": 10}, "class_labels"),
        ({"class_labels": None}, "class_labels is None"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn(pipeline, image, **{**options, **wrong})


def test_pictures_of_every_kind_are_the_same_picture(tmp_path):
    pixels = (SMALL[0] * 255).round().to(torch.uint8)
    pil, array = Image.fromarray(pixels[0].numpy()), pixels[0].numpy()
    pil.save(tmp_path / "small.png")
    kinds = [pil, [pil], tmp_path / "small.png", str(tmp_path / "small.png"), array, array[..., None]]
    kinds += [
        array[None, ..., None],
        array[..., None] / 255,
        pixels,
        pixels[None],
        pixels / 255,
        pil.convert("RGB"),
    ]
    expected = read_pictures(kinds[0], 1)
    assert expected.shape == (1, 1, 12, 10) and -1 <= expected.min() < expected.max() <= 1
    for kind in kinds[1:]:
        torch.testing.assert_close(read_pictures(kind, 1), expected, atol=1e-6, rtol=0)
    assert read_pictures([pil, pil], 3).shape == (2, 3, 12, 10)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 3, 8, 8), r"image is a tensor of shape \(1, 3, 8, 8\).*allowed: 1 channels"),
        (np.zeros((8, 8, 3)), r"image is an array of shape \(8, 8, 3\); allowed: 1 channels"),
        (torch.rand(1, 1, 8, 8) * 3, "image has values from .*; allowed: 0 to 1"),
        (torch.full((1, 1, 8, 8), torch.nan), "image holds values that are NaN"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "allowed: 8-bit integers"),
        ([Image.new("L", (8, 8)), Image.new("L", (8, 9))], "different sizes"),
        ([], "image is an empty list"),
        ("nowhere.png", "image is 'nowhere.png', which cannot be read"),
        (None, "image is None"),
        (torch.rand(8, 8), "1 channels"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(image, message):
    with pytest.raises(ValueError, match=message):
        tiny_upsampler()(image)


def test_any_size_and_a_target():
    pipeline = tiny_upsampler()
    assert drawn(pipeline, SMALL[:, :, :7, :5]).shape == (2, 1, 28, 20)
    assert drawn(pipeline, SMALL, height=64, width=32).shape == (2, 1, 64, 32)
    assert drawn(pipeline, SMALL, height=24).shape == (2, 1, 24, 40)
    with pytest.raises(ValueError, match="image has height 12, larger than the target, 8"):
        drawn(pipeline, SMALL, height=8)
    with pytest.raises(ValueError, match="height is 18; allowed: a positive multiple of 4"):
        drawn(pipeline, SMALL, height=18)
    picture = torch.rand(1, 1, 8, 8)
    assert torch.equal(resized(picture, (4, 4)), torch.nn.functional.avg_pool2d(picture, 2))
    torch.testing.assert_close(resized(picture, (6, 8)).mean(), picture.mean(), atol=0.05, rtol=0)


def test_what_is_drawn_depends_on_its_generator_alone():
    pipeline = tiny_upsampler()
    whole = drawn(pipeline)
    torch.testing.assert_close(drawn(pipeline, SMALL[1:], seed=4), whole[1:], atol=1e-5, rtol=0)
    assert torch.equal(drawn(pipeline), whole)
    assert not torch.equal(drawn(pipeline, augmentation_level=200), whole)


def test_saved_and_loaded(tmp_path):
    pipeline = tiny_upsampler(default_guidance=None, augmentation_level=70, max_noise_level=400)
    pipeline.save_pretrained(tmp_path)
    loaded = UpsamplePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(drawn(loaded), drawn(pipeline))
    assert loaded.config.augmentation_level == 70 and loaded.augmentation.most == 400


def test_tiles_are_the_whole_where_a_network_sees_no_further():
    """Of a network without normalisation: what it sees ends within the overlap, where weights fall to 0."""
    pipeline = tiny_upsampler()
    with torch.no_grad():
        for part in pipeline.unet.modules():
            if isinstance(part, torch.nn.GroupNorm):
                part.weight.zero_()  # what is normalised over a tile is another in each
    large = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    whole = drawn(pipeline, large, num_inference_steps=2)
    tiles = drawn(pipeline, large, num_inference_steps=2, tile_size=64, tile_overlap=32)
    difference = (tiles - whole).abs()
    borders = difference[..., [16, 31, 32, 47, 48, 63, 64, 79], :]
    assert difference.max() < 0.02 and borders.max() <= difference.max()
    with pytest.raises(ValueError, match="tile_overlap is given without tile_size"):
        drawn(pipeline, large, tile_overlap=8)
    with pytest.raises(ValueError, match="tile_size is 31"):
        drawn(pipeline, large, tile_size=31)


def with_text(**overrides):
    tokenizer = tiny_tokenizer()
    unet = tiny_unet(in_channels=2, out_channels=1, class_embed_type="timestep")
    parts = {"unet": unet, "text_encoder": tiny_text_encoder(tokenizer), "tokenizer": tokenizer}
    return tiny_upsampler(**{**parts, **overrides})


def test_terms_of_every_kind_guide_it():
    pipeline = with_text(weak_unet=tiny_unet(in_channels=2, out_channels=1, class_embed_type="timestep"))
    pipeline.register_to_config(num_inference_steps=2)
    plain, told = drawn(pipeline, SMALL, "a bag", guidance_scale=1.0), []
    for guidance in (
        ClassifierFreeGuidance(3.0),
        ProjectedGuidance(3.0),
        AutoGuidance(pipeline.weak_denoiser, 2.0),
        ClassifierFreeGuidance(3.0) + AutoGuidance(pipeline.weak_denoiser, 2.0),
    ):
        told.append(drawn(pipeline, SMALL, "a bag", guidance=guidance))
        assert told[-1].isfinite().all() and not torch.equal(told[-1], plain)
    assert torch.equal(told[0], drawn(pipeline, SMALL, ["a bag", "a bag"], guidance_scale=3.0))
    other = drawn(pipeline, SMALL, "a bag", guidance_scale=3.0, negative_prompt="a boot")
    assert not torch.equal(other, told[0])
    off = drawn(pipeline, SMALL, "a bag", guidance_scale=3.0, guidance_interval=(1e6, 1e7))
    torch.testing.assert_close(off, plain)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (with_text, {}, "prompt is None; allowed: one for all"),
        (with_text, {"prompt": ["a", "b", "c"]}, "prompt has 3 entries for 2 images"),
        (with_text, {"prompt": "a", "class_labels": 1}, "class_labels is 1; allowed: None"),
        (with_text, {"prompt": "a", "guidance_scale": [1.0, 2.0, 3.0]}, "3 values for 2 images"),
        (
            with_text,
            {"prompt": "a", "guidance_scale": 2, "guidance": ClassifierFreeGuidance(2.0)},
            "both given",
        ),
        (tiny_upsampler, {"prompt": "a"}, "prompt is 'a'; allowed: None"),
        (tiny_upsampler, {"negative_prompt": "a"}, "negative_prompt is 'a'; allowed: None"),
        (tiny_upsampler, {"guidance_scale": 2.0}, "asks for the null"),
        (tiny_upsampler, {"augmentation_level": 351}, "augmentation_level is 351; .* from 0 to 350"),
        (tiny_upsampler, {"latents": torch.zeros(2, 1, 8, 8)}, r"latents is \(2, 1, 8, 8\)"),
        (tiny_upsampler, {"num_inference_steps": 0}, "num_inference_steps is 0"),
        (tiny_upsampler, {"generator": [torch.Generator()]}, "generator is a list of 1 for 2 "),
    ],
)
def test_arguments_that_do_not_go_are_refused_by_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        make()(SMALL, **options)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"scale": None}, "scale is None without a vae"),
        ({"augmentation_level": 400}, "augmentation_level is 400"),
        ({"unet": tiny_upsampler_unet(in_channels=4)}, "unet has in_channels 4 and out_channels 1"),
        ({"default_guidance": [{"term": "AutoGuidance", "scale": 2.0}]}, "weak"),
    ],
)
def test_parts_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_upsampler(**overrides)


def test_callbacks_see_and_change_the_latents():
    seen = []

    def look(pipeline, index, timestep, tensors):
        seen.append((index, tuple(tensors["latents"].shape)))
        pipeline._interrupt = index == 1
        return {"latents": tensors["latents"] * 0}

    images = drawn(tiny_upsampler(), callback_on_step_end=look, output_type="latent")
    assert seen == [(0, (2, 1, 48, 40)), (1, (2, 1, 48, 40))] and not images.any()
