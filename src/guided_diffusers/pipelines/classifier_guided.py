"""Images of a class, by a denoiser and the gradient of a classifier.

Thin by design: it checks the classes, and makes a condition of them. How images are drawn under a network's
log p is in `pipelines.classifier_call`; what the forms and options of classifier guidance mean, and how their
scales relate, in `guided_diffusers.guidance.classifier`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from guided_diffusers.core.checks import check_int
from guided_diffusers.core.condition import ClassCondition, class_condition
from guided_diffusers.core.labels import class_ids
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.guidance import Guidance, GuidanceInterval
from guided_diffusers.models.labels import class_count, class_names, value_of
from guided_diffusers.models.parts import check_vae
from guided_diffusers.pipelines import unprompted
from guided_diffusers.pipelines.classifier_call import OwnClassifier, Scales, asked, begin, call_guidance
from guided_diffusers.pipelines.default_guidance import default_guidance_config
from guided_diffusers.pipelines.drawing import Asked
from guided_diffusers.pipelines.guided import GuidedMixin
from guided_diffusers.pipelines.safe import SafePipeline


class ClassifierGuidedPipeline(GuidedMixin, SafePipeline):
    """Draws images of a class, guided by a classifier.

    The denoiser may know the classes or not, and work on pixels or on latents. Where it knows them, it is
    told the class too, and classifier-free guidance adds to the classifier's; that needs its null class,
    which is one class embedding more than there are classes, the last (`num_class_embeds = classes + 1`).

    In pixels, a `clip_sample` or `thresholding` of the scheduler is applied to the denoiser's x_0 before
    guidance and not after; in latents `clip_sample` is left out.

    Args:
        unet: A `UNet2DModel`; twice the sample's channels mean a learned variance.
        scheduler: Any of `guided_diffusers.schedulers.SUPPORTED_SCHEDULERS`. `GuidedDDPMScheduler` shifts its
            mean by its own variance under `form="mean_shift"` (Algorithm 1).
        classifier: A ModelMixin with `log_prob(sample, level, labels) -> (batch,)` and a configuration with
            `in_channels`, one of `num_classes`, `num_labels` and `id2label`, and `id2label` for names. With
            `through="denoised"` it sees x_0, at a level without noise and timestep 0; else one with
            `check_scheduler`, such as NoiseAwareClassifier, must know the scheduler's process.
        vae: The autoencoder whose latents denoiser and classifier work on; None for pixels.
        default_guidance: The guidance of a call that names none: a Guidance, its `to_config()` value, or the
            scale of classifier-free guidance; None is the classifier at scale 1.

    Raises:
        ValueError: A classifier without `log_prob`, or a default guidance that is none.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components = ["vae"]
    _exclude_from_cpu_offload = ["classifier"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self, unet: Any, scheduler: Any, classifier: Any, vae: Any = None, default_guidance: Any = None
    ) -> None:
        super().__init__()
        if classifier is not None and not callable(getattr(classifier, "log_prob", None)):
            raise ValueError(
                f"classifier is a {type(classifier).__name__}, which has no log_prob; allowed: a ModelMixin "
                "with log_prob(sample, level, labels), such as NoiseAwareClassifier"
            )
        check_vae(unet, vae)
        self.register_modules(unet=unet, scheduler=scheduler, classifier=classifier, vae=vae)
        self.register_to_config(
            default_guidance=default_guidance_config(default_guidance, **self._guidance_networks())
        )

    def log_prob(self, sample: Tensor, level: NoiseLevel, condition: ClassCondition) -> Tensor:
        """The classifier's log p(class | sample), `(batch,)`, as `ClassifierGuidance` takes it."""
        return self.classifier.log_prob(sample, level, condition.labels)

    @property
    def own_classifier(self) -> OwnClassifier:
        """The classifier as the terms of a call go by it."""
        return OwnClassifier(self.classifier, self.log_prob)

    def _guidance_networks(self) -> dict[str, Any]:
        return {"log_prob": self.log_prob}

    def call_guidance(
        self, guidance_scale: Scales | None = None, guidance_interval: Any = None, **options: Any
    ) -> Guidance:
        """The guidance of a call; the checkpoint's default where no scale, form or other option is given.

        Args:
            guidance_scale: Of classifier-free guidance.
            guidance_interval: Where all terms are active; None for where they say.
            options: `classifier_scale` and what else a call takes of classifier guidance.

        Raises:
            ValueError: One that is out of range.
        """
        options["guidance_scale"] = guidance_scale
        return call_guidance(self, self.own_classifier, guidance_interval, options)

    def _check_unet(self) -> None:
        unprompted.check_parts(self.unet, self.vae)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor,
        batch_size: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        classifier_scale: Scales | None = None,
        guidance_scale: Scales | None = None,
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
        """Draw images of classes.

        Args:
            class_labels: A class for all, or one an image: indices, or names of the classifier's `id2label`.
            batch_size: How many images; by default as many as classes.
            num_inference_steps: Steps of the scheduler; not used with `timesteps` or `sigmas`.
            timesteps: Custom timesteps, descending, for schedulers that take them.
            sigmas: Custom sigmas, descending, for schedulers that take them.
            classifier_scale: s, a number or one an image: 0 is unguided and never runs the classifier, 1, the
                default, is Bayes' rule.
            guidance_scale: gamma of classifier-free guidance beside the classifier's, for a denoiser with a
                null class: 1, the default, adds none.
            form: "score" (the default) or "mean_shift" (Algorithm 1).
            through: "classifier" (the default: noise-aware, on x_t) or "denoised" (clean, on the predicted
                x_0).
            at: "sample" (the default) or "mean", where the classifier's gradient is taken.
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
                replace the latents and set `pipeline._guidance_scale` or `pipeline._interrupt`.
            callback_on_step_end_tensor_inputs: Which tensors it gets, of `_callback_tensor_inputs`.
            guidance: Any sum of guidance terms, instead of the arguments of guidance above; the pipeline's
                own classifier is `ClassifierGuidance(pipeline.log_prob, scale)`.
            mu: The shift of the noise levels, for a scheduler with `use_dynamic_shifting`, which needs one.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of them.

        Raises:
            ValueError: An argument that is out of range, of the wrong type or shape, or contradicts another,
                or a classifier that does not fit the denoiser; each message names it. Raised before anything
                is computed.
        """
        return self._asked(locals()).draw()

    def _asked(self, given: Mapping[str, Any]) -> Asked:
        """A call with these arguments, checked."""
        config, count = self.classifier.config, given["batch_size"]
        if count is not None:
            check_int("batch_size", count, 1)
        classes, names = class_count(config), class_names(config)
        labels = class_ids(given["class_labels"], classes, names, "class_labels", count).reshape(-1)
        self._check_networks()
        call = begin(self, self.own_classifier, len(labels), given)
        self._check_null_class(call.guidance)

        def condition() -> ClassCondition:
            ids = labels.to(self._execution_device)
            return class_condition(ids, self._knows_classes(), self._null_class())

        return asked(self, self.own_classifier, call, given, len(labels), condition)

    def _check_null_class(self, guidance: Guidance) -> None:
        asking = [term for term in guidance.terms if term.needs_null]
        if asking and self._null_class() is None:
            gamma, name = asking[0].gamma, type(asking[0]).__name__
            given = f"guidance has {name}" if gamma is None else f"guidance_scale is {gamma!r}"
            known = self._knows_classes()
            why = "has no null class, one embedding more than classes" if known else "knows no classes"
            raise ValueError(
                f"{given}; allowed: 1 or None, or terms that need no null class, because this denoiser "
                f"{why}, and {name} needs its null class"
            )

    def _knows_classes(self) -> bool:
        return self.unet.class_embedding is not None

    def _null_class(self) -> int | None:
        """The index of the denoiser's null class, the last of one embedding more than there are classes."""
        classes = class_count(self.classifier.config)
        return classes if self.unet.config.num_class_embeds == classes + 1 else None

    def _check_networks(self) -> None:
        """Raise ValueError where classifier and denoiser differ in the samples or the classes they know."""
        self._check_unet()
        unprompted.check_channels("classifier", value_of(self.classifier.config, "in_channels"), self.unet)
        classes, embeds = class_count(self.classifier.config), self.unet.config.num_class_embeds
        if embeds is not None and embeds not in (classes, classes + 1):
            raise ValueError(
                f"unet has num_class_embeds {embeds} and the classifier {classes} classes; allowed: "
                f"{classes}, or {classes + 1} with a null class"
            )
