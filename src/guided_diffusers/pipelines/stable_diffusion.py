"""What callers of StableDiffusionPipeline find on ours too: prompts encoded, latents, components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor

from guided_diffusers.core.checks import check_int
from guided_diffusers.core.declared import read
from guided_diffusers.core.denoiser import ModelDenoiser, dtype_of, has_offloading_hooks
from guided_diffusers.core.randomness import as_generators
from guided_diffusers.models.latents import decode
from guided_diffusers.pipelines.clipping import clip_before_guidance
from guided_diffusers.pipelines.drawing import noise_of
from guided_diffusers.pipelines.prompts import PromptEncoder, Prompts
from guided_diffusers.schedulers.adapt import prediction_type_of, row_of


class StableDiffusionMethods:
    """Methods of a pipeline that has Stable Diffusion's components."""

    config: Any
    unet: Any
    vae: Any
    tokenizer: Any
    text_encoder: Any
    safety_checker: Any
    feature_extractor: Any
    image_processor: Any
    scheduler: Any
    weak_unet: Any
    vae_scale_factor: int
    _execution_device: torch.device
    _cross_attention_kwargs: Mapping[str, Any] | None = None
    _kept: tuple[ModelDenoiser, tuple[Any, ...]] | None = None

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """The text encoder with its tokenizer."""
        return PromptEncoder(self.tokenizer, self.text_encoder)

    @property
    def cross_attention_kwargs(self) -> Mapping[str, Any] | None:
        """Further arguments of the network's attention processors in the current call."""
        return self._cross_attention_kwargs

    def register_to_config(self, **config: Any) -> None:
        """As always; a component may be another now, so the next call makes and checks the denoiser anew."""
        super().register_to_config(**config)  # type: ignore[misc]
        self._kept = None

    @property
    def components(self) -> dict[str, Any]:
        """The components by name: Stable Diffusion's, and the weak network where there is one."""
        components: dict[str, Any] = super().components  # type: ignore[misc]
        if components["weak_unet"] is None:
            del components["weak_unet"]
        return components

    @property
    def weak_denoiser(self) -> ModelDenoiser | None:
        """The weak network as `AutoGuidance` takes it; None where the checkpoint has none."""
        if self.weak_unet is None:
            return None
        return ModelDenoiser(self.weak_unet, prediction_type_of(self.scheduler), self._denoiser()[0].clip)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Encode prompts as Stable Diffusion does, by `prompt_encoder`; arguments are those of a call.

        Returns:
            Two tensors `(prompts * num_images_per_prompt, length, width)` in the network's dtype; the second
            is None without classifier-free guidance.

        Raises:
            ValueError: Prompts that are none, more layers to leave out than there are, or as many negative
                prompts as do not fit the prompts.
        """
        read("do_classifier_free_guidance", do_classifier_free_guidance, bool)
        check_int("num_images_per_prompt", num_images_per_prompt, 1)
        prompts = Prompts(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        if clip_skip is not None:
            self.prompt_encoder.check_clip_skip(clip_skip)
        scale = read("lora_scale", lora_scale, float | None)
        return PromptEncoder(self.tokenizer, self.text_encoder, scale)(
            prompts,
            torch.device(device),
            dtype_of(self.unet, getattr(self.text_encoder, "dtype", torch.float32)),
            num_images_per_prompt,
            do_classifier_free_guidance,
            clip_skip,
        )

    def prepare_latents(
        self,
        batch_size: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Standard normal latents `(batch_size, channels, height / f, width / f)`, float32, or the given."""
        if latents is None:
            shape = (
                batch_size,
                self.unet.config.in_channels,
                height // self.vae_scale_factor,
                width // self.vae_scale_factor,
            )
            latents = noise_of(shape, as_generators(generator), device, dtype)
        return latents.to(device, torch.promote_types(latents.dtype, torch.float32))

    def _decode(self, sample: Tensor, output_type: str, generator: Any) -> tuple[Any, list[bool] | None]:
        if output_type == "latent":
            return sample, None
        image = sample if self.vae is None else decode(self.vae, sample, generator)
        flagged = None
        if self.safety_checker is not None:
            pictures = self.image_processor.postprocess(image, output_type="pil")
            pixels = self.feature_extractor(pictures, return_tensors="pt").pixel_values
            image, flagged = self.safety_checker(
                images=image, clip_input=pixels.to(self._execution_device, image.dtype)
            )
        denormalize = [True] * len(image) if flagged is None else [not flag for flag in flagged]
        return self.image_processor.postprocess(
            image, output_type=output_type, do_denormalize=denormalize
        ), flagged

    def _denoiser(self) -> tuple[ModelDenoiser, Any]:
        """The network as a denoiser, and the scheduler of a drawing; of pixels the former clips.

        The denoiser is the one made last, where nothing that it was made of has changed.
        """
        made_of = (
            self.unet.config,
            getattr(self.scheduler, "config", None),
            has_offloading_hooks(self.unet),
        )
        scheduler, clip = (
            clip_before_guidance(self.scheduler, False) if self.config.pixels else (self.scheduler, None)
        )
        kept = self._kept
        if kept is None or any(old is not new for old, new in zip(kept[1], made_of, strict=True)):
            kept = ModelDenoiser(self.unet, row_of(self.scheduler), clip), made_of
            if isinstance(made_of[1], FrozenDict):  # of one's own scheduler it may change in place
                self._kept = kept
        return kept[0], scheduler
