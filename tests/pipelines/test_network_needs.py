"""What a network has to be told: given as StableDiffusionPipeline gives it, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DModel
from diffusers.callbacks import SDCFGCutoffCallback
from tiny import LATENT, tiny_components, tiny_unet
from tiny_classifier import tiny_classifier, tiny_image_unet
from torch import Tensor

from guided_diffusers import ClassifierGuidedPipeline, ImagePipeline, TextToImagePipeline
from guided_diffusers.guidance import AutoGuidance, CFGPlusPlus, ClassifierFreeGuidance

NOISE = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(5))


def pair(**unet: Any) -> tuple[Any, Any]:
    """StableDiffusionPipeline and ours, of the same components."""
    components = tiny_components(scheduler=DDIMScheduler(steps_offset=1, clip_sample=False))
    torch.manual_seed(1)
    components["unet"] = tiny_unet(**unet)
    if "time_cond_proj_dim" in unet:
        torch.nn.init.normal_(components["unet"].time_embedding.cond_proj.weight, std=0.5)
    stock = StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    ours = TextToImagePipeline(**components)
    for pipe in (stock, ours):
        pipe.set_progress_bar_config(disable=True)
    return stock, ours


def drawn(pipe: Any, **arguments: Any) -> Tensor:
    call = {"num_inference_steps": 4, "output_type": "latent", "latents": NOISE}
    return pipe(["ab", "cd"], **{**call, **arguments}).images


class TestDistilled:
    """A network that is told the guidance scale (latent consistency models)."""

    @pytest.mark.parametrize(
        "arguments",
        [
            {"guidance_scale": 8.0},
            {"guidance_scale": 1.0},
            {"guidance_scale": 0.5},
            {},
            {"guidance_scale": 8.0, "num_images_per_prompt": 2, "latents": NOISE.repeat(2, 1, 1, 1)},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("width", [8, 9])
    def test_equal_to_stable_diffusion(self, arguments: dict, width: int) -> None:
        stock, ours = (drawn(pipe, **arguments) for pipe in pair(time_cond_proj_dim=width))
        torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)

    def test_it_runs_once_a_step_and_the_scale_matters(self) -> None:
        ours, batches = pair(time_cond_proj_dim=8)[1], []
        ours.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
        eight = drawn(ours, guidance_scale=8.0)
        assert batches == [2] * 4 and ours.guidance_scale == 8 and not ours.do_classifier_free_guidance
        two = drawn(ours, guidance_scale=2.0)
        assert (two - eight).abs().max() > 0.1
        mixed = drawn(ours, guidance_scale=[2.0, 8.0])
        torch.testing.assert_close(mixed, torch.stack([two[0], eight[1]]), rtol=1e-5, atol=1e-5)

    def test_other_terms_add_to_it_and_those_of_the_scale_do_not(self) -> None:
        ours = pair(time_cond_proj_dim=8)[1]
        scale = ClassifierFreeGuidance(8.0)
        neutral = AutoGuidance(ClassifierFreeGuidance(1.0)(lambda *asked: 0), 1.0)
        assert torch.equal(drawn(ours, guidance=scale + neutral), drawn(ours, guidance_scale=8.0))
        for guidance in (neutral, CFGPlusPlus(0.6), scale + scale, ClassifierFreeGuidance(8.0, (0, 1))):
            with pytest.raises(ValueError, match="guidance is .*time_cond_proj_dim 8"):
                drawn(ours, guidance=guidance)

    def test_a_callback_that_cuts_guidance_off_does_what_it_does_there(self) -> None:
        cut = {"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.5), "guidance_scale": 8.0}
        one = {"num_inference_steps": 4, "output_type": "latent", "latents": NOISE[:1]}
        stock, ours = (pipe("ab", **one, **cut).images for pipe in pair(time_cond_proj_dim=8))
        torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)

    def test_a_callback_cannot_change_the_scale(self) -> None:
        def louder(pipe: Any, index: int, timestep: Any, tensors: dict) -> None:
            pipe._guidance_scale = 9.0

        with pytest.raises(ValueError, match="_guidance_scale was set to 9.0"):
            drawn(pair(time_cond_proj_dim=8)[1], callback_on_step_end=louder)


def test_a_network_that_does_not_say_its_size_is_told_it() -> None:
    stock, ours = pair(sample_size=None)
    torch.testing.assert_close(
        drawn(ours, height=16, width=16), drawn(stock, height=16, width=16), rtol=1e-5, atol=1e-5
    )
    for given in ({}, {"height": 16}):
        with pytest.raises(ValueError, match="unet has sample_size None.*give height and width"):
            drawn(ours, **given)
    unet = tiny_image_unet()
    unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match="unet has sample_size None.*register_to_config"):
        ImagePipeline(unet, DDIMScheduler())(num_inference_steps=2)


@pytest.mark.parametrize("options", [{"encoder_hid_dim": 16}, {"timestep_post_act": "silu"}], ids=str)
def test_what_needs_nothing_more_is_drawn(options: dict) -> None:
    stock, ours = (drawn(pipe, guidance_scale=3.0) for pipe in pair(**options))
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SDXL, "added_cond_kwargs.text_embeds .*StableDiffusionXLPipeline"),
        (
            {"addition_embed_type": "image", "encoder_hid_dim": 16, "encoder_hid_dim_type": "image_proj"},
            "added_cond_kwargs.image_embeds",
        ),
        ({"num_class_embeds": 5}, "class_labels .num_class_embeds is 5"),
        ({"class_embed_type": "timestep"}, "class_labels .class_embed_type is 'timestep'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_it_does_not_tell_is_refused_by_name(options: dict, words: str, tmp_path: Path) -> None:
    pipe = TextToImagePipeline(**tiny_components(unet=tiny_unet(**options)))
    with pytest.raises(ValueError, match=words) as caught:
        pipe("ab", num_inference_steps=2)
    assert "\n" not in str(caught.value)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=words):
        TextToImagePipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(("more", "words"), [(3, "UpsamplePipeline"), (4, "InstructPix2Pix"), (5, "Inpaint")])
def test_a_network_that_sees_an_image_beside_the_noise_is_refused(more: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"in_channels {2 + more} and out_channels 2: .*use .*{words}"):
        TextToImagePipeline(**tiny_components(unet=tiny_unet(in_channels=2 + more)))


def test_a_weak_network_of_another_kind_is_refused() -> None:
    pipe = TextToImagePipeline(**tiny_components(weak_unet=tiny_unet(time_cond_proj_dim=8)))
    with pytest.raises(ValueError, match="weak_unet and unet differ in time_cond_proj_dim"):
        pipe("ab", num_inference_steps=2)


@pytest.mark.parametrize(
    ("unet", "words"),
    [
        (tiny_unet(), "encoder_hidden_states .*TextToImagePipeline"),
        (tiny_image_unet(4, 1), "in_channels 4 and out_channels 1"),
        (tiny_image_unet(class_embed_type="timestep"), "class_embed_type 'timestep'; allowed: None"),
    ],
    ids=["text", "image", "class"],
)
def test_pipelines_without_prompts(unet: UNet2DModel, words: str) -> None:
    scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(ValueError, match=words):
        ImagePipeline(unet, scheduler)(num_inference_steps=2)
    with pytest.raises(ValueError, match=words):
        ClassifierGuidedPipeline(unet, scheduler, tiny_classifier())(0, num_inference_steps=2)


@pytest.mark.parametrize("scale", [7.5, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_guidance_rescale_is_stable_diffusions(scale: float, kind: str) -> None:
    pipes = pair()
    for pipe in pipes:
        pipe.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type=kind)
    stock, ours = (drawn(pipe, guidance_scale=scale, guidance_rescale=0.7) for pipe in pipes)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


def test_guidance_rescale_of_another_guidance_is_refused() -> None:
    ours = pair()[1]
    for arguments in ({"guidance": CFGPlusPlus(0.6)}, {"guidance_scale": 3.0, "guidance_rescale": 2}):
        with pytest.raises(ValueError, match="guidance_rescale"):
            drawn(ours, **{"guidance_rescale": 0.5, **arguments})
    other = TextToImagePipeline(**tiny_components(), default_guidance=CFGPlusPlus(0.6))
    with pytest.raises(ValueError, match="default guidance is CFGPlusPlus"):
        drawn(other, guidance_rescale=0.5)
