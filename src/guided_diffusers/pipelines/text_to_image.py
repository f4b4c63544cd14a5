"""Text-to-image generation under guidance, with Stable Diffusion's components and arguments.

Thin by design: it checks inputs, builds a Condition and a Denoiser, calls the sampling loop, decodes. What
guidance does is in `guided_diffusers.guidance`; what a scheduler does is in the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

from guided_diffusers.core.denoiser import ModelDenoiser, dtype_of
from guided_diffusers.core.networks import guidance_embedding, needed_arguments
from guided_diffusers.guidance import (
    ClassifierFreeGuidance,
    Guidance,
    GuidanceInterval,
    GuidanceSum,
    RescaledGuidance,
)
from guided_diffusers.models.latents import decode, spatial_factor
from guided_diffusers.models.parts import check_text_width, check_vae, check_weak
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.guided import GuidedPipeline, default_guidance_config, takes_eta
from guided_diffusers.pipelines.noise import noise_of
from guided_diffusers.pipelines.prompts import PromptEncoding
from guided_diffusers.pipelines.run import PromptedRun
from guided_diffusers.schedulers.adapt import config_of, prediction_type_of

logger = logging.get_logger(__name__)


class TextToImagePipeline(PromptEncoding, GuidedPipeline, StableDiffusionMixin):
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
        image_encoder: Kept with the checkpoint, not used; may be None.
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

    def _check_parts(self) -> None:
        """Raise ValueError where networks are of other latents than each other; each message names both."""
        inputs.check_sees_noise(self.unet)
        check_vae(self.unet, self.vae)
        check_weak(self.unet, self.weak_unet)

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

    def _check_unet(self) -> None:
        """Raise ValueError where a network does not fit, or needs what this pipeline does not tell it."""
        for name, network in (("unet", self.unet), ("weak_unet", self.weak_unet)):
            inputs.check_unet(network, ("encoder_hidden_states", "timestep_cond"), name)
        if self.weak_unet is not None and needed_arguments(self.weak_unet) != needed_arguments(self.unet):
            raise ValueError("weak_unet and unet differ in time_cond_proj_dim; allowed: both alike")
        self._check_parts()
        check_text_width(self.unet, self.text_encoder)

    def _guidance_networks(self) -> dict[str, Any]:
        return {} if self.weak_unet is None else {"weak": self.weak_denoiser}

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

        Returns:
            `StableDiffusionPipelineOutput` with `images` (and `nsfw_content_detected` of a safety checker),
            or a tuple of the two.

        Raises:
            ValueError: An argument that is out of range, of the wrong type or shape, or contradicts another;
                each message names it. Raised before anything is computed.
        """
        self._check_unet()
        names = inputs.tensor_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        height, width = self._default_size(height, width)
        self.check_inputs(
            prompt,
            height,
            width,
            negative_prompt,
            num_images_per_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            generator,
            eta,
            output_type,
            names,
        )
        prompts = 1 if isinstance(prompt, str) else len(prompt) if prompt is not None else len(prompt_embeds)
        images = prompts * num_images_per_prompt
        inputs.check_callback(callback_on_step_end)
        inputs.check_mapping("cross_attention_kwargs", cross_attention_kwargs)
        self._check_latents(latents, images, height, width)
        inputs.check_fraction("guidance_rescale", guidance_rescale)
        if guidance_rescale and guidance is None:
            guidance = self._rescaled(guidance_rescale, guidance_scale, guidance_interval)
            guidance_scale = guidance_interval = None
        elif guidance_rescale:
            raise ValueError("guidance and guidance_rescale were both given; allowed: one of them")
        self._begin_guidance(guidance, guidance_scale, guidance_interval, images)
        prediction_type = self._begin_schedule(num_inference_steps, timesteps, sigmas)
        self._cross_attention_kwargs = cross_attention_kwargs
        device = self._execution_device
        given_null = (negative_prompt, negative_prompt_embeds)
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            device,
            num_images_per_prompt,
            self._wants_null(negative_prompt, callback_on_step_end),
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            None,
            clip_skip,
        )

        def encode_null() -> Tensor:
            once = prompt_embeds[::num_images_per_prompt]
            return self.encode_prompt(
                None, device, num_images_per_prompt, True, given_null[0], once, given_null[1]
            )[1]

        noise = self.prepare_latents(images, height, width, prompt_embeds.dtype, device, generator, latents)
        denoiser = ModelDenoiser(self.unet, prediction_type)
        arguments = self._network_arguments(images)
        run = PromptedRun(self, denoiser, prompt_embeds, negative_prompt_embeds, encode_null, arguments)
        sample = self._sample(
            run,
            self.scheduler,
            noise,
            (callback_on_step_end, names),
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            generator=generator,
            step_kwargs={"eta": eta} if takes_eta(self.scheduler) else None,
        )
        decoded, flagged = self._decode(sample, output_type, generator)
        self.maybe_free_model_hooks()
        if not return_dict:
            return decoded, flagged
        return StableDiffusionPipelineOutput(images=decoded, nsfw_content_detected=flagged)

    def check_inputs(
        self,
        prompt: Any,
        height: Any,
        width: Any,
        negative_prompt: Any = None,
        num_images_per_prompt: Any = 1,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        generator: Any = None,
        eta: Any = 0.0,
        output_type: Any = "pil",
        callback_on_step_end_tensor_inputs: Any = ("latents",),
    ) -> None:
        """Check the arguments of a call; ValueError names the first that is wrong."""
        inputs.check_choice("output_type", output_type, inputs.OUTPUT_TYPES)
        names = callback_on_step_end_tensor_inputs
        inputs.check_names("callback_on_step_end_tensor_inputs", names, self._callback_tensor_inputs)
        inputs.check_fraction("eta", eta)
        inputs.check_size("height", height, self.vae_scale_factor)
        inputs.check_size("width", width, self.vae_scale_factor)
        inputs.check_count("num_images_per_prompt", num_images_per_prompt)
        inputs.check_one_of("prompt", prompt, "prompt_embeds", prompt_embeds, required=True)
        inputs.check_one_of(
            "negative_prompt",
            negative_prompt,
            "negative_prompt_embeds",
            negative_prompt_embeds,
            required=False,
        )
        if prompt is not None:
            inputs.check_prompts("prompt", prompt)
        if negative_prompt is not None:
            inputs.check_prompts("negative_prompt", negative_prompt)
        attends_to = self.unet.config.cross_attention_dim
        embed_width = (
            attends_to if isinstance(attends_to, int) and self.unet.config.encoder_hid_dim is None else None
        )
        inputs.check_embeds("prompt_embeds", prompt_embeds, embed_width)
        inputs.check_embeds("negative_prompt_embeds", negative_prompt_embeds, embed_width)
        prompts = 1 if isinstance(prompt, str) else len(prompt if prompt is not None else prompt_embeds)
        for name, value in (
            ("negative_prompt", negative_prompt),
            ("negative_prompt_embeds", negative_prompt_embeds),
        ):
            if value is not None and not isinstance(value, str) and len(value) != prompts:
                raise ValueError(
                    f"{name} has {len(value)} entries for {prompts} prompts; allowed: one for each prompt"
                )
        if prompt_embeds is not None and negative_prompt_embeds is not None:
            if prompt_embeds.shape != negative_prompt_embeds.shape:
                raise ValueError(
                    f"prompt_embeds has shape {tuple(prompt_embeds.shape)} and negative_prompt_embeds "
                    f"{tuple(negative_prompt_embeds.shape)}; allowed: one shape"
                )
        inputs.check_images(prompts * num_images_per_prompt)
        inputs.check_generator(generator, prompts * num_images_per_prompt)

    def _wants_null(self, negative_prompt: Any, callback: Any) -> bool:
        """Whether the call needs the null condition from its first step on."""
        wanted = self.do_classifier_free_guidance
        if negative_prompt is not None and not wanted and callback is None:
            logger.warning(
                "negative_prompt has no part in this call: its guidance does nothing at this scale"
            )
        return wanted

    def _network_arguments(self, images: int) -> dict[str, Any]:
        """What the network is told beside the embeddings, the same with and without the condition."""
        arguments: dict[str, Any] = {"return_dict": False}
        if self.cross_attention_kwargs is not None:
            arguments["cross_attention_kwargs"] = self.cross_attention_kwargs
        if self._scale_width is not None:
            told = guidance_embedding(self._guidance_scale, images, self._scale_width)
            arguments["timestep_cond"] = told.to(self._execution_device, dtype_of(self.unet, told.dtype))
        return arguments

    @property
    def _scale_width(self) -> int | None:
        """The width of the embedding by which a distilled network is told the scale; None for others."""
        return self.unet.config.get("time_cond_proj_dim")

    def _settle_guidance(self, guidance: Any, images: int) -> None:
        """As always; a distilled network is told the scale, and the term that has it is left out."""
        super()._settle_guidance(guidance, images)
        if self._scale_width is None:
            return
        terms = self._guidance.terms
        free = [term for term in terms if isinstance(term, ClassifierFreeGuidance)]
        if len(free) != 1 or type(free[0]) is not ClassifierFreeGuidance or free[0].interval is not None:
            names = " + ".join(type(term).__name__ for term in terms) or "none"
            raise ValueError(
                f"guidance is {names}{' in an interval' * any(term.interval for term in free)}; allowed: "
                "guidance_scale alone, beside terms of other kinds, because the unet (time_cond_proj_dim "
                f"{self._scale_width}) is told the scale, and not guided by it"
            )
        self._guidance = GuidanceSum(tuple(term for term in terms if term is not free[0]))

    def _rescaled(self, rescale: float, scale: Any, interval: Any) -> Guidance:
        """The guidance of a call with these arguments, rescaled."""
        terms = self.call_guidance(scale, interval).terms
        if [type(term) for term in terms] != [ClassifierFreeGuidance]:
            names = " + ".join(type(term).__name__ for term in terms)
            raise ValueError(
                f"guidance_rescale is {rescale}, and the checkpoint's default guidance is {names}; allowed: "
                "0, or guidance_scale beside it (RescaledGuidance)"
            )
        return RescaledGuidance(terms[0].scale, terms[0].interval, rescale=rescale)

    def _default_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        if height is not None and width is not None:
            return height, width
        rows, columns = inputs.sample_sides(self.unet, "give height and width")
        return (
            height if height is not None else rows * self.vae_scale_factor,
            width if width is not None else columns * self.vae_scale_factor,
        )

    def _check_latents(self, latents: Tensor | None, images: int, height: int, width: int) -> None:
        expected = (
            images,
            self.unet.config.in_channels,
            height // self.vae_scale_factor,
            width // self.vae_scale_factor,
        )
        inputs.check_latents(latents, expected)

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
