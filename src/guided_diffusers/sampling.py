"""The sampling loop: one for every scheduler, prediction type and guidance.

    noise level -> guided x_0 -> what the network would have said -> scheduler.step

The scheduler contributes noise levels and its step; guidance works on x_0; the prediction type is one row of
a table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import (
    check_callable,
    check_int,
    check_number,
    check_numbers,
    check_same_shape,
    shown,
)
from guided_diffusers.core.denoiser import Denoiser
from guided_diffusers.core.finite import Watch
from guided_diffusers.core.noise import broadcast
from guided_diffusers.core.prediction import at_least_float32, from_denoised
from guided_diffusers.core.randomness import as_generators
from guided_diffusers.guidance.base import Guided, Step
from guided_diffusers.schedulers.adapt import (
    check_supported,
    config_of,
    initial_scale,
    next_noise_level,
    noise_level,
    prediction_type_of,
    reads_variance,
    run_timesteps,
    seed_noise,
    sigmas_for,
    stepper,
    takes,
)
from guided_diffusers.schedulers.protocol import AnyScheduler


class StopSampling(Exception):  # noqa: N818  (a signal, as StopIteration is)
    """Raised by a callback to end a run early: `raise StopSampling(sample)`; the loop returns that sample."""

    def __init__(self, sample: Tensor) -> None:
        super().__init__()
        self.sample = sample


@torch.no_grad()
def sampling_loop(
    denoiser: Denoiser,
    scheduler: AnyScheduler,
    noise: Tensor,
    condition: Any = None,
    num_inference_steps: int = 50,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    step_kwargs: Mapping[str, Any] | None = None,
    mu: float | None = None,
) -> Tensor:
    """Sample from noise to x_0.

    Args:
        denoiser: A denoiser, guided (`guidance(denoiser)`) or plain.
        scheduler: A scheduler of this package or of diffusers, or any that says its noise levels
            (`schedulers.Scheduler`); its timesteps are set here.
        noise: Standard normal, `(batch, ...)`; it is scaled by the scheduler's `init_noise_sigma` here.
        condition: What the denoiser is told, such as a `Condition`.
        num_inference_steps: Steps of the scheduler; ignored where `timesteps` or `sigmas` are given.
        timesteps: Custom timesteps, descending, for schedulers that take them.
        sigmas: Custom sigmas, descending, for schedulers that take them.
        generator: Of the noise that stochastic schedulers add: one, or one a sample.
        callback: `(index, timestep, sample) -> sample`, after each step; may raise `StopSampling`.
        step_kwargs: Further arguments of `scheduler.step`, such as `{"eta": 0.5}`.
        mu: The shift of the noise levels, for schedulers with `use_dynamic_shifting`, which need one.

    Returns:
        The sample, of noise's shape, in float32 (float64 where the noise is).

    Raises:
        ValueError: An unsupported scheduler, steps that are not positive, both timesteps and sigmas, a
            Condition without the null that guidance asks for, or epsilon prediction from zero terminal SNR.
        NonFiniteError: The sample stopped being finite; it says at which step.
    """
    if not hasattr(denoiser, "run"):
        check_callable("denoiser", denoiser, "a denoiser, (sample, level, condition) -> x_0")
    if not isinstance(noise, Tensor) or not noise.is_floating_point() or noise.ndim < 2 or not noise.numel():
        raise ValueError(f"noise is {shown(noise)}; allowed: a floating-point tensor (batch, ...)")
    _check_generator(generator, len(noise))
    if any(term.needs_null for term in getattr(denoiser, "guidance", ())):
        getattr(condition, "null", None)  # a Condition that has none says so before anything is computed
    if callback is not None:
        check_callable("callback", callback)
    if step_kwargs is not None and not isinstance(step_kwargs, Mapping):
        raise TypeError(f"step_kwargs is {shown(step_kwargs)}; allowed: a mapping of arguments of step")
    set_timesteps(scheduler, num_inference_steps, timesteps, sigmas, mu)
    sample = at_least_float32(noise)
    scale = torch.as_tensor(initial_scale(scheduler), dtype=torch.float64)
    sample = sample * broadcast(scale, sample, "the first noise level")
    guided = denoiser if hasattr(denoiser, "run") else Guided(denoiser)
    prediction_type, with_variance = prediction_type_of(scheduler), reads_variance(scheduler)
    step_kwargs, taken = dict(step_kwargs or {}), inspect.signature(scheduler.step).parameters
    if "generator" in taken:
        step_kwargs["generator"] = as_generators(generator)
    seed_noise(scheduler, sample, as_generators(generator))
    memory: dict[Any, Any] = {}
    listed = run_timesteps(scheduler)
    watch = Watch(type(scheduler).__name__, listed)
    take_step = stepper(scheduler, **step_kwargs)
    following = noise_level(scheduler, scheduler.timesteps[0])
    for index, timestep in enumerate(listed):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample[:1], timestep)  # sets up a multi-stage one's state
        level, following = following, next_noise_level(scheduler, index)
        step = Step(
            sample=sample,
            level=level,
            next_level=following,
            condition=condition,
            memory=memory,
            prediction_type=prediction_type,
            shifts_mean="guidance_gradient" in taken,
        )
        denoised = guided.run(step)
        output = from_denoised(denoised.x0, sample, level, prediction_type)
        if with_variance and denoised.extra is None:
            given = f"{watch.scheduler} has variance_type {config_of(scheduler, 'variance_type')!r}"
            raise ValueError(
                f"{given}, and the denoiser gives no variance (Denoised.extra); allowed: a network of "
                "twice the channels, or a fixed variance_type"
            )
        if with_variance:
            output = torch.cat([output, denoised.extra.to(output.dtype)], dim=1)
        gradient = {} if denoised.mean is None else {"guidance_gradient": denoised.mean}
        sample = take_step(output, timestep, sample, **gradient)
        try:
            given = sample if callback is None else callback(index, timestep, sample)
            stopped = False
        except StopSampling as stop:
            given, stopped = stop.sample, True
        sample = at_least_float32(check_same_shape("what callback gave", given, "the sample", sample))
        watch.note(level, denoised.x0, sample)
        if stopped:
            break
    watch.check()
    return sample


def _check_generator(generator: Any, count: int) -> None:
    several = list(generator) if isinstance(generator, Sequence) else [generator]
    right = generator is None or all(isinstance(each, torch.Generator) for each in several)
    if not right or (isinstance(generator, Sequence) and len(several) != count):
        given = f"a list of {len(several)}" if right else shown(generator)
        raise ValueError(f"generator is {given}; allowed: a torch.Generator, or one a sample, {count}")


def set_timesteps(
    scheduler: AnyScheduler,
    num_inference_steps: int | None = 50,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> None:
    """Set a scheduler's timesteps on the CPU, where reading them never waits for an accelerator.

    Raises:
        ValueError: An unsupported scheduler, steps that are not positive, both timesteps and sigmas, or
            custom ones that this scheduler does not take; `mu` missing, or without use.
    """
    check_supported(scheduler)
    train = config_of(scheduler, "num_train_timesteps")
    shift = _shift(scheduler, mu)
    if timesteps is not None and sigmas is not None:
        raise ValueError("timesteps and sigmas were both given; allowed: one of them")
    for name, value in (("timesteps", timesteps), ("sigmas", sigmas)):
        if value is None:
            continue
        if not takes(scheduler, name):
            raise ValueError(f"{type(scheduler).__name__} takes no custom {name}: give num_inference_steps")
        if isinstance(value, Sequence) and not value:
            raise ValueError(f"{name} is empty; give at least one")
        # As numbers of our own: schedulers multiply them, and some write into what they are given.
        numbers = check_numbers(name, value, 0, train if name == "timesteps" else None, falling=True)
        if name == "timesteps":
            numbers = [int(number) if number == int(number) else number for number in numbers]
        given = numbers if name == "timesteps" else sigmas_for(scheduler, numbers)
        return _set(scheduler, name, given, shift)
    count = check_int("num_inference_steps", num_inference_steps, 1)
    return _set(scheduler, "num_inference_steps", count, shift)


def _shift(scheduler: AnyScheduler, mu: float | None) -> dict[str, float]:
    """`mu` as an argument of the scheduler's `set_timesteps`, where it has to be one."""
    name = type(scheduler).__name__
    if not config_of(scheduler, "use_dynamic_shifting"):
        if mu is not None:
            raise ValueError(f"mu is given, and the {name} has no use_dynamic_shifting: leave mu out")
        return {}
    if mu is None:
        raise ValueError(
            f"the {name} has use_dynamic_shifting, so it needs mu, a shift that depends on the image's size: "
            "give sampling_loop mu, or make the scheduler with use_dynamic_shifting=False and a shift"
        )
    return {"mu": check_number("mu", mu)}


