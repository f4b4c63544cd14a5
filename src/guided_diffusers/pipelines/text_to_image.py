"""Text-to-image generation under guidance, with Stable Diffusion's components and arguments.

Thin by design: it checks inputs, builds a Condition and a Denoiser, drives a `Run`, decodes. What guidance
does is in `guided_diffusers.guidance`; what a scheduler does is in the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, PreTrainedModel, PreTrainedTokenizerBase

from guided_diffusers.core.checks import check_number, check_that
from guided_diffusers.core.declared import read
from guided_diffusers.core.denoiser import dtype_of
from guided_diffusers.core.networks import guidance_embedding, needed_arguments
from guided_diffusers.guidance import Guidance, GuidanceInterval
from guided_diffusers.models.latents import spatial_factor
from guided_diffusers.models.parts import check_text_width, check_vae, check_weak
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.adapters import AdaptersMixin
from guided_diffusers.pipelines.default_guidance import default_guidance_config
from guided_diffusers.pipelines.drawing import Asked, Drawing, latent_shape
from guided_diffusers.pipelines.guided import Call, GuidedMixin, told_scale
from guided_diffusers.pipelines.prompts import PromptEncoder, Prompts
from guided_diffusers.pipelines.safe import SafePipeline
from guided_diffusers.pipelines.stable_diffusion import StableDiffusionMethods
from guided_diffusers.schedulers.families import config_of

logger = logging.get_logger(__name__)


class TextToImagePipeline(
    GuidedMixin, StableDiffusionMethods, SafePipeline, StableDiffusionMixin, AdaptersMixin
):
    """Text-to-image generation with classifier-free and any other guidance.

    A folder saved by StableDiffusionPipeline loads here. Guidance is classifier-free by `guidance_scale`, or
    any sum of terms by `guidance`. Two things differ from Stable Diffusion: a `guidance_scale` below 1 means
    what the formula says (0 is unconditional), and latents stay in float32 whatever the network's dtype.

    Args:
        vae: `VariationalAutoencoder`, `AutoencoderKL` or another of `models.latents.IMAGE_AUTOENCODERS`; None
            for pixels, or to draw latents alone.
        text_encoder: `CLIPTextModel`, or another of transformers whose output has `last_hidden_state`, such
            as `T5EncoderModel`. Padding is hidden from it where its configuration says `use_attention_mask`.
        tokenizer: Its tokenizer; prompts are padded and cut to its `model_max_length`.
        unet: `UNet2DConditionModel`.
        scheduler: Any of `guided_diffusers.schedulers.SUPPORTED_SCHEDULERS`. A `clip_sample` in its
            configuration, which would clip latents after guidance, is switched off in a copy; with `pixels`
            it clips before guidance.
        safety_checker: As in Stable Diffusion; may be None.
        feature_extractor: As in Stable Diffusion; may be None unless there is a safety checker.
        image_encoder: Of an IP-Adapter; may be None.
        requires_safety_checker: Kept with the checkpoint.
        weak_unet: The weak network of autoguidance, such as a snapshot of the same training; None for none.
        default_guidance: The guidance of a call that names none: a Guidance, its `to_config()` value, or a
            scale.
        pixels: The network draws pixels in [-1, 1], without a vae; kept with the checkpoint.

    Raises:
        ValueError: `pixels` with a vae, a safety checker without feature extractor, components that do not
            fit each other, or a default guidance that is none; at a call and in `from_pretrained`, a network
            that has to be told what this pipeline does not tell it, such as that of Stable Diffusion XL.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components = ["vae", "safety_checker", "feature_extractor", "image_encoder", "weak_unet"]
    _exclude_from_cpu_offload = ["safety_checker"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: CLIPVisionModelWithProjection = None,
        requires_safety_checker: bool = True,
        default_guidance: Any = None,
        weak_unet: UNet2DConditionModel = None,
        pixels: bool = False,
    ) -> None:
        super().__init__()
        if safety_checker is not None and feature_extractor is None:
            raise ValueError(
                "safety_checker was given without feature_extractor: give both, or safety_checker=None"
            )
        check_that(not (read("pixels", pixels, bool) and vae is not None), "vae", vae, "None with pixels")
        if scheduler is not None and not pixels and config_of(scheduler, "clip_sample"):
            scheduler = type(scheduler).from_config(scheduler.config, clip_sample=False)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            weak_unet=weak_unet,
        )
        self._check_parts()
        self.register_to_config(
            requires_safety_checker=requires_safety_checker,
            pixels=pixels,
            default_guidance=default_guidance_config(
                default_guidance, **({} if weak_unet is None else {"weak": weak_unet})
            ),
        )
        self.vae_scale_factor = spatial_factor(vae) if vae is not None else 1 if pixels else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    def _check_parts(self) -> None:
        """Raise ValueError where networks are of other latents than each other; each message names both."""
        inputs.check_sees_noise(self.unet)
        check_vae(self.unet, self.vae)
        check_weak(self.unet, self.weak_unet)

    def _check_unet(self) -> None:
        """Raise ValueError where a network does not fit, or needs what this pipeline does not tell it."""
        for name, network in (("unet", self.unet), ("weak_unet", self.weak_unet)):
            inputs.check_unet(network, ("encoder_hidden_states", "timestep_cond"), name)
        if self.weak_unet is not None and needed_arguments(self.weak_unet) != needed_arguments(self.unet):
            raise ValueError("weak_unet and unet differ in time_cond_proj_dim; allowed: both alike")
        self._check_parts()
        check_text_width(self.unet, self.text_encoder)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        guidance: Guidance | None = None,
        guidance_interval: GuidanceInterval | Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        mu: float | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Generate images for prompts.

        Args:
            prompt: One prompt or several.
            height: In pixels, a multiple of the autoencoder's factor; by default the network's.
            width: Likewise.
            num_inference_steps: Steps of the scheduler; not used with `timesteps` or `sigmas`.
            timesteps: Custom timesteps, descending, for schedulers that take them.
            sigmas: Custom sigmas, descending, for schedulers that take them.
            guidance_scale: gamma of classifier-free guidance, a number or one an image: 1 is the conditional
                model and runs the network once, 0 the unconditional one. None uses the checkpoint's
                `default_guidance` (7.5 where it has none). A distilled network (`time_cond_proj_dim`) is told
                it, once for the whole call, and runs once.
            negative_prompt: What to guide away from, one for all or one a prompt; the empty prompt by
                default.
            num_images_per_prompt: Images a prompt.
            eta: Noise of DDIM, 0 (none) to 1; other schedulers ignore it.
            generator: One, or one an image: with one an image, what is drawn does not depend on the batch.
            latents: Standard normal noise `(images, channels, height / f, width / f)` to start from.
            prompt_embeds: Instead of `prompt`: `(prompts, length, width)`.
            negative_prompt_embeds: Instead of `negative_prompt`.
            output_type: "pil", "np" (batch, height, width, channels in [0, 1]), "pt" (batch, channels,
                height, width in [0, 1]) or "latent".
            return_dict: False returns a tuple.
            cross_attention_kwargs: Further arguments of the network's attention processors.
            clip_skip: Layers of a CLIP text encoder to leave out at its end.
            callback_on_step_end: `(pipeline, index, timestep, tensors) -> tensors` after each step; it may
                replace the tensors and set `pipeline._guidance_scale` or `pipeline._interrupt`. While
                guidance asks for the null, `prompt_embeds` has its rows before those of the prompts; one that
                gives the latter back alone, and sets a scale of at most 1, switches that guidance off.
            callback_on_step_end_tensor_inputs: Which tensors it gets, of `_callback_tensor_inputs`.
            guidance: Any sum of guidance terms, instead of `guidance_scale`.
            guidance_interval: Where guidance is active: a GuidanceInterval or a pair (low, high] in sigma /
                alpha.
            guidance_rescale: phi of `RescaledGuidance`, 0 (none) to 1, for classifier-free guidance.
            mu: The shift of the noise levels, for a scheduler with `use_dynamic_shifting`, which needs one.
            ip_adapter_image: What an IP-Adapter is to see: an image, or one for each adapter.
            ip_adapter_image_embeds: Its embeddings instead, `(1 or images, tokens, width)` a tensor for each
                adapter, and before them as many of the null where guidance asks for the null.

        Returns:
            `StableDiffusionPipelineOutput` with `images` (and `nsfw_content_detected` of a safety checker),
            or a tuple of the two.

        Raises:
            ValueError: An argument that is out of range, of the wrong type or shape, or contradicts another;
                each message names it. Raised before anything is computed.
        """
        return self._asked(locals()).draw()

    def _asked(self, given: Mapping[str, Any]) -> Asked:
        """A call with these arguments, checked."""
        if self._kept is None:  # the first call, or one after a component was replaced
            self._check_unet()
        config = self.unet.config
        width = config.get("cross_attention_dim") if config.get("encoder_hid_dim") is None else None
        prompts = Prompts(
            prompt=given["prompt"],
            negative_prompt=given["negative_prompt"],
            prompt_embeds=given["prompt_embeds"],
            negative_prompt_embeds=given["negative_prompt_embeds"],
            width=width if isinstance(width, int) else None,
        )
        images, sides = given["num_images_per_prompt"], (given["height"], given["width"])
        shape = latent_shape(self.unet, self.vae_scale_factor, prompts.count, images, *sides)
        drawing = Drawing.of(given, shape, self._callback_tensor_inputs)
        if self.vae is None and not self.config.pixels and drawing.output_type != "latent":
            raise ValueError(f'output_type is {drawing.output_type!r}; allowed: "latent", as vae is None')
        told: dict[str, Any] = {}
        clip_skip = given["clip_skip"]
        if (kwargs := given["cross_attention_kwargs"]) is not None:
            inputs.check_mapping("cross_attention_kwargs", kwargs)
            read("cross_attention_kwargs.scale", kwargs.get("scale"), float | None)
            told["cross_attention_kwargs"] = kwargs
        if clip_skip is not None:
            self.prompt_encoder.check_clip_skip(clip_skip)
        rescale = given["guidance_rescale"]
        if type(rescale) is not float or rescale:
            check_number("guidance_rescale", rescale, 0, 1)
        scale, interval = given["guidance_scale"], given["guidance_interval"]
        call = self._call_of(given["guidance"], scale, interval, shape[0], rescale)
        if (distilled := config.get("time_cond_proj_dim")) is not None:
            call = told_scale(call, distilled)
        seen: Any = given["ip_adapter_image"], given["ip_adapter_image_embeds"]
        adapted = getattr(self.unet, "encoder_hid_proj", None) is not None
        if not (adapted or any(each is not None for each in seen)) or not self.check_ip_adapter(*seen):
            seen = None
        draw = partial(self._draw, prompts, drawing, call, shape, clip_skip, told, seen)
        height, width = (side * self.vae_scale_factor for side in shape[2:])
        return Asked(draw, drawing, (shape[0], height, width))

    def _draw(
        self,
        prompts: Prompts,
        drawing: Drawing,
        call: Call,
        shape: tuple[int, int, int, int],
        clip_skip: int | None,
        told: dict[str, Any],
        seen: tuple[Any, Any] | None,
    ) -> StableDiffusionPipelineOutput | tuple:
        """The images of a checked call; a schedule that cannot be is refused before prompts are encoded."""
        with_null = call.with_null
        if prompts.negative_prompt is not None and drawing.callback_on_step_end is None and not with_null:
            logger.warning(
                "negative_prompt has no part in this call: its guidance does nothing at this scale"
            )
        device, (denoiser, scheduler) = self._execution_device, self._denoiser()
        dtype = dtype_of(self.unet, torch.float32)
        run = drawing.run(denoiser, scheduler, shape, dtype, device, call.guidance)
        if (width := self.unet.config.get("time_cond_proj_dim")) is not None:
            told["timestep_cond"] = guidance_embedding(call.scale, shape[0], width).to(device, dtype)
        self._cross_attention_kwargs = told.get("cross_attention_kwargs")
        lora_scale = (self._cross_attention_kwargs or {}).get("scale")
        null: dict[str, Any] = {}
        if seen is not None:
            own, null = self.told_of_images(*seen, with_null, shape[0], dtype)
            told |= own
        times = shape[0] // prompts.count
        encoder = PromptEncoder(self.tokenizer, self.text_encoder, lora_scale)
        run.condition = encoder.condition(prompts, device, dtype, times, with_null, clip_skip, told, null)
        sample = drawing.sample(self, run, call)
        drawn, flagged = self._decode(sample, drawing.output_type, drawing.generator)
        self.maybe_free_model_hooks()
        if not drawing.return_dict:
            return drawn, flagged
        return StableDiffusionPipelineOutput(images=drawn, nsfw_content_detected=flagged)
