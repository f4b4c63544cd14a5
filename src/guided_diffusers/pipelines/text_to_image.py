"""Text-to-image generation under guidance, with Stable Diffusion's components and arguments.

Thin by design: it checks inputs, builds a Condition and a Denoiser, calls the sampling loop, decodes. What
guidance does is in `guided_diffusers.guidance`; what a scheduler does is in the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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

from guided_diffusers.core.checks import check_int, check_number
from guided_diffusers.core.declared import read
from guided_diffusers.core.denoiser import ModelDenoiser, dtype_of
from guided_diffusers.core.networks import guidance_embedding, needed_arguments
from guided_diffusers.guidance import Guidance, GuidanceInterval
from guided_diffusers.models.latents import decode, spatial_factor
from guided_diffusers.models.parts import check_text_width, check_vae, check_weak
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.adapters import AdaptersMixin
from guided_diffusers.pipelines.call import Call, default_guidance_config, told_scale
from guided_diffusers.pipelines.drawing import Drawing
from guided_diffusers.pipelines.guided import GuidedPipeline
from guided_diffusers.pipelines.noise import noise_of
from guided_diffusers.pipelines.prompts import PromptEncoder, Prompts
from guided_diffusers.schedulers.adapt import config_of, prediction_type_of, row_of

logger = logging.get_logger(__name__)


class TextToImagePipeline(GuidedPipeline, StableDiffusionMixin, AdaptersMixin):
    """Text-to-image generation with classifier-free and any other guidance.

    A folder saved by StableDiffusionPipeline loads here. Guidance is classifier-free by `guidance_scale`, or
    any sum of terms by `guidance`. Two things differ from Stable Diffusion: a `guidance_scale` below 1 means
    what the formula says (0 is unconditional), and latents stay in float32 whatever the network's dtype.

    Args:
        vae: `VariationalAutoencoder`, `AutoencoderKL` or another of `models.latents.IMAGE_AUTOENCODERS`.
        text_encoder: `CLIPTextModel`, or another of transformers whose output has `last_hidden_state`, such
            as `T5EncoderModel`. Padding is hidden from it where its configuration says `use_attention_mask`.
        tokenizer: Its tokenizer; prompts are padded and cut to its `model_max_length`.
        unet: `UNet2DConditionModel`.
        scheduler: Any of `guided_diffusers.schedulers.SUPPORTED_SCHEDULERS`. A `clip_sample` in its
            configuration, which would clip latents after guidance, is switched off in a copy.
        safety_checker: As in Stable Diffusion; may be None.
        feature_extractor: As in Stable Diffusion; may be None unless there is a safety checker.
        image_encoder: Of an IP-Adapter; may be None.
        requires_safety_checker: Kept with the checkpoint.
        weak_unet: The weak network of autoguidance, such as a snapshot of the same training; None for none.
        default_guidance: The guidance of a call that names none: a Guidance, its `to_config()` value, or a
            scale.

    Raises:
        ValueError: A safety checker without feature extractor, components that do not fit each other, or a
            default guidance that is none; at a call and in `from_pretrained`, a network that has to be told
            what this pipeline does not tell it, such as that of Stable Diffusion XL.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor", "image_encoder", "weak_unet"]
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
    ) -> None:
        super().__init__()
        if safety_checker is not None and feature_extractor is None:
            raise ValueError(
                "safety_checker was given without feature_extractor: give both, or safety_checker=None"
            )
        if scheduler is not None and config_of(scheduler, "clip_sample"):
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
            default_guidance=default_guidance_config(
                default_guidance, **({} if weak_unet is None else {"weak": weak_unet})
            ),
        )
        self.vae_scale_factor = spatial_factor(vae) if vae is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._cross_attention_kwargs: Mapping[str, Any] | None = None
        self._fits: Any = None  # the configuration of the components that were last found to fit

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
        self._fits = self.config

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """The text encoder with its tokenizer."""
        return PromptEncoder(self.tokenizer, self.text_encoder)

    @property
    def cross_attention_kwargs(self) -> Mapping[str, Any] | None:
        """Further arguments of the network's attention processors in the current call."""
        return self._cross_attention_kwargs

    @property
    def components(self) -> dict[str, Any]:
        """The components by name: Stable Diffusion's, and the weak network where there is one."""
        components = super().components
        if components["weak_unet"] is None:
            del components["weak_unet"]
        return components

    @property
    def weak_denoiser(self) -> ModelDenoiser | None:
        """The weak network as `AutoGuidance` takes it; None where the checkpoint has none."""
        if self.weak_unet is None:
            return None
        return ModelDenoiser(self.weak_unet, prediction_type_of(self.scheduler))

    def _guidance_networks(self) -> dict[str, Any]:
        return {} if self.weak_unet is None else {"weak": self.weak_denoiser}

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
        prompts.check()
        if clip_skip is not None:
            self.prompt_encoder.check_clip_skip(clip_skip)
        scale = read("lora_scale", lora_scale, float | None)
        return replace(self.prompt_encoder, lora_scale=scale).repeated(
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
            latents = noise_of(shape, generator, device, dtype)
        return latents.to(device, torch.promote_types(latents.dtype, torch.float32))

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
        if self._fits is not self.config:  # the first call, or one after a component was replaced
            self._check_unet()
        prompts = Prompts(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        drawing = Drawing(
            schedule={"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas},
            eta=eta,
            generator=generator,
            latents=latents,
            output_type=output_type,
            return_dict=return_dict,
            callback=callback_on_step_end,
            tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        shape = self._checked_shape(prompts, num_images_per_prompt, height, width)
        drawing.check(shape, self._callback_tensor_inputs)
        if cross_attention_kwargs is not None:
            inputs.check_mapping("cross_attention_kwargs", cross_attention_kwargs)
            read("cross_attention_kwargs.scale", cross_attention_kwargs.get("scale"), float | None)
        if clip_skip is not None:
            self.prompt_encoder.check_clip_skip(clip_skip)
        call = self._call_of(guidance, guidance_scale, guidance_interval, shape[0], guidance_rescale)
        if negative_prompt is not None and callback_on_step_end is None and not call.current.needs_null:
            logger.warning(
                "negative_prompt has no part in this call: its guidance does nothing at this scale"
            )
        self.check_ip_adapter(ip_adapter_image, ip_adapter_image_embeds)
        told: dict[str, Any] = {"return_dict": False}
        self._cross_attention_kwargs = cross_attention_kwargs
        if cross_attention_kwargs is not None:
            told["cross_attention_kwargs"] = cross_attention_kwargs
        images = (ip_adapter_image, ip_adapter_image_embeds)
        return self._draw(prompts, drawing, call, shape, clip_skip, told, images)

    def _draw(
        self,
        prompts: Prompts,
        drawing: Drawing,
        call: Call,
        shape: tuple[int, int, int, int],
        clip_skip: int | None,
        told: dict[str, Any],
        images: tuple[Any, Any],
    ) -> StableDiffusionPipelineOutput | tuple:
        """The images of a checked call; a schedule that cannot be is refused before prompts are encoded."""
        device, dtype = self._execution_device, dtype_of(self.unet, torch.float32)
        height, width = (side * self.vae_scale_factor for side in shape[2:])
        noise = self.prepare_latents(
            shape[0], height, width, dtype, device, drawing.generator, drawing.latents
        )
        denoiser = ModelDenoiser(self.unet, row_of(self.scheduler))
        run = drawing.run(denoiser, self.scheduler, noise, call)
        if (width := self.unet.config.get("time_cond_proj_dim")) is not None:
            told["timestep_cond"] = guidance_embedding(call.scale, len(noise), width).to(device, dtype)
        times, with_null = len(noise) // len(prompts), call.current.needs_null
        lora_scale = told.get("cross_attention_kwargs", {}).get("scale")
        encoder = replace(self.prompt_encoder, lora_scale=lora_scale)
        null: dict[str, Any] = {}
        if self.has_ip_adapter:
            seen, null = self.told_of_images(*images, with_null, len(noise), dtype)
            told |= seen
        run.condition = encoder.condition(prompts, device, dtype, times, with_null, clip_skip, told, null)
        sample = drawing.sample(self, run, call)
        images, flagged = self._decode(sample, drawing.output_type, drawing.generator)
        self.maybe_free_model_hooks()
        if not drawing.return_dict:
            return images, flagged
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=flagged)

    def _checked_shape(
        self, prompts: Prompts, times: Any, height: Any, width: Any
    ) -> tuple[int, int, int, int]:
        """The shape of a call's samples."""
        config, factor = self.unet.config, self.vae_scale_factor
        attended = config.cross_attention_dim
        count = prompts.check(
            attended if isinstance(attended, int) and config.encoder_hid_dim is None else None
        )
        images = inputs.checked_images(count, times)
        for name, side in (("height", height), ("width", width)):
            if side is not None:
                inputs.check_size(name, side, factor)
        if height is not None and width is not None:
            return images, config.in_channels, height // factor, width // factor
        rows, columns = inputs.sample_sides(self.unet, "give height and width")
        rows, columns = height // factor if height else rows, width // factor if width else columns
        return images, config.in_channels, rows, columns

    def _call_of(self, guidance: Any, scale: Any, interval: Any, images: int, rescale: float = 0.0) -> Call:
        """As always; a distilled network is told the scale."""
        check_number("guidance_rescale", rescale, 0, 1)
        call = super()._call_of(guidance, scale, interval, images, rescale)
        told = self.unet.config.get("time_cond_proj_dim")
        return call if told is None else told_scale(call, told)

    def _decode(self, sample: Tensor, output_type: str, generator: Any) -> tuple[Any, list[bool] | None]:
        if output_type == "latent":
            return sample, None
        image = decode(self.vae, sample, generator)
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
