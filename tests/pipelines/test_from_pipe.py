"""Components that go from one pipeline to another: from_pipe both ways, diffusers' automatic pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    VQModel,
)
from tiny import stable_diffusion_schedule, tiny_autoencoder, tiny_components, tiny_unet
from tiny_classifier import tiny_image_unet
from tiny_pipelines import PIPELINES, drawn

from guided_diffusers import ClassifierGuidedTextToImagePipeline, ImagePipeline, TextToImagePipeline
from guided_diffusers.guidance import AutoGuidance


def latents(pipeline: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 3.0}
    return pipeline("a bag", generator=torch.Generator().manual_seed(5), **arguments).images


def ours(**arguments: Any) -> TextToImagePipeline:
    scheduler = stable_diffusion_schedule(DDIMScheduler, clip_sample=False, set_alpha_to_one=False)
    components = tiny_components(**{"scheduler": scheduler, **arguments})
    return TextToImagePipeline(**components, requires_safety_checker=False)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_of_ours_makes_another_of_its_class(name: str) -> None:
    make, positional, arguments = PIPELINES[name]
    first = make()
    again = type(first).from_pipe(first)
    assert again is not first
    for part, component in first.components.items():
        assert again.components[part] is component or part == "scheduler"
    wanted = drawn(first, *positional, **arguments)
    torch.testing.assert_close(drawn(again, *positional, **arguments), wanted)
    kept = {key: value for key, value in first.config.items() if not key.startswith("_")}
    assert {key: again.config[key] for key in kept} == kept


def test_the_weak_network_and_the_default_guidance_are_kept_or_replaced() -> None:
    weak, other = tiny_unet(), tiny_unet()
    pipeline = ours(weak_unet=weak, default_guidance=AutoGuidance(lambda *_: None, 2.0).to_config())
    again = TextToImagePipeline.from_pipe(pipeline)
    assert again.weak_unet is weak and again.config.default_guidance == pipeline.config.default_guidance
    replaced = TextToImagePipeline.from_pipe(pipeline, weak_unet=other, default_guidance=1.5)
    assert replaced.weak_unet is other and replaced.call_guidance().terms[0].scale == 1.5
    with pytest.raises(ValueError, match="weak network"):
        TextToImagePipeline.from_pipe(pipeline, weak_unet=None)


@pytest.mark.parametrize("cls", [StableDiffusionPipeline, AutoPipelineForText2Image, TextToImagePipeline])
def test_to_stable_diffusion_and_back_draws_the_same(cls: type) -> None:
    """With our autoencoder, whose type is not exactly the one that diffusers writes down."""
    pipeline = ours(default_guidance=2.0)
    there = cls.from_pipe(pipeline)
    assert type(there) is (TextToImagePipeline if cls is AutoPipelineForText2Image else cls)
    wanted = latents(pipeline)
    torch.testing.assert_close(latents(there), wanted, rtol=0, atol=1e-4)
    back = TextToImagePipeline.from_pipe(there)
    assert back.vae is pipeline.vae and back.call_guidance() == pipeline.call_guidance()
    torch.testing.assert_close(latents(back), wanted, rtol=0, atol=1e-4)


def test_stable_diffusion_does_not_change_the_schedule_of_ours() -> None:
    """It sets steps_offset to 1 in the scheduler that it is given."""
    pipeline = ours(scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False))
    wanted = latents(pipeline)
    stock = StableDiffusionPipeline.from_pipe(pipeline)
    assert (pipeline.scheduler.config.steps_offset, stock.scheduler.config.steps_offset) == (0, 1)
    assert torch.equal(latents(pipeline), wanted)


@pytest.mark.parametrize(
    ("automatic", "cls", "images"),
    [
        (AutoPipelineForImage2Image, StableDiffusionImg2ImgPipeline, ["image"]),
        (AutoPipelineForInpainting, StableDiffusionInpaintPipeline, ["image", "mask_image"]),
    ],
)
def test_automatic_pipelines_for_images_are_stock_ones_with_our_components(
    automatic: type, cls: type, images: list[str]
) -> None:
    vae = tiny_autoencoder(latent_channels=4, latents_mean=(0.1,) * 4, latents_std=(1.2,) * 4)
    pipeline = ours(vae=vae, unet=tiny_unet(in_channels=4, out_channels=4))  # stock inpainting asks for 4
    made = automatic.from_pipe(pipeline)
    assert type(made) is cls and made.vae is pipeline.vae and made.unet is pipeline.unet
    made.set_progress_bar_config(disable=True)
    given = {name: torch.rand(1, 1, 16, 16) for name in images}
    result = made("a bag", num_inference_steps=2, output_type="pt", **given).images
    assert result.shape == (1, 1, 16, 16) and bool(result.isfinite().all())
    assert type(AutoPipelineForText2Image.from_pipe(made)) is StableDiffusionPipeline


def test_the_automatic_pipeline_loads_ours_from_a_folder(tmp_path: Any) -> None:
    pipeline = ours()
    pipeline.save_pretrained(tmp_path / "text")
    loaded = AutoPipelineForText2Image.from_pretrained(tmp_path / "text")
    assert type(loaded) is TextToImagePipeline
    assert torch.equal(latents(loaded), latents(pipeline))
    PIPELINES["clip"][0]().save_pretrained(tmp_path / "clip")
    loaded = AutoPipelineForText2Image.from_pretrained(tmp_path / "clip")
    assert type(loaded) is ClassifierGuidedTextToImagePipeline


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (
            StableDiffusionPAGPipeline,
            "perturbed-attention guidance (pag_scale)",
        ),
        (
            StableDiffusionSAGPipeline,
            "self-attention guidance (sag_scale)",
        ),
        (StableDiffusionPipeline, ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_guidance_that_a_pipeline_has_in_its_code_is_told_where_it_is_lost(
    cls: type, told: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stock = cls(
        **tiny_components(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    stock.save_pretrained(tmp_path)
    for load, source in (
        (TextToImagePipeline.from_pretrained, tmp_path),
        (TextToImagePipeline.from_pipe, stock),
    ):
        caplog.clear()
        load(source)
        said = [record.getMessage() for record in caplog.records if "was saved by" in record.getMessage()]
        assert len(said) == bool(told) and all(told in each and cls.__name__ in each for each in said)


def test_what_is_no_pipeline_is_refused_by_name(tmp_path: Any) -> None:
    for given in (str(tmp_path), None, ours().components):
        with pytest.raises(ValueError, match="pipeline is .*allowed: one that from_pretrained has loaded"):
            TextToImagePipeline.from_pipe(given)


def test_a_component_without_a_place_is_refused_and_another_kind_of_one_is_taken() -> None:
    vae = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=1)
    assert ImagePipeline.from_pipe(ImagePipeline(tiny_image_unet(), DDPMScheduler(), vae)).vae is vae
    with pytest.raises(ValueError, match=r"text_encoder \(CLIPTextModel\).*use guided_diffusers.TextToImage"):
        ImagePipeline.from_pipe(ours())
