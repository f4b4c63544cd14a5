"""The part that two pipelines hold: guidance by a network's log p, and the drawing of images under it.

What the forms and options of classifier guidance mean, and how their scales relate, is in
`guided_diffusers.guidance.classifier`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from diffusers.utils import logging
from torch import Tensor

from guided_diffusers.core.condition import Condition
from guided_diffusers.core.denoiser import ModelDenoiser
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.guidance import ClassifierFreeGuidance, ClassifierGuidance, Guidance, GuidanceSum
from guided_diffusers.guidance.base import checked_scale
from guided_diffusers.guidance.classifier import check_sees_noise
from guided_diffusers.pipelines import inputs, unprompted
from guided_diffusers.pipelines.clipping import clip_before_guidance
from guided_diffusers.pipelines.drawing import Asked, Drawing
from guided_diffusers.pipelines.guided import Call, GuidedMixin
from guided_diffusers.schedulers.adapt import noise_level, prediction_type_of

logger = logging.get_logger(__name__)

NEARLY_PURE_NOISE = 1000.0  # sigma / alpha: the linear schedule ends at 157, the cosine one at 20,291

Scales = float | Sequence[float]
LogProb = Callable[[Tensor, NoiseLevel, Any], Tensor]


@dataclass(frozen=True)
class OwnClassifier:
    """A pipeline's own network of log p, as the terms of a call go by it.

    Attributes:
        network: The network.
        log_prob: Its log p(condition | sample), `(batch,)`, as `ClassifierGuidance` takes it.
    """

    network: Any
    log_prob: LogProb

    def clean_log_prob(self, x0: Tensor, level: NoiseLevel, condition: Any) -> Tensor:
        """The same of a predicted x_0, whatever the level: it has no noise, and timestep 0."""
        clean = NoiseLevel(alpha=1.0, sigma=0.0, timestep=torch.zeros((), dtype=torch.int64))
        return self.log_prob(x0, clean, condition)

    def terms(
        self,
        classifier_scale: Scales = 1.0,
        guidance_scale: Scales = 1.0,
        guidance_interval: Any = None,
        **options: Any,
    ) -> Guidance:
        """The guidance of a call with these arguments."""
        scale = checked_scale(classifier_scale, "classifier_scale")
        gamma = checked_scale(guidance_scale, "guidance_scale")
        classifier = ClassifierGuidance(self.log_prob, scale, guidance_interval, **options)
        return classifier + ClassifierFreeGuidance(gamma, guidance_interval)

    def of(self, guidance: Guidance) -> list[ClassifierGuidance]:
        """The terms of a guidance that go by this network."""
        terms = [term for term in guidance.terms if isinstance(term, ClassifierGuidance)]
        return [term for term in terms if term.log_prob == self.log_prob]

    def told_clean(self, guidance: Guidance) -> Guidance:
        """A guidance whose terms on the predicted x_0 tell this network that it has no noise."""
        on_x0 = [term for term in self.of(guidance) if term.through == "denoised"]
        terms = (replace(t, log_prob=self.clean_log_prob) if t in on_x0 else t for t in guidance.terms)
        return GuidanceSum(tuple(terms)) if on_x0 else guidance

    def check_process(self, guidance: Guidance, scheduler: Any) -> None:
        """Where the network is to see x_t, check that it can, and that it was trained on the scheduler's."""
        if any(not term.idle and term.through == "classifier" for term in self.of(guidance)):
            check_sees_noise(self.network, scheduler)

    def warn_of_nearly_pure_noise(self, guidance: Guidance, level: NoiseLevel) -> None:
        """Say so where the score form, unbounded, is active at a first level at which its factor is huge."""
        ratio = float(level.noise_to_signal)
        if not NEARLY_PURE_NOISE < ratio < math.inf:
            return
        for term in self.of(guidance):
            active = not term.idle and (term.interval is None or level in term.interval)
            if active and term.form == "score" and term.max_gradient_norm is None:
                logger.warning(
                    f"The first step is at sigma / alpha = {ratio:,.0f}, where the score form moves x_0 by "
                    "sigma^2 / alpha times the gradient of a network that knows little. If images are poor, "
                    "give guidance_interval=(0, 100) or max_gradient_norm."
                )


OPTIONS = (
    "classifier_scale",
    "guidance_scale",
    "guidance_interval",
    "form",
    "through",
    "at",
    "max_gradient_norm",
)
"""The arguments of a call that say its guidance."""


def call_guidance(
    pipeline: Any, own: OwnClassifier, guidance_interval: Any, options: Mapping[str, Any]
) -> Guidance:
    """The guidance of a call; the checkpoint's default where no scale, form or other option is given."""
    given = {name: value for name, value in options.items() if value is not None}
    if given or pipeline.config.default_guidance is None:
        return own.terms(guidance_interval=guidance_interval, **given)
    return GuidedMixin.call_guidance(pipeline, guidance_interval=guidance_interval)


def begin(pipeline: Any, own: OwnClassifier, images: int, given: Mapping[str, Any]) -> Call:
    """Which guidance a call with these arguments uses, before anything is computed.

    Raises:
        ValueError: `guidance` beside other arguments, one out of range, or a noise-aware network of another
            process than the scheduler's.
    """
    guidance, options = given["guidance"], {name: given[name] for name in OPTIONS if name in given}
    for name, value in options.items():
        inputs.check_one_of("guidance", guidance, name, value)
    call = Call.of(pipeline.call_guidance(**options) if guidance is None else guidance, images)
    own.check_process(call.guidance, pipeline.scheduler)
    return replace(call, guidance=own.told_clean(call.guidance))


def asked(
    pipeline: Any,
    own: OwnClassifier,
    call: Call,
    given: Mapping[str, Any],
    images: int,
    condition: Callable[[], Condition],
) -> Asked:
    """The checked call of so many images of a condition, which is made after all that may be refused."""
    shape = unprompted.sample_shape(pipeline.unet, images)
    drawing = Drawing.of(given, shape)
    draw = partial(_draw, pipeline, own, call, drawing, shape, condition)
    return Asked(draw, drawing, unprompted.pictures(pipeline.vae, shape))


def _draw(
    pipeline: Any,
    own: OwnClassifier,
    call: Call,
    drawing: Drawing,
    shape: tuple[int, ...],
    condition: Callable[[], Condition],
) -> ImagePipelineOutput | tuple[Any]:
    unet, vae, device = pipeline.unet, pipeline.vae, pipeline._execution_device
    scheduler, clip = clip_before_guidance(pipeline.scheduler, latents=vae is not None)
    denoiser = ModelDenoiser(unet, prediction_type_of(scheduler), clip)
    run = drawing.run(denoiser, scheduler, shape, unet.dtype, device, call.guidance)
    own.warn_of_nearly_pure_noise(call.guidance, noise_level(run.scheduler, run.timesteps[0]))
    run.condition = condition()
    sample = drawing.sample(pipeline, run, call)
    drawn = unprompted.images_of(vae, sample, drawing.output_type, drawing.generator)
    pipeline.maybe_free_model_hooks()
    return ImagePipelineOutput(images=drawn) if drawing.return_dict else (drawn,)
