"""Bad input gets a ValueError that names it, before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, RePaintScheduler
from tiny import CONTEXT, WIDTH, stable_diffusion_schedule, tiny_components
from tiny_pipelines import PIPELINES

from guided_diffusers import TextToImagePipeline
from guided_diffusers.guidance import ClassifierFreeGuidance

EMBEDS = torch.zeros(1, CONTEXT, WIDTH)
PT = {"output_type": "pt"}


@pytest.fixture
def pipeline() -> TextToImagePipeline:
    pipe = TextToImagePipeline(**tiny_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": 3}, "prompt is an int"),
        ({"prompt": ["a", 3]}, r"prompt\[1\]"),
        ({"prompt_embeds": EMBEDS}, "prompt and prompt_embeds"),
        ({"negative_prompt": 3}, "negative_prompt"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2"),
        (
            {"negative_prompt": "a", "negative_prompt_embeds": EMBEDS},
            "negative_prompt and negative_prompt_embeds",
        ),
        ({"prompt": None, "prompt_embeds": [1]}, "prompt_embeds is a list"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, CONTEXT, WIDTH + 1)}, "prompt_embeds has shape"),
        (
            {
                "prompt": None,
                "prompt_embeds": EMBEDS,
                "negative_prompt_embeds": torch.zeros(1, CONTEXT - 1, WIDTH),
            },
            "negative_prompt_embeds",
        ),
        ({"negative_prompt_embeds": torch.zeros(2, CONTEXT, WIDTH)}, "negative_prompt_embeds has 2"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": [1.0, 2.0]}, "guidance_scale has 2"),
        ({"guidance_scale": 2, "guidance": ClassifierFreeGuidance(2)}, "guidance and guidance_scale"),
        (
            {"guidance_interval": (1, 2), "guidance": ClassifierFreeGuidance(2)},
            "guidance and guidance_interval",
        ),
        ({"guidance_interval": (2, 1)}, "interval"),
        ({"guidance_interval": 3}, "interval"),
        ({"guidance": 3.0}, "guidance is a float"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_inference_steps": 1001}, "1001"),
        ({"timesteps": [900, 400], "sigmas": [3.0, 1.0]}, "sigmas is .* because timesteps are given"),
        ({"sigmas": [3.0, 1.0]}, "sigmas"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"cross_attention_kwargs": {"scale": torch.ones(2)}}, "cross_attention_kwargs.scale is a tensor"),
        ({"height": 15}, "height is 15"),
        ({"width": -16}, "width is -16"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"eta": float("nan")}, "eta is nan"),
        ({"generator": 3}, "generator"),
        ({"generator": [torch.Generator()] * 2}, "generator is a list of 2"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "latents"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_bad_argument_is_named(pipeline: TextToImagePipeline, arguments: dict[str, Any], named: str) -> None:
    calls: list[int] = []
    for network in (pipeline.unet, pipeline.text_encoder):
        network.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=named):
        pipeline(**{"prompt": "a boot", **arguments})
    assert not calls


def test_scale_of_a_wrong_type(pipeline: TextToImagePipeline) -> None:
    with pytest.raises(TypeError, match="guidance_scale is 'high'"):
        pipeline("a boot", guidance_scale="high")


def test_a_scheduler_without_an_x0_is_refused_with_the_reason() -> None:
    pipe = TextToImagePipeline(**tiny_components(scheduler=RePaintScheduler(clip_sample=False)))
    with pytest.raises(ValueError, match="RePaintScheduler, which is not supported: .*the known image"):
        pipe("a boot")


def test_epsilon_prediction_at_zero_terminal_snr_is_refused() -> None:
    scheduler = stable_diffusion_schedule(
        DDIMScheduler, clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipe = TextToImagePipeline(**tiny_components(scheduler=scheduler))
    with pytest.raises(ValueError, match="zero terminal SNR"):
        pipe("a boot")


@pytest.mark.parametrize(
    "default", [float("nan"), True, [{"term": "Magic"}], [{"term": "ClassifierFreeGuidance", "w": 1}]]
)
def test_default_guidance_that_is_none_of_ours(default: Any) -> None:
    with pytest.raises(ValueError):
        TextToImagePipeline(**tiny_components(), default_guidance=default)


def test_pickles_are_refused_and_safetensors_always_written(
    pipeline: TextToImagePipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline.save_pretrained(tmp_path, safe_serialization=False)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".bin", ".pt", ".pkl"}]
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(pipeline.unet.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(OSError, match="unet has pickled weights"):
        TextToImagePipeline.from_pretrained(tmp_path)


def test_a_missing_file_is_named(pipeline: TextToImagePipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="vae.*safetensors"):
        TextToImagePipeline.from_pretrained(tmp_path)


def test_folder_says_which_library_its_components_are_of(
    pipeline: TextToImagePipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vae"] == ["guided_diffusers", "VariationalAutoencoder"]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["_class_name"] == "TextToImagePipeline"


@pytest.mark.parametrize("name", PIPELINES)
def test_generators_in_a_tuple_are_those_of_a_list(name: str) -> None:
    make, positional, arguments = PIPELINES[name]
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    listed, paired = (
        pipe(*positional, generator=kind(torch.Generator().manual_seed(s) for s in (3, 4)), **arguments, **PT)
        for kind in (list, tuple)
    )
    assert torch.equal(paired.images, listed.images)
