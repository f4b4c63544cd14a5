"""Images of any prompt by a denoiser that knows no text, steered by a noise-aware CLIP.

Thin by design: it checks the prompts, and makes a condition of them. How images are drawn under a network's
log p is in `pipelines.classifier_call`; what the similarity of an image and a text is the log p of in
`guided_diffusers.models.noise_aware_clip`; what the forms and options of classifier guidance mean in
`guided_diffusers.guidance.classifier`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from guided_diffusers.core.condition import TextCondition, tokenize
from guided_diffusers.core.labels import told_classes
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.guidance import Guidance, GuidanceInterval
from guided_diffusers.models.parts import check_vae
from guided_diffusers.pipelines import unprompted
from guided_diffusers.pipelines.classifier_call import OwnClassifier, Scales, asked, begin, call_guidance
from guided_diffusers.pipelines.default_guidance import default_guidance_config
from guided_diffusers.pipelines.drawing import Asked, checked_images, sample_sides
from guided_diffusers.pipelines.guided import GuidedMixin
from guided_diffusers.pipelines.prompts import check_prompts, warn_of_cut, warn_of_words
from guided_diffusers.pipelines.safe import SafePipeline


class ClassifierGuidedTextToImagePipeline(GuidedMixin, SafePipeline):
    """Draws images of prompts, guided by the similarity of noised image and text.

    The denoiser knows no text; it may know classes, and is then told one an image. It works on pixels or on
    latents: in pixels, a `clip_sample` or `thresholding` of the scheduler is applied to the denoiser's x_0
    before guidance and not after; in latents `clip_sample` is left out.

    Args:
        unet: A `UNet2DModel`; twice the sample's channels mean a learned variance.
        scheduler: Any of `guided_diffusers.schedulers.SUPPORTED_SCHEDULERS`, of the process that `clip` was
            trained on. `GuidedDDPMScheduler` shifts its mean by its own variance under `form="mean_shift"`
            (Algorithm 1).
        clip: A `NoiseAwareCLIP` of the same samples.
        tokenizer: Its tokenizer, a `CLIPTokenizer`.
        vae: The autoencoder whose latents denoiser and `clip` work on; None for pixels.
        default_guidance: The guidance of a call that names none: a Guidance or its `to_config()` value; None
            is the similarity at scale 1.

    Raises:
        ValueError: A `clip` without `log_prob` or `encode_text`, a denoiser that has to be told more than a
            class, or a default guidance that is none.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]
    _exclude_from_cpu_offload = ["clip"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        clip: Any,
        tokenizer: Any,
        vae: Any = None,
        default_guidance: Any = None,
    ) -> None:
        super().__init__()
        if clip is not None and not all(hasattr(clip, name) for name in ("log_prob", "encode_text")):
            raise ValueError(f"clip is a {type(clip).__name__}; allowed: a NoiseAwareCLIP")
        check_vae(unet, vae)
        self.register_modules(unet=unet, scheduler=scheduler, clip=clip, tokenizer=tokenizer, vae=vae)
        self.register_to_config(
            default_guidance=default_guidance_config(default_guidance, **self._guidance_networks())
        )

    @property
    def own_classifier(self) -> OwnClassifier:
        """The noise-aware CLIP as the terms of a call go by it."""
        return OwnClassifier(self.clip, self.log_prob)

    def _guidance_networks(self) -> dict[str, Any]:
        return {"log_prob": self.log_prob}

    def call_guidance(self, guidance_interval: Any = None, **options: Any) -> Guidance:
        """The guidance of a call; the checkpoint's default where no scale, form or other option is given.

        Args:
            guidance_interval: Where all terms are active; None for where they say.
            options: `classifier_scale` and what else a call takes of classifier guidance.

        Raises:
            ValueError: One that is out of range.
        """
        return call_guidance(self, self.own_classifier, guidance_interval, options)

    def log_prob(self, sample: Tensor, level: NoiseLevel, condition: TextCondition) -> Tensor:
        """The similarity, or log of the share among contrasts, `(batch,)`, for `ClassifierGuidance`."""
        return self.clip.log_prob(sample, level, condition)

    def _check_unet(self) -> None:
        unprompted.check_parts(self.unet, self.vae)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        classifier_scale: Scales | None = None,
        contrast_prompts: list[str] | None = None,
        class_labels: int | Sequence[int] | None = None,
        form: str | None = None,
        through: str | None = None,
        at: str | None = None,
        max_gradient_norm: float | None = None,
        guidance_interval: GuidanceInterval | Sequence[float] | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        guidance: Guidance | None = None,
        mu: float | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images of prompts.

        Args:
            prompt: One prompt or several.
            num_images_per_prompt: Images of each, one after another.
            num_inference_steps: Steps of the scheduler; not used with `timesteps` or `sigmas`.
            timesteps: Custom timesteps, descending, for schedulers that take them.
            sigmas: Custom sigmas, descending, for schedulers that take them.
            classifier_scale: s, a number or one an image: 0 is unguided and never runs the image encoder, 1,
                the default, is Bayes' rule.
            contrast_prompts: Other prompts: guide by the logarithm of the prompt's share among it and these,
                not by the similarity alone. The prompt itself may be one of them, and counts once.
            class_labels: Of a denoiser that knows classes: one for all images, or one an image.
            form: "score" (the default) or "mean_shift" (Algorithm 1).
            through: "classifier" (the default: on x_t) or "denoised" (on the predicted x_0, without noise).
            at: "sample" (the default) or "mean", where the gradient is taken.
            max_gradient_norm: The largest |sigma g| of a sample; None is no limit.
            guidance_interval: Where guidance is active: a GuidanceInterval or a pair (low, high] in sigma /
                alpha.
            eta: Noise of DDIM, 0 (none) to 1; other schedulers ignore it.
            generator: One, or one an image: with one an image, what is drawn does not depend on the batch.
            latents: Standard normal noise `(images, channels, height, width)` to start from, of the
                denoiser's sample size.
            output_type: "pil", "np" (batch, height, width, channels in [0, 1]), "pt" (batch, channels,
                height, width in [0, 1]) or "latent" (the denoiser's sample).
            return_dict: False returns a tuple.
            callback_on_step_end: `(pipeline, index, timestep, tensors) -> tensors` after each step; it may
                replace the latents and set `pipeline._interrupt`.
            callback_on_step_end_tensor_inputs: Which tensors it gets, of `_callback_tensor_inputs`.
            guidance: Any sum of guidance terms, instead of the arguments of guidance above; the pipeline's
                own similarity is `ClassifierGuidance(pipeline.log_prob, scale)`.
            mu: The shift of the noise levels, for a scheduler with `use_dynamic_shifting`, which needs one.

        Returns:
            `ImagePipelineOutput` with `images`, prompt by prompt, or a tuple of them.

        Raises:
            ValueError: An argument that is out of range, of the wrong type or shape, or contradicts another,
                or a `clip` that does not fit the denoiser, the tokenizer or the scheduler; each message names
                it. Raised before anything is computed.
        """
        return self._asked(locals()).draw()

    def _asked(self, given: Mapping[str, Any]) -> Asked:
        """A call with these arguments, checked."""
        prompt, contrast, times = (
            given[name] for name in ("prompt", "contrast_prompts", "num_images_per_prompt")
        )
        check_prompts("prompt", prompt)
        if contrast is not None:
            check_prompts("contrast_prompts", contrast)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        count = checked_images(len(prompts), times)
        prompts = [text for text in prompts for _ in range(times)]
        self._check_networks()
        known = self.unet.config.num_class_embeds if self.unet.class_embedding is not None else None
        classes = told_classes(given["class_labels"], known, count)
        call = begin(self, self.own_classifier, count, given)
        self._check_null(call.guidance)
        condition = partial(self._condition, prompts, contrast, classes)
        return asked(self, self.own_classifier, call, given, count, condition)

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """Prompts as directions, `(prompts, width)` of length 1, float32; equal ones are encoded once.

        A prompt longer than the text encoder's context is cut, with a warning.
        """
        unique = list(dict.fromkeys(prompts))
        ids, mask = tokenize(self.tokenizer, unique)
        warn_of_words(self.tokenizer, unique)
        if mask.all(dim=1).any():
            warn_of_cut(self.tokenizer, unique, ids.shape[1])
        embeds = self.clip.encode_text(ids.to(self.clip.device))
        return embeds[[unique.index(text) for text in prompts]]

    def _condition(
        self, prompts: list[str], contrast: str | Sequence[str] | None, classes: Tensor | None
    ) -> TextCondition:
        told = {} if classes is None else {"class_labels": classes.to(self._execution_device)}
        others = [contrast] if isinstance(contrast, str) else list(dict.fromkeys(contrast or ()))
        own = self.encode_prompt(prompts)
        if not others:
            return TextCondition(told, text_embeds=own)
        mask = torch.tensor([[text != other for other in others] for text in prompts])
        embeds = self.encode_prompt(others)
        return TextCondition(told, text_embeds=own, contrast_embeds=embeds, contrast_mask=mask)

    def _check_null(self, guidance: Guidance) -> None:
        asking = [type(term).__name__ for term in guidance.terms if term.needs_null]
        if asking:
            raise ValueError(
                f"guidance has {asking[0]}; allowed: terms without the null condition, because the denoiser "
                "of this pipeline is told no text"
            )

    def _check_networks(self) -> None:
        """Raise ValueError where `clip` and denoiser, or `clip` and tokenizer, do not fit."""
        self._check_unet()
        image, text = self.clip.image_encoder.config, self.clip.text_encoder.config
        unprompted.check_channels("clip", image.in_channels, self.unet)
        sizes = sample_sides(self.unet)
        if image.pool == "attention" and sizes != (image.sample_size,) * 2:
            raise ValueError(f"clip has sample_size {image.sample_size}; allowed: {sizes}, the denoiser's")
        context = self.tokenizer.model_max_length
        if len(self.tokenizer) > text.vocab_size or context > text.max_position_embeddings:
            raise ValueError(
                f"tokenizer has {len(self.tokenizer)} tokens and a context of {context}; allowed: at most "
                f"{text.vocab_size} and {text.max_position_embeddings}, what clip's text encoder knows"
            )