def _set(scheduler: AnyScheduler, name: str, value: Any, more: Mapping[str, Any]) -> None:
    """Call the scheduler's own `set_timesteps`, whose errors on few or uneven steps are of every kind."""
    taken, more = inspect.signature(scheduler.set_timesteps).parameters, dict(more)
    if "device" in taken:
        more["device"] = "cpu"
    if "intermediate_timesteps" in taken and value != 2:  # SCM's default is for two steps only
        more["intermediate_timesteps"] = None
    by_position = [] if name in taken else [value]  # of one's own scheduler the first may have any name
    try:
        scheduler.set_timesteps(*by_position, **more, **({} if by_position else {name: value}))
    except (TypeError, ValueError, IndexError, RuntimeError, ArithmeticError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ValueError) and name in reason:
            raise
        raise ValueError(
            f"{name} is {shown(value)}, which {type(scheduler).__name__} refuses: {reason}"
        ) from error
    listed = torch.as_tensor(scheduler.timesteps)
    if listed.ndim != 1 or not len(listed):
        given = f"the timesteps that {type(scheduler).__name__} lists are {shown(listed)}"
        raise ValueError(f"{given}; allowed: one number a step, and at least one step")
    _start_at_the_first(scheduler)


def _start_at_the_first(scheduler: AnyScheduler) -> None:
    """Begin at the first entry: where its timestep is listed twice, diffusers would begin at the second."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
