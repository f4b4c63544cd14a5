"""Small pictures made large by a denoiser that sees them: super-resolution, under any guidance.

What the network sees beside its sample is in `guided_diffusers.models.super_resolution`; how a large picture
is drawn in tiles in `guided_diffusers.core.tiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from guided_diffusers.core.checks import check_int, check_that
from guided_diffusers.core.denoiser import ModelDenoiser, dtype_of
from guided_diffusers.core.labels import told_classes
from guided_diffusers.guidance import Guidance, GuidanceInterval, GuidanceSum
from guided_diffusers.models.latents import check_autoencoder, spatial_factor
from guided_diffusers.models.parts import check_text_width, check_weak
from guided_diffusers.models.super_resolution import (
    Augmentation,
    Channels,
    SuperResolutionNetwork,
)
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.clipping import clip_before_guidance
from guided_diffusers.pipelines.default_guidance import default_guidance_config
from guided_diffusers.pipelines.drawing import Asked, Drawing
from guided_diffusers.pipelines.guided import Call, GuidedMixin
from guided_diffusers.pipelines.pictures import read_pictures
from guided_diffusers.pipelines.prompts import PromptEncoder, Prompts
from guided_diffusers.pipelines.safe import SafePipeline
from guided_diffusers.pipelines.sizes import padded, small_of, tiled
from guided_diffusers.pipelines.small_pictures import SmallPictures, condition_of
from guided_diffusers.pipelines.unprompted import images_of
from guided_diffusers.schedulers.adapt import prediction_type_of

UPSCALER_LEVEL, UPSCALER_MOST, UPSCALER_GUIDANCE = 20, 350, 9.0
"""StableDiffusionUpscalePipeline's, for folders that name none."""


class UpsamplePipeline(GuidedMixin, SafePipeline):
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
        self._small_pictures = SmallPictures(channels=self.channels, augmentation=self.augmentation)
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
        if self.weak_unet is None:
            return None
        return self._denoiser(self.weak_unet, clip_before_guidance(self.scheduler, self.vae is not None)[1])

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
        mu: float | None = None,
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
            mu: The shift of the noise levels, for a scheduler with `use_dynamic_shifting`, which needs one.
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
        return self._asked(locals()).draw()

    def _asked(self, given: Mapping[str, Any]) -> Asked:
        """A call with these arguments, checked."""
        self._check_unet()
        picture, scale = read_pictures(given["image"], self.channels.picture), self.config.scale
        small = small_of(picture, scale, given["height"], given["width"])
        images, sides = len(small), [side * scale for side in small.shape[2:]]
        steps = given["num_inference_steps"]
        steps = self.config.num_inference_steps if steps is None else steps
        small = padded(small, self._unit, self._times)
        shape = (images, self.channels.sample, *(self._times * side for side in small.shape[2:]))
        drawing = Drawing.of(given, shape, num_inference_steps=steps)
        level = self._small_pictures.level(given["augmentation_level"], self.config.augmentation_level)
        prompts = self._prompts(given["prompt"], given["negative_prompt"], images)
        known = (self.config.num_classes or self.unet.config.num_class_embeds) if self.takes_class else None
        labels = told_classes(given["class_labels"], known, images)
        guided = given["guidance"], given["guidance_scale"], given["guidance_interval"]
        call = self._call_of(*guided, images)
        scheduler, clip = clip_before_guidance(self.scheduler, latents=self.vae is not None)
        tiles = given["tile_size"], given["tile_overlap"]
        denoiser = tiled(self._denoiser(self.unet, clip), *tiles, self._unit, self.factor)

        def draw() -> ImagePipelineOutput | tuple[Any]:
            device, dtype = self._execution_device, dtype_of(self.unet, small.dtype)
            seen = self._small_pictures.seen(small.to(device), level, drawing.generator, shape[2:], dtype)
            run = drawing.run(denoiser, scheduler, shape, dtype, device, call.guidance)
            encoder, with_null = PromptEncoder(self.tokenizer, self.text_encoder), call.with_null
            run.condition = condition_of(self.unet, seen, encoder, prompts, labels, with_null)
            sample = drawing.sample(self, run, call)
            drawn = images_of(self.vae, sample, drawing.output_type, drawing.generator, sides)
            self.maybe_free_model_hooks()
            return ImagePipelineOutput(images=drawn) if drawing.return_dict else (drawn,)

        return Asked(draw, drawing, (images, *sides))

    def _call_of(self, guidance: Any, scale: Any, interval: Any, images: int, rescale: float = 0.0) -> Call:
        """As always; ValueError where it asks for the null, which the network has not."""
        call = super()._call_of(guidance, scale, interval, images, rescale)
        embeds, classes = self.unet.config.get("num_class_embeds"), self.config.num_classes
        null_class = self.takes_class and classes is not None and embeds == classes + 1
        if call.with_null and not (self.takes_text or null_class):
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
        config = self.unet.config
        return 2 ** (len(config.block_out_channels) - 1) * config.get("patch_size", 1)

    def _denoiser(self, network: Any, clip: Any = None) -> ModelDenoiser:
        return ModelDenoiser(SuperResolutionNetwork(network), prediction_type_of(self.scheduler), clip)

    def _check_unet(self) -> None:
        """Raise ValueError where a network does not fit, or needs what this pipeline does not tell it."""
        told = ("class_labels", "encoder_hidden_states")
        inputs.check_told(self.unet, told)
        check_text_width(self.unet, self.text_encoder)
        if self.takes_text and None in (self.text_encoder, self.tokenizer):
            raise ValueError("unet attends to text, and the pipeline has no text_encoder or no tokenizer")

    def _prompts(self, prompt: Any, negative_prompt: Any, images: int) -> Prompts | None:
        """What the network is told in words; ValueError where it is told none, or not as many as images."""
        self._check_taken("prompt", prompt, self.takes_text)
        if not self.takes_text:
            self._check_taken("negative_prompt", negative_prompt, False)
            return None
        prompts = Prompts(prompt=prompt, negative_prompt=negative_prompt)
        if prompts.count not in (1, images):
            raise ValueError(f"prompt has {prompts.count} entries for {images} images; give 1 or {images}")
        return prompts

    def _check_taken(self, name: str, value: Any, taken: bool) -> None:
        """Raise ValueError for what the network is not told, or where it is to be told and is not."""
        allowed = "one for all, or one an image" if taken else "None: the network is told none"
        check_that(taken == (value is not None), name, value, allowed)
