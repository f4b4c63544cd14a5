"""Small pictures made large by a denoiser that sees them: super-resolution, under any guidance.

What the network sees beside its sample is in `guided_diffusers.models.super_resolution`; how a large picture
is drawn in tiles in `guided_diffusers.core.tiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from guided_diffusers.core.checks import check_int, shown
from guided_diffusers.core.condition import Condition
from guided_diffusers.core.denoiser import ModelDenoiser, dtype_of
from guided_diffusers.guidance import Guidance, GuidanceInterval, GuidanceSum
from guided_diffusers.models import latents as latent_codes
from guided_diffusers.models.labels import class_ids
from guided_diffusers.models.latents import check_autoencoder, spatial_factor
from guided_diffusers.models.parts import check_text_width, check_weak
from guided_diffusers.models.super_resolution import (
    LOW_RES,
    Augmentation,
    Channels,
    SuperResolutionNetwork,
)
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.call import Call, default_guidance_config
from guided_diffusers.pipelines.clipping import clip_before_guidance
from guided_diffusers.pipelines.drawing import Drawing
from guided_diffusers.pipelines.guided import GuidedPipeline
from guided_diffusers.pipelines.noise import noise_of
from guided_diffusers.pipelines.pictures import read_pictures
from guided_diffusers.pipelines.prompts import PromptEncoder, Prompts
from guided_diffusers.pipelines.sizes import padded, small_of, tiled
from guided_diffusers.schedulers.adapt import prediction_type_of

UPSCALER_LEVEL, UPSCALER_MOST, UPSCALER_GUIDANCE = 20, 350, 9.0
"""StableDiffusionUpscalePipeline's, for folders that name none."""


