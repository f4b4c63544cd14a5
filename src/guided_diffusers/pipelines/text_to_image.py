"""Text-to-image generation under guidance, with Stable Diffusion's components and arguments.

Thin by design: it checks inputs, builds a Condition and a Denoiser, calls the sampling loop, decodes. What guidance
does is in `guided_diffusers.guidance`; what a scheduler does is in the scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from guided_diffusers.conditioning import Condition, tokenize, words_beyond
from guided_diffusers.denoiser import Denoised, ModelDenoiser
from guided_diffusers.guidance import ClassifierFreeGuidance, Guidance, GuidanceInterval, GuidanceSum, Step
from guided_diffusers.guidance.base import Scale, checked_scale
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.safe import SafePipeline
from guided_diffusers.prediction import coefficients
from guided_diffusers.sampling import StopSampling, sampling_loop, set_timesteps
from guided_diffusers.schedulers.compat import check_supported, noise_level, prediction_type_of

logger = logging.get_logger(__name__)

FALLBACK_GUIDANCE_SCALE = 7.5  # Stable Diffusion's, for checkpoints that name none


class TextToImagePipeline(SafePipeline):
    """Text-to-image generation with classifier-free and any other guidance.

    A folder saved by StableDiffusionPipeline loads here. Guidance is classifier-free by `guidance_scale`, or any sum
    of terms by `guidance`. Two things differ from Stable Diffusion: a `guidance_scale` below 1 means what the formula
    says (0 is unconditional), and latents stay in float32 whatever the network's dtype.

    Args:
        vae: `VariationalAutoencoder` or `AutoencoderKL`.
        text_encoder: `CLIPTextModel`.
        tokenizer: `CLIPTokenizer`.
        unet: `UNet2DConditionModel`.
        scheduler: Any of `guided_diffusers.schedulers.SUPPORTED_SCHEDULERS`. A `clip_sample` in its configuration,
            which would clip latents after guidance, is switched off in a copy.
        safety_checker: As in Stable Diffusion; may be None.
        feature_extractor: As in Stable Diffusion; may be None unless there is a safety checker.
        image_encoder: Kept with the checkpoint, not used; may be None.
        requires_safety_checker: Kept with the checkpoint.
        default_guidance: The guidance of a call that names none: a Guidance, its `to_config()` value, or a scale.

    Raises:
        ValueError: A safety checker without feature extractor, or a default guidance that is none.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor", "image_encoder"]
    _exclude_from_cpu_offload = ["safety_checker"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: CLIPVisionModelWithProjection = None,
        requires_safety_checker: bool = True,
        default_guidance: Any = None,
    ) -> None:
        super().__init__()
        if safety_checker is not None and feature_extractor is None:
            raise ValueError("safety_checker was given without feature_extractor: give both, or safety_checker=None")
        if scheduler is not None and getattr(scheduler.config, "clip_sample", False):
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
        )
        if default_guidance is not None:
            default_guidance = _as_config(default_guidance)
        self.register_to_config(requires_safety_checker=requires_safety_checker, default_guidance=default_guidance)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._guidance: Guidance = GuidanceSum()
        self._guidance_scale: Scale | None = None
        self._num_timesteps = 0
        self._interrupt = False
        self._cross_attention_kwargs: Mapping[str, Any] | None = None

    @property
    def guidance_scale(self) -> Scale | None:
        """gamma of the classifier-free term of the current call, read again at each step; None without such a term."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the current call has a classifier-free term whose scale is not neutral."""
        terms = self._current_guidance().terms
        return any(isinstance(term, ClassifierFreeGuidance) and term.scale != term.neutral for term in terms)

    @property
    def num_timesteps(self) -> int:
        """Calls of the scheduler in the current run."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `pipeline._interrupt = True` in a callback to end the run after the step."""
        return self._interrupt

    @property
    def cross_attention_kwargs(self) -> Mapping[str, Any] | None:
        """Further arguments of the network's attention processors in the current call."""
        return self._cross_attention_kwargs

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
        """Encode prompts as Stable Diffusion does.

        Args:
            prompt: One prompt or several; None with `prompt_embeds`.
            device: Where the embeddings go.
            num_images_per_prompt: How often each embedding is repeated.
            do_classifier_free_guidance: Whether to encode the negative prompt too.
            negative_prompt: One for all prompts, or one each; empty by default.
            prompt_embeds: `(prompts, length, width)`, instead of `prompt`.
            negative_prompt_embeds: Likewise, instead of `negative_prompt`.
            lora_scale: Part of the signature; this pipeline loads no LoRA, so anything but None raises.
            clip_skip: Layers of the text encoder to leave out at its end.

        Returns:
            Two tensors `(prompts * num_images_per_prompt, length, width)` in the network's dtype; the second is None
            without classifier-free guidance.

        Raises:
            ValueError: A `lora_scale`, or as many negative prompts as do not fit the prompts.
        """
        if lora_scale is not None:
            raise ValueError("lora_scale was given, and this pipeline loads no LoRA: leave it out")
        if prompt_embeds is None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            prompt_embeds = self._embed(prompts, device, clip_skip=clip_skip)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            negative = "" if negative_prompt is None else negative_prompt
            negatives = [negative] * len(prompt_embeds) if isinstance(negative, str) else list(negative)
            if len(negatives) != len(prompt_embeds):
                raise ValueError(
                    f"negative_prompt has {len(negatives)} entries for {len(prompt_embeds)} prompts; allowed: one, or one each"
                )
            negative_prompt_embeds = self._embed(negatives, device, prompt_embeds.shape[1])
        return (
            self._repeated(prompt_embeds, device, num_images_per_prompt),
            self._repeated(negative_prompt_embeds, device, num_images_per_prompt) if do_classifier_free_guidance else None,
        )

    def _embed(
        self, prompts: list[str], device: torch.device, max_length: int | None = None, clip_skip: int | None = None
    ) -> Tensor:
        for prompt in dict.fromkeys(prompts):
            if lost := words_beyond(self.tokenizer, prompt, max_length):
                length = max_length or self.tokenizer.model_max_length
                logger.warning(f"the text encoder reads {length} tokens; of the prompt {prompt!r} it does not see: {lost!r}")
        unique = list(dict.fromkeys(prompts))
        ids, mask = tokenize(self.tokenizer, unique, max_length)
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        arguments = {"attention_mask": mask.to(device) if masked else None}
        if clip_skip is None:
            embeds = self.text_encoder(ids.to(device), **arguments)[0]
        else:
            hidden = self.text_encoder(ids.to(device), output_hidden_states=True, **arguments).hidden_states
            inner = getattr(self.text_encoder, "text_model", self.text_encoder)
            embeds = inner.final_layer_norm(hidden[-(clip_skip + 1)])
        return embeds[[unique.index(prompt) for prompt in prompts]]

    def _repeated(self, embeds: Tensor, device: torch.device, times: int) -> Tensor:
        dtype = self.unet.dtype if self.unet is not None else embeds.dtype
        return embeds.to(device, dtype).repeat_interleave(times, dim=0)

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
        """Standard normal latents `(batch_size, channels, height / f, width / f)`, float32; `latents` where given."""
        if latents is None:
            shape = (batch_size, self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
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
    ) -> StableDiffusionPipelineOutput | tuple:
        """Generate images for prompts.

        Args:
            prompt: One prompt or several.
            height: In pixels, a multiple of the autoencoder's factor; by default the network's.
            width: Likewise.
            num_inference_steps: Steps of the scheduler; not used with `timesteps` or `sigmas`.
            timesteps: Custom timesteps, descending, for schedulers that take them.
            sigmas: Custom sigmas, descending, for schedulers that take them.
            guidance_scale: gamma of classifier-free guidance, a number or one an image: 1 is the conditional model and
                runs the network once, 0 the unconditional one. None uses the checkpoint's `default_guidance`
                (7.5 where it has none).
            negative_prompt: What to guide away from, one for all or one a prompt; the empty prompt by default.
            num_images_per_prompt: Images a prompt.
            eta: Noise of DDIM, 0 (none) to 1; other schedulers ignore it.
            generator: One, or one an image: with one an image, what is drawn does not depend on the batch.
            latents: Standard normal noise `(images, channels, height / f, width / f)` to start from.
            prompt_embeds: Instead of `prompt`: `(prompts, length, width)`.
            negative_prompt_embeds: Instead of `negative_prompt`.
            output_type: "pil", "np" (batch, height, width, channels in [0, 1]), "pt" (batch, channels, height, width
                in [0, 1]) or "latent".
            return_dict: False returns a tuple.
            cross_attention_kwargs: Further arguments of the network's attention processors.
            clip_skip: Layers of the text encoder to leave out at its end.
            callback_on_step_end: `(pipeline, index, timestep, tensors) -> tensors` after each step; it may replace the
                tensors and set `pipeline._guidance_scale` or `pipeline._interrupt`.
            callback_on_step_end_tensor_inputs: Which tensors it gets, of `_callback_tensor_inputs`.
            guidance: Any sum of guidance terms, instead of `guidance_scale`.
            guidance_interval: Where guidance is active: a GuidanceInterval or a pair (low, high] in sigma / alpha.

        Returns:
            `StableDiffusionPipelineOutput` with `images` (and `nsfw_content_detected` of a safety checker), or a tuple
            of the two.

        Raises:
            ValueError: An argument that is out of range, of the wrong type or shape, or contradicts another; each
                message names it. Raised before anything is computed.
        """
        if hasattr(callback_on_step_end, "tensor_inputs"):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        height, width = self._default_size(height, width)
        inputs.check_choice("output_type", output_type, inputs.OUTPUT_TYPES)
        inputs.check_names(
            "callback_on_step_end_tensor_inputs", callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        self.check_inputs(
            prompt, height, width, negative_prompt, num_images_per_prompt, prompt_embeds, negative_prompt_embeds, generator
        )
        prompts = 1 if isinstance(prompt, str) else len(prompt) if prompt is not None else len(prompt_embeds)
        images = prompts * num_images_per_prompt
        self._check_latents(latents, images, height, width)
        self._begin(guidance, guidance_scale, guidance_interval, images)
        prediction_type = self._begin_schedule(num_inference_steps, timesteps, sigmas)
        self._cross_attention_kwargs = cross_attention_kwargs
        device = self._execution_device

        # A callback may change the scale, and a term of the caller's own may ask for the null condition.
        wants_null = self.do_classifier_free_guidance or guidance is not None or callback_on_step_end is not None
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt, device, num_images_per_prompt, wants_null, negative_prompt, prompt_embeds, negative_prompt_embeds, None, clip_skip
        )
        noise = self.prepare_latents(images, height, width, prompt_embeds.dtype, device, generator, latents)
        run = _Run(self, ModelDenoiser(self.unet, prediction_type), prompt_embeds, negative_prompt_embeds)
        with self.progress_bar(total=self._num_timesteps) as progress:

            def after_step(index: int, timestep: Tensor, sample: Tensor) -> Tensor:
                progress.update()
                if callback_on_step_end is None:
                    return sample
                return run.call_back(callback_on_step_end, callback_on_step_end_tensor_inputs, index, timestep, sample)

            sample = sampling_loop(
                run,
                self.scheduler,
                noise,
                num_inference_steps=num_inference_steps,
                timesteps=timesteps,
                sigmas=sigmas,
                generator=generator,
                callback=after_step,
                step_kwargs={"eta": eta} if _takes_eta(self.scheduler) else None,
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
    ) -> None:
        """Check the arguments of a call; ValueError names the first that is wrong."""
        inputs.check_size("height", height, self.vae_scale_factor)
        inputs.check_size("width", width, self.vae_scale_factor)
        inputs.check_count("num_images_per_prompt", num_images_per_prompt)
        inputs.check_one_of("prompt", prompt, "prompt_embeds", prompt_embeds, required=True)
        inputs.check_one_of("negative_prompt", negative_prompt, "negative_prompt_embeds", negative_prompt_embeds, required=False)
        if prompt is not None:
            inputs.check_prompts("prompt", prompt)
        if negative_prompt is not None:
            inputs.check_prompts("negative_prompt", negative_prompt)
        attends_to = self.unet.config.cross_attention_dim
        embed_width = attends_to if isinstance(attends_to, int) and self.unet.config.encoder_hid_dim is None else None
        inputs.check_embeds("prompt_embeds", prompt_embeds, embed_width)
        inputs.check_embeds("negative_prompt_embeds", negative_prompt_embeds, embed_width)
        prompts = 1 if isinstance(prompt, str) else len(prompt if prompt is not None else prompt_embeds)
        for name, value in (("negative_prompt", negative_prompt), ("negative_prompt_embeds", negative_prompt_embeds)):
            if value is not None and not isinstance(value, str) and len(value) != prompts:
                raise ValueError(f"{name} has {len(value)} entries for {prompts} prompts; allowed: one for each prompt")
        if prompt_embeds is not None and negative_prompt_embeds is not None:
            if prompt_embeds.shape != negative_prompt_embeds.shape:
                raise ValueError(
                    f"prompt_embeds has shape {tuple(prompt_embeds.shape)} and negative_prompt_embeds "
                    f"{tuple(negative_prompt_embeds.shape)}; allowed: one shape"
                )
        inputs.check_generator(generator, prompts * num_images_per_prompt)

    def _default_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        size = self.unet.config.sample_size
        rows, columns = (size, size) if isinstance(size, int) else size
        return (
            height if height is not None else rows * self.vae_scale_factor,
            width if width is not None else columns * self.vae_scale_factor,
        )

    def _check_latents(self, latents: Tensor | None, images: int, height: int, width: int) -> None:
        expected = (images, self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        if latents is None:
            return
        if not isinstance(latents, Tensor) or tuple(latents.shape) != expected:
            given = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"latents is {given}; allowed: a tensor of shape {expected}")

    def _begin(
        self,
        guidance: Guidance | None,
        guidance_scale: float | Sequence[float] | None,
        guidance_interval: GuidanceInterval | Sequence[float] | None,
        images: int,
    ) -> None:
        """Settle which guidance this call uses, before anything is computed."""
        inputs.check_one_of("guidance", guidance, "guidance_scale", guidance_scale, required=False)
        inputs.check_one_of("guidance", guidance, "guidance_interval", guidance_interval, required=False)
        interval = GuidanceInterval.of(guidance_interval)
        if guidance is None and guidance_scale is not None:
            guidance = ClassifierFreeGuidance(checked_scale(guidance_scale, "guidance_scale"), interval)
        elif guidance is None:
            default = self.config.default_guidance
            guidance = ClassifierFreeGuidance(FALLBACK_GUIDANCE_SCALE) if default is None else Guidance.from_config(default)
            if interval is not None:
                guidance = GuidanceSum(tuple(replace(term, interval=interval) for term in guidance.terms))
        elif not isinstance(guidance, Guidance):
            raise ValueError(f"guidance is a {type(guidance).__name__}; allowed: a guidance term or a sum of terms")
        for term in guidance.terms:
            if isinstance(term.scale, tuple) and len(term.scale) != images:
                raise ValueError(f"guidance_scale has {len(term.scale)} values for {images} images; allowed: one, or one each")
        free = [term for term in guidance.terms if isinstance(term, ClassifierFreeGuidance)]
        self._guidance = guidance
        self._guidance_scale = free[0].scale if len(free) == 1 else None
        self._interrupt = False

    def _current_guidance(self) -> Guidance:
        """The call's guidance with the scale as it stands: a callback may have set `_guidance_scale`."""
        scale = self._guidance_scale
        if scale is None or all(term.scale == scale for term in self._guidance.terms if isinstance(term, ClassifierFreeGuidance)):
            return self._guidance
        terms = self._guidance.terms
        return GuidanceSum(tuple(replace(t, scale=scale) if isinstance(t, ClassifierFreeGuidance) else t for t in terms))

    def _begin_schedule(self, steps: int, timesteps: Sequence[int] | None, sigmas: Sequence[float] | None) -> str:
        """Set the timesteps and return the network's prediction type; refuse what cannot work, before any compute."""
        check_supported(self.scheduler)
        set_timesteps(self.scheduler, steps, timesteps, sigmas)
        self._num_timesteps = len(self.scheduler.timesteps)
        prediction_type = prediction_type_of(self.scheduler)
        coefficients(noise_level(self.scheduler, self.scheduler.timesteps[0]), prediction_type)
        return prediction_type

    def _decode(self, sample: Tensor, output_type: str, generator: Any) -> tuple[Any, list[bool] | None]:
        if output_type == "latent":
            return sample, None
        latents = sample.to(self.vae.dtype) / self.vae.config.scaling_factor
        image = self.vae.decode(latents, return_dict=False, generator=generator)[0]
        flagged = None
        if self.safety_checker is not None:
            pictures = self.image_processor.postprocess(image, output_type="pil")
            pixels = self.feature_extractor(pictures, return_tensors="pt").pixel_values
            image, flagged = self.safety_checker(images=image, clip_input=pixels.to(self._execution_device, image.dtype))
        denormalize = [True] * len(image) if flagged is None else [not flag for flag in flagged]
        return self.image_processor.postprocess(image, output_type=output_type, do_denormalize=denormalize), flagged


