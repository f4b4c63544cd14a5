"""Classifier guidance of a network's output that has been computed already: to x_0, shifted, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.prediction import at_least_float32, from_denoised, to_denoised
from guided_diffusers.guidance import ClassifierGuidance, Guidance, Step
from guided_diffusers.schedulers.adapt import next_noise_level, noise_level, place_of, prediction_type_of
from guided_diffusers.schedulers.protocol import AnyScheduler


def check_classifier_terms(guidance: Any) -> None:
    """Raise ValueError where guidance needs more than the output and the sample."""
    if not isinstance(guidance, Guidance):
        raise ValueError(f"guidance is a {type(guidance).__name__}; allowed: ClassifierGuidance terms")
    for term in guidance.terms:
        if not isinstance(term, ClassifierGuidance) or term.through != "classifier":
            what = f"{type(term).__name__} with through={getattr(term, 'through', None)!r}"
            raise ValueError(
                f"guidance has a {what}, which needs the network, and its output is already there; "
                "allowed: ClassifierGuidance with through='classifier'"
            )


def check_process_of(guidance: Guidance, scheduler: AnyScheduler) -> None:
    """Raise ValueError where the network of a term was trained for another process, or an unknown one."""
    for term in guidance.terms:
        if isinstance(term, ClassifierGuidance):
            term.check_scheduler(scheduler)


def condition_of_batch(condition: Any, sample: Tensor) -> Any:
    """Labels one a sample, where a pipeline steps its batch twice over: once with and once without labels.

    Raises:
        ValueError: Labels of another number than the images.
    """
    count = len(condition) if isinstance(condition, Tensor) and condition.ndim else len(sample)
    if count == len(sample):
        return condition
    if 2 * count == len(sample) and torch.equal(sample[:count], sample[count:]):
        return torch.cat([condition, condition])
    raise ValueError(
        f"condition has {count} labels for a batch of {len(sample)} images; allowed: one an image"
    )


def guided_output(
    guidance: Guidance,
    scheduler: AnyScheduler,
    model_output: Tensor,
    timestep: Tensor | int,
    sample: Tensor,
    condition: Any = None,
    shifts_mean: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What the network would have said under classifier guidance.

    Args:
        guidance: ClassifierGuidance terms with `through="classifier"`.
        scheduler: A supported scheduler, in the run that `timestep` belongs to.
        model_output: The network's output, `(batch, channels, ...)`; channels of a learned variance behind it
            stay as they are.
        timestep: The step's.
        sample: x_t, `(batch, channels, ...)`, unscaled.
        condition: What the terms' `log_prob` receives as its third argument, such as labels `(batch,)`.
        shifts_mean: As `Step.shifts_mean`.

    Returns:
        The guided output, of model_output's shape and dtype, and what the scheduler is to shift its mean by.
    """
    level, x = noise_level(scheduler, timestep), at_least_float32(sample)
    step = Step(
        sample=x,
        level=level,
        next_level=next_noise_level(scheduler, place_of(scheduler, timestep)),
        condition=condition,
        prediction_type=prediction_type_of(scheduler),
        shifts_mean=shifts_mean,
    )
    output, extra = model_output[:, : sample.shape[1]], model_output[:, sample.shape[1] :]
    x0 = to_denoised(output, x, level, step.prediction_type)

    def answered(sample: Tensor, level: NoiseLevel, condition: Any = None) -> Denoised:
        return Denoised(x0)

    prediction = guidance(answered).run(step)
    guided = from_denoised(prediction.x0, x, level, step.prediction_type)
    return torch.cat([guided.to(output.dtype), extra], dim=1), prediction.mean
