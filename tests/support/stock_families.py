"""Pipelines of diffusers by families: each with tiny random networks, and what a call of it is given.

No text encoders: prompts are embeddings. A family's `build` gives the pipeline, its `arguments` what a call
takes beside the number of steps; `gamma` is the pipeline's own scale in our terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

STEPS = 5
GAMMA = 4.0


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stable_diffusion(cls: type, **overrides: Any) -> Any:
    """A scheduler with Stable Diffusion's betas."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return cls(**betas, **overrides)


def tiny_vae(**overrides: Any) -> diffusers.AutoencoderKL:
    config = {
        "block_out_channels": (4,),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "latent_channels": 4,
        "norm_num_groups": 2,
        "sample_size": 16,
    }
    return diffusers.AutoencoderKL(**{**config, **overrides}).eval()


def tiny_unet(**overrides: Any) -> diffusers.UNet2DConditionModel:
    config = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**{**config, **overrides}).eval()


def embeds(width: int = 16, tokens: int = 6, batch: int = 1, **names: int) -> dict[str, torch.Tensor]:
    """Embeddings of a prompt and a negative one, and pooled ones of the widths in `names`."""
    given = {
        "prompt_embeds": draw(batch, tokens, width, seed=1),
        "negative_prompt_embeds": draw(batch, tokens, width, seed=2),
    }
    for seed, (name, size) in enumerate(names.items(), 3):
        given[name] = draw(batch, size, seed=seed)
        given[f"negative_{name}"] = draw(batch, size, seed=seed + 10)
    return given


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of pipelines.

    Attributes:
        build: Makes the pipeline.
        arguments: Of a call, beside the steps, the latents and the output type.
        latents: The shape of the latents as a call takes them; None where it takes none.
        scale: The name of the argument that switches the null on.
        gamma: The value given to it.
        ours: The same in our terms.
        batches: Batch of the network's call under both, one or two calls.
        network: The name of the network.
    """

    build: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]]
    latents: tuple[int, ...] | None = (1, 4, 16, 16)
    scale: str = "guidance_scale"
    gamma: float = GAMMA
    ours: float = GAMMA
    network: str = "unet"
    images: Callable[[Any], Any] = field(default=lambda output: output[0])

    def call(self, pipeline: Any, steps: int = STEPS, **overrides: Any) -> torch.Tensor:
        given = {self.scale: self.gamma, **self.arguments(), "num_inference_steps": steps}
        given |= {"output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        if self.latents is not None:
            given["latents"] = draw(*self.latents, seed=9)
        return torch.as_tensor(self.images(pipeline(**{**given, **overrides})))


def _sd(scheduler: Any, unet: Any = None, cls: Any = diffusers.StableDiffusionPipeline, **more: Any) -> Any:
    parts = {"vae": tiny_vae(), "text_encoder": None, "tokenizer": None, "unet": unet or tiny_unet()}
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return cls(**parts, scheduler=scheduler, **more)


def _sdxl(**overrides: Any) -> Any:
    unet = tiny_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=overrides.pop("ids", 6) * 4 + 8,
    )
    parts = {name: None for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    scheduler = stable_diffusion(diffusers.EulerDiscreteScheduler)
    cls = overrides.pop("cls", diffusers.StableDiffusionXLPipeline)
    return cls(vae=tiny_vae(), unet=unet, scheduler=scheduler, add_watermarker=False, **parts, **overrides)


def _sd3(**overrides: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=16,
    ).eval()
    names = [name + end for end in ("", "_2", "_3") for name in ("text_encoder", "tokenizer")]
    parts = {**{name: None for name in names}, "vae": tiny_vae(shift_factor=0.1), "transformer": transformer}
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    cls = overrides.pop("cls", diffusers.StableDiffusion3Pipeline)
    return cls(**parts, **overrides)


def _flux(guidance_embeds: bool = False) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    ).eval()
    parts = {name: None for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.FluxPipeline(
        vae=tiny_vae(shift_factor=0.1), transformer=transformer, scheduler=scheduler, **parts
    )


def _dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=16,
        num_embeds_ada_norm=1000,
    ).eval()
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(transformer, tiny_vae(), scheduler)


FAMILIES: dict[str, Family] = {
    "sd1": Family(
        build=lambda: _sd(stable_diffusion(diffusers.PNDMScheduler, skip_prk_steps=True)), arguments=embeds
    ),
    "sdxl": Family(build=_sdxl, arguments=lambda: embeds(pooled_prompt_embeds=8)),
    "sd3": Family(build=_sd3, arguments=lambda: embeds(pooled_prompt_embeds=8), network="transformer"),
    "flux": Family(
        build=_flux,
        arguments=lambda: {**embeds(pooled_prompt_embeds=8), "height": 16, "width": 16},
        latents=(1, 64, 16),
        scale="true_cfg_scale",
        network="transformer",
    ),
    "dit": Family(
        build=_dit,
        arguments=lambda: {"class_labels": [3]},
        latents=None,
        network="transformer",
    ),
}
