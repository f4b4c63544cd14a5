"""What pipelines share that the log p of a network steers: arguments of classifier guidance, and checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Guidance,
    GuidanceSum,
)
from guided_diffusers.guidance.base import checked_scale
from guided_diffusers.guidance.classifier import check_sees_noise
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.guided import GuidedPipeline
from guided_diffusers.pipelines.unprompted import UnpromptedMixin
from guided_diffusers.schedulers.adapt import noise_level

logger = logging.get_logger(__name__)

NEARLY_PURE_NOISE = 1000.0  # sigma / alpha: the linear schedule ends at 157, the cosine one at 20,291

Scales = float | Sequence[float]


class SteeredPipeline(UnpromptedMixin, GuidedPipeline):
    """A `UNet2DModel` in pixels or latents, steered by the gradient of `log_prob`."""

    _callback_tensor_inputs = ["latents"]

    @property
    def steering(self) -> Any:
        """The network whose log p steers."""
        raise NotImplementedError

    def log_prob(self, sample: Tensor, level: NoiseLevel, condition: Any) -> Tensor:
        """The network's log p(condition | sample), `(batch,)`, as `ClassifierGuidance` takes it."""
        raise NotImplementedError

    def clean_log_prob(self, x0: Tensor, level: NoiseLevel, condition: Any) -> Tensor:
        """The same of a predicted x_0, whatever the level: it has no noise, and timestep 0."""
        clean = NoiseLevel(alpha=1.0, sigma=0.0, timestep=torch.zeros((), dtype=torch.int64))
        return self.log_prob(x0, clean, condition)

    def _guidance_networks(self) -> dict[str, Any]:
        return {"log_prob": self.log_prob}

    def _begin_classifier_guidance(self, guidance: Guidance | None, images: int, **given: Any) -> None:
        """Settle which guidance this call uses, before anything is computed.

        Raises:
            ValueError: `guidance` beside other arguments, one out of range, or a noise-aware network of
                another process than the scheduler's.
        """
        for name, value in given.items():
            inputs.check_one_of("guidance", guidance, name, value, required=False)
        if guidance is None:
            guidance = self.call_guidance(**given)
        self._settle_guidance(guidance, images)
        self._check_process()
        self._guidance = GuidanceSum(tuple(map(self._with_clean_level, self._guidance.terms)))

    def _begin_schedule(
        self, steps: int, timesteps: Sequence[int] | None, sigmas: Sequence[float] | None
    ) -> str:
        prediction_type = super()._begin_schedule(steps, timesteps, sigmas)
        self._warn_of_nearly_pure_noise()
        return prediction_type

    def _warn_of_nearly_pure_noise(self) -> None:
        """Say so where the score form, unbounded, is active at a step at which its factor is huge."""
        level = noise_level(self.scheduler, self.scheduler.timesteps[0])
        ratio = float(level.noise_to_signal)
        if not NEARLY_PURE_NOISE < ratio < math.inf:
            return
        for term in self._own_terms():
            active = term.scale != term.neutral and (term.interval is None or level in term.interval)
            if active and term.form == "score" and term.max_gradient_norm is None:
                logger.warning(
                    f"The first step is at sigma / alpha = {ratio:,.0f}, where the score form moves x_0 by "
                    "sigma^2 / alpha times the gradient of a network that knows little. If images are poor, "
                    "give guidance_interval=(0, 100) or max_gradient_norm."
                )

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
        given = {name: value for name, value in options.items() if value is not None}
        if given or self.config.default_guidance is None:
            return self._terms(guidance_interval=guidance_interval, **given)
        return super().call_guidance(guidance_interval=guidance_interval)

    def _terms(
        self,
        classifier_scale: Scales = 1.0,
        guidance_scale: Scales = 1.0,
        guidance_interval: Any = None,
        **options: Any,
    ) -> Guidance:
        scale = checked_scale(classifier_scale, "classifier_scale")
        gamma = checked_scale(guidance_scale, "guidance_scale")
        classifier = ClassifierGuidance(self.log_prob, scale, guidance_interval, **options)
        return classifier + ClassifierFreeGuidance(gamma, guidance_interval)

    def _own_terms(self) -> list[ClassifierGuidance]:
        """The terms of the call's guidance that go by the pipeline's own network."""
        terms = [term for term in self._guidance.terms if isinstance(term, ClassifierGuidance)]
        return [term for term in terms if term.log_prob == self.log_prob]

    def _with_clean_level(self, term: Guidance) -> Guidance:
        """The pipeline's network on the predicted x_0 is told that this has no noise."""
        if term in self._own_terms() and term.through == "denoised":
            return replace(term, log_prob=self.clean_log_prob)
        return term

    def _check_process(self) -> None:
        """Compare what a noise-aware network was trained on with the scheduler, where it is to see x_t."""
        sees_noise = any(
            term.through == "classifier" and term.scale != term.neutral for term in self._own_terms()
        )
        if sees_noise:
            check_sees_noise(self.steering, self.scheduler)

    def _check_channels(self, name: str, seen: int | None) -> None:
        channels = self.unet.config.in_channels
        if seen is not None and seen != channels:
            raise ValueError(
                f"{name} has in_channels {seen}; allowed: {channels}, the channels of the denoiser's sample"
            )

    def _check_call(
        self, images: int, latents: Any, generator: Any, eta: Any, output_type: Any, names: Sequence[str]
    ) -> None:
        inputs.check_choice("output_type", output_type, inputs.OUTPUT_TYPES)
        inputs.check_names("callback_on_step_end_tensor_inputs", names, self._callback_tensor_inputs)
        inputs.check_fraction("eta", eta)
        inputs.check_generator(generator, images)
        inputs.check_latents(latents, self._sample_shape(images))