class UpsamplePipeline(GuidedPipeline):
    """Makes small pictures large: pictures of any size, by `scale`.

    A folder saved by StableDiffusionUpscalePipeline loads here; OpenAI's upsamplers come from
    `convert.adm_unet`. A small picture is noised to `augmentation_level` before the network sees it, where
    the network was trained so. A picture of any size is drawn whole, or in overlapping tiles.

    Args:
        unet: A `UNet2DModel`, or, with text, a `UNet2DConditionModel`, whose input channels are those of the
            sample and the picture (see `models.super_resolution.Channels`).
        scheduler: Any of `guided_diffusers.schedulers.SUPPORTED_SCHEDULERS`, or one that says its levels.
        low_res_scheduler: A `DDPMScheduler`, the process of the small pictures' noise; None for a network
            that was trained without.
        vae: The autoencoder of the latents that the network draws; None for pixels.
        text_encoder: As of TextToImagePipeline; None for a network without text.
        tokenizer: Its tokenizer.
        weak_unet: The weak network of autoguidance; None for none.
        scale: How many times larger the result is; None is the autoencoder's factor.
        image_size: The side of the large pictures of training, which a cascade compares; None: any.
        max_noise_level: The highest `augmentation_level`: a timestep of `low_res_scheduler`.
        augmentation_level: That of a call that names none.
        num_inference_steps: Those of a call that names none.
        num_classes: Of a network of classes; one embedding more than classes is its null class, the last.
        default_guidance: The guidance of a call that names none: a Guidance, its `to_config()` value, or a
            scale.

    Raises:
        ValueError: Parts that do not fit each other, no scale for pixels, or a default that is none.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["low_res_scheduler", "vae", "text_encoder", "tokenizer", "weak_unet"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        low_res_scheduler: Any = None,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        weak_unet: Any = None,
        scale: int | None = None,
        image_size: int | None = None,
        max_noise_level: int = UPSCALER_MOST,
        augmentation_level: int = UPSCALER_LEVEL,
        num_inference_steps: int = 50,
        num_classes: int | None = None,
        default_guidance: Any = None,
    ) -> None:
        super().__init__()
        check_autoencoder(vae)
        check_weak(unet, weak_unet)
        if vae is None and scale is None:
            raise ValueError("scale is None without a vae; allowed: how many times larger the result is")
        factor = 1 if vae is None else spatial_factor(vae)
        scale = check_int("scale", factor if scale is None else scale, 1)
        if scale % factor:
            raise ValueError(f"scale is {scale}; allowed: a multiple of the vae's factor, {factor}")
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            low_res_scheduler=low_res_scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            weak_unet=weak_unet,
        )
        self.factor, self.channels = factor, Channels.of(unet.config, vae)
        self.augmentation = None
        if low_res_scheduler is not None:
            self.augmentation = Augmentation(low_res_scheduler, max_noise_level)
            check_int("augmentation_level", augmentation_level, 0, self.augmentation.most)
        self.register_to_config(
            scale=scale,
            image_size=image_size,
            max_noise_level=max_noise_level,
            augmentation_level=augmentation_level,
            num_inference_steps=num_inference_steps,
            num_classes=num_classes,
            default_guidance=default_guidance_config(
                default_guidance, **({} if weak_unet is None else {"weak": weak_unet})
            ),
        )

    @property
    def takes_text(self) -> bool:
        """Whether the network is told a prompt."""
        return self.unet.config.get("cross_attention_dim") is not None

    @property
    def takes_class(self) -> bool:
        """Whether the network is told a class: it has `class_labels`, and they are not the level."""
        told = getattr(self.unet, "class_embedding", None) is not None
        return told and (self.augmentation is None or self.channels.told)

    @property
    def weak_denoiser(self) -> ModelDenoiser | None:
        """The weak network as `AutoGuidance` takes it; None where the checkpoint has none."""
        return None if self.weak_unet is None else self._denoiser(self.weak_unet)

    def call_guidance(self, guidance_scale: Any = None, guidance_interval: Any = None) -> Guidance:
        """As always; without a default, a network without text is not guided."""
        if guidance_scale is None and self.config.default_guidance is None:
            if not self.takes_text:
                return GuidanceSum()
            guidance_scale = UPSCALER_GUIDANCE
        return super().call_guidance(guidance_scale, guidance_interval)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        augmentation_level: int | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        class_labels: Any = None,
        height: int | None = None,
        width: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance: Guidance | None = None,
        guidance_interval: GuidanceInterval | Sequence[float] | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Make pictures large.

        Args:
            image: Small pictures of one size: PIL images, files, arrays or tensors, see `read_pictures`.
            prompt: What they show, one for all or one each; for a network with text.
            num_inference_steps: Steps of the scheduler; None is the checkpoint's.
            guidance_scale: gamma of classifier-free guidance, a number or one an image; None is the
                checkpoint's `default_guidance`.
            augmentation_level: How much noise the small picture gets, 0 (none) to the checkpoint's
                `max_noise_level`: more forgives more of what a base model got wrong, and keeps less of the
                picture. None is the checkpoint's.
            negative_prompt: What to guide away from; empty by default.
            eta: Noise of DDIM, 0 (none) to 1; other schedulers ignore it.
            generator: One, or one an image; it draws the small picture's noise first.
            latents: Standard normal noise to start from, of the sample's shape.
            output_type: "pil", "np", "pt" (values in [0, 1]) or "latent" (the network's sample).
            return_dict: False returns a tuple.
            callback_on_step_end: `(pipeline, index, timestep, tensors) -> tensors` after each step; it may
                replace the latents and set `pipeline._interrupt`.
            callback_on_step_end_tensor_inputs: Which tensors it gets, of `_callback_tensor_inputs`.
            class_labels: Classes, one for all or one an image; for a network of classes.
            height: Of the result, in pixels; by default `scale` times the picture's, which is resized first
                where it is given.
            width: Likewise.
            timesteps: Custom timesteps, descending, for schedulers that take them.
            sigmas: Custom sigmas, descending, for schedulers that take them.
            guidance: Any sum of guidance terms, instead of `guidance_scale`.
            guidance_interval: Where guidance is active: a GuidanceInterval or a pair (low, high] in sigma /
                alpha.
            tile_size: The side of overlapping tiles in pixels of the result, which are drawn one after
                another: less memory, and a network sees the size that it was trained on. None: whole.
            tile_overlap: Of neighbouring tiles, in pixels of the result; a quarter of a tile by default.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of them.

        Raises:
            ValueError: An argument that is out of range, of the wrong type or shape, or contradicts another,
                such as a picture larger than the target; each message names it. Raised before anything is
                computed.
        """
        self._check_unet()
        small = small_of(read_pictures(image, self.channels.picture), self.config.scale, height, width)
        images, sides = len(small), [side * self.config.scale for side in small.shape[2:]]
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        drawing = Drawing(
            schedule={"num_inference_steps": steps, "timesteps": timesteps, "sigmas": sigmas},
            eta=eta,
            generator=generator,
            latents=latents,
            output_type=output_type,
            return_dict=return_dict,
            callback=callback_on_step_end,
            tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        small = padded(small, self._unit, self._times).to(self._execution_device)
        shape = (images, self.channels.sample, *(self._times * side for side in small.shape[2:]))
        drawing.check(shape, self._callback_tensor_inputs)
        level = self._level(augmentation_level)
        prompts = self._prompts(prompt, negative_prompt, images)
        labels = self._labels(class_labels, images)
        call = self._call_of(guidance, guidance_scale, guidance_interval, images)
        scheduler, clip = clip_before_guidance(self.scheduler, latents=self.vae is not None)
        denoiser = tiled(self._denoiser(self.unet, clip), tile_size, tile_overlap, self._unit, self.factor)
        dtype = dtype_of(self.unet, small.dtype)
        seen = self._seen(small, level, generator, shape[2:], dtype)
        noise = (
            noise_of(shape, generator, small.device, dtype) if latents is None else latents.to(small.device)
        )
        run = drawing.run(denoiser, scheduler, noise, call)
        run.condition = self._condition(seen, prompts, labels, call.current.needs_null)
        sample = drawing.sample(self, run, call)
        result = self._images(sample, sides, output_type, generator)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def _call_of(self, guidance: Any, scale: Any, interval: Any, images: int, rescale: float = 0.0) -> Call:
        """As always; ValueError where it asks for the null, which the network has not."""
        call = super()._call_of(guidance, scale, interval, images, rescale)
        embeds, classes = self.unet.config.get("num_class_embeds"), self.config.num_classes
        null_class = self.takes_class and classes is not None and embeds == classes + 1
        if call.current.needs_null and not (self.takes_text or null_class):
            raise ValueError(
                "guidance asks for the null condition; allowed: guidance_scale None or 1, or terms that need "
                "none, because this network is told no text and has no null class (num_classes + 1 of them)"
            )
        return call

    @property
    def _times(self) -> int:
        """Positions of the sample's side for one pixel of the small picture's."""
        return self.config.scale // self.factor

    @property
    def _unit(self) -> int:
        """Sides of a sample that the network takes are multiples of this."""
        return 2 ** (len(self.unet.config.block_out_channels) - 1)

    def _denoiser(self, network: Any, clip: Any = None) -> ModelDenoiser:
        return ModelDenoiser(SuperResolutionNetwork(network), prediction_type_of(self.scheduler), clip)

    def _guidance_networks(self) -> dict[str, Any]:
        return {} if self.weak_unet is None else {"weak": self.weak_denoiser}

    def _check_unet(self) -> None:
        """Raise ValueError where a network does not fit, or needs what this pipeline does not tell it."""
        told = ("class_labels", "encoder_hidden_states")
        inputs.check_told(self.unet, told)
        check_text_width(self.unet, self.text_encoder)
        if self.takes_text and None in (self.text_encoder, self.tokenizer):
            raise ValueError("unet attends to text, and the pipeline has no text_encoder or no tokenizer")

    def _level(self, level: Any) -> int:
        if self.augmentation is None:
            if level not in (None, 0):
                raise ValueError(
                    f"augmentation_level is {shown(level)}; allowed: None or 0, because this network was "
                    "trained on small pictures without noise (it has no low_res_scheduler)"
                )
            return 0
        level = self.config.augmentation_level if level is None else level
        return check_int("augmentation_level", level, 0, self.augmentation.most)

    def _prompts(self, prompt: Any, negative_prompt: Any, images: int) -> Prompts | None:
        """What the network is told in words; ValueError where it is told none, or not as many as images."""
        self._check_taken("prompt", prompt, self.takes_text)
        if not self.takes_text:
            self._check_taken("negative_prompt", negative_prompt, False)
            return None
        prompts = Prompts(prompt=prompt, negative_prompt=negative_prompt)
        prompts.check()
        if len(prompts) not in (1, images):
            raise ValueError(f"prompt has {len(prompts)} entries for {images} images; give 1 or {images}")
        return prompts

    def _labels(self, classes: Any, images: int) -> Tensor | None:
        """The classes that the network is told, one an image."""
        self._check_taken("class_labels", classes, self.takes_class)
        if not self.takes_class:
            return None
        known = self.config.num_classes or self.unet.config.num_class_embeds
        labels = class_ids(classes, known, argument="class_labels").reshape(-1)
        if len(labels) not in (1, images):
            raise ValueError(
                f"class_labels has {len(labels)} classes for {images} images; give 1 or {images}"
            )
        return labels.expand(images).to(self._execution_device)

    def _check_taken(self, name: str, value: Any, taken: bool) -> None:
        """Raise ValueError for what the network is not told, or where it is to be told and is not."""
        if taken != (value is not None):
            allowed = "one for all, or one an image" if taken else "None: the network is told none"
            raise ValueError(f"{name} is {shown(value)}; allowed: {allowed}")

    def _seen(
        self, small: Tensor, level: int, generator: Any, sides: Sequence[int], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """What the network sees and is told of the small picture."""
        if self.augmentation is None:
            return {LOW_RES: self.channels.beside(small, sides, None)}
        noise = noise_of(small.shape, generator, small.device, dtype).to(small.dtype)
        small, drawn = self.augmentation.noised(small, noise, torch.full((len(small),), level))
        told = {} if self.channels.told else {"class_labels": drawn.timestep.to(small.device)}
        return {LOW_RES: self.channels.beside(small, sides, drawn.sigma), **told}

    def _condition(
        self, seen: Mapping[str, Tensor], prompts: Prompts | None, labels: Tensor | None, with_null: bool
    ) -> Condition:
        """What the network is told, and where guidance asks for it, the null of it."""
        if prompts is not None:
            images, dtype = len(seen[LOW_RES]), dtype_of(self.unet, torch.float32)
            encoder = PromptEncoder(self.tokenizer, self.text_encoder)
            times = images // len(prompts)
            return encoder.condition(prompts, self._execution_device, dtype, times, with_null, None, seen, {})
        if labels is None:
            return Condition(seen, seen)
        null = torch.full_like(labels, self.unet.config.num_class_embeds - 1)
        return Condition({**seen, "class_labels": labels}, {**seen, "class_labels": null})

    def _images(self, sample: Tensor, sides: Sequence[int], output_type: str, generator: Any) -> Any:
        """The result without what was padded, decoded; "latent" leaves the sample as it is."""
        if output_type == "latent":
            return sample
        if self.vae is not None:
            sample = latent_codes.decode(self.vae, sample, generator)
        return VaeImageProcessor().postprocess(sample[..., : sides[0], : sides[1]], output_type)