class _Run:
    """The denoiser of one call. It reads the pipeline's scale and the embeddings at each step, for callbacks change them."""

    def __init__(
        self, pipeline: TextToImagePipeline, denoiser: ModelDenoiser, prompt_embeds: Tensor, negative_prompt_embeds: Tensor | None
    ) -> None:
        self.pipeline = pipeline
        self.denoiser = denoiser
        self.embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        self.condition = self._make_condition()

    def _make_condition(self) -> Condition:
        arguments: dict[str, Any] = {"return_dict": False}
        if self.pipeline.cross_attention_kwargs is not None:
            arguments["cross_attention_kwargs"] = self.pipeline.cross_attention_kwargs
        positive, negative = self.embeds.values()
        return Condition(
            {"encoder_hidden_states": positive, **arguments},
            None if negative is None else {"encoder_hidden_states": negative, **arguments},
        )

    def run(self, step: Step) -> Denoised:
        """The guided x_0, under the guidance as it stands."""
        return self.pipeline._current_guidance()(self.denoiser).run(replace(step, condition=self.condition))

    def call_back(self, callback: Callable, names: Sequence[str], index: int, timestep: Tensor, sample: Tensor) -> Tensor:
        """Call the user's callback, take over what it changed, and end the run where it says so."""
        tensors = {"latents": sample, **self.embeds}
        changed = callback(self.pipeline, index, timestep, {name: tensors[name] for name in names}) or {}
        sample = changed.get("latents", sample)
        embeds = {name: changed.get(name, value) for name, value in self.embeds.items()}
        if any(embeds[name] is not self.embeds[name] for name in embeds):
            self.embeds = embeds
            self.condition = self._make_condition()
        if self.pipeline.interrupt:
            raise StopSampling(sample)
        return sample


def _as_config(guidance: Any) -> list[dict[str, Any]]:
    """A default guidance as JSON: of a Guidance, of its configuration, or of a scale."""
    if isinstance(guidance, bool) or (isinstance(guidance, float) and math.isnan(guidance)):
        raise ValueError(f"default_guidance is {guidance!r}; allowed: a Guidance, its to_config() value, or a scale")
    if isinstance(guidance, int | float):
        guidance = ClassifierFreeGuidance(float(guidance))
    return (guidance if isinstance(guidance, Guidance) else Guidance.from_config(guidance)).to_config()


def _takes_eta(scheduler: Any) -> bool:
    return "eta" in scheduler.step.__code__.co_varnames[: scheduler.step.__code__.co_argcount]
