"""Sampling: one `Run` for every scheduler, prediction type and guidance, and the loop over it.

    noise level -> guided x_0 -> what the network would have said -> scheduler.step

The scheduler contributes noise levels and its step; guidance works on x_0; the prediction type is one row of
a table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Annotated, Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from guided_diffusers.core.checks import check_same_shape, check_that
from guided_diffusers.core.declared import read
from guided_diffusers.core.denoiser import Denoiser
from guided_diffusers.core.finite import Watch
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.prediction import at_least_float32, output_of
from guided_diffusers.core.randomness import check_generator
from guided_diffusers.guidance.base import Guidance, GuidanceSum, Guided, Prediction, Step
from guided_diffusers.guidance.recurrence import renoised
from guided_diffusers.schedulers.adapt import adapted, seed_noise, stepper
from guided_diffusers.schedulers.families import config_of
from guided_diffusers.schedulers.protocol import AnyScheduler
from guided_diffusers.schedulers.timesteps import set_timesteps

_CALLBACK = Annotated[Callable[..., Any] | None, "a function"]


class Run:
    """One run of a scheduler from noise to x_0: iterating yields its steps, `advance` takes them.

        run = Run(guidance(denoiser), scheduler, noise, condition)
        for step in run:
            run.advance(step)
        x0 = run.sample

    Between two steps `run.sample`, `run.condition` and `run.guidance` may be set: each step is made of what
    they are then. A loop may be left at any step; at its end, and by `check` before it, it is checked that
    every sample was finite. All state of the run is its own; of the scheduler it takes a shallow copy, and
    leaves the given one as `set_timesteps` does.

    Args:
        denoiser: A denoiser, guided (`guidance(denoiser)`) or plain.
        scheduler: A scheduler of this package or of diffusers, or any that says its noise levels
            (`schedulers.Scheduler`); its timesteps are set here.
        noise: Standard normal, `(batch, ...)`; it is scaled by the scheduler's `init_noise_sigma` here.
        condition: What the denoiser is told, such as a `Condition`.
        guidance: Terms beside those that the denoiser has.
        num_inference_steps: Steps of the scheduler; ignored where `timesteps` or `sigmas` are given.
        timesteps: Custom timesteps, descending, for schedulers that take them.
        sigmas: Custom sigmas, descending, for schedulers that take them.
        generator: Of the noise that stochastic schedulers and recurrence add: one, or one a sample.
        step_kwargs: Further arguments of `scheduler.step`, such as `{"eta": 0.5}`.
        mu: The shift of the noise levels, for schedulers with `use_dynamic_shifting`, which need one.

    Attributes:
        sample: x_t as it stands, in float32 (float64 where the noise is).
        condition: As given; the next step is told it as it stands.
        timesteps: Those at which the network is called, one a step.
        memory: What guidance keeps from step to step.

    Raises:
        ValueError: An unsupported scheduler, steps that are not positive, both timesteps and sigmas, a
            Condition without the null that guidance asks for, or epsilon prediction from zero terminal SNR.
        NonFiniteError: In the loop: the sample stopped being finite; it says at which step.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scheduler: AnyScheduler,
        noise: Tensor,
        condition: Any = None,
        *,
        guidance: Guidance | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        step_kwargs: Mapping[str, Any] | None = None,
        mu: float | None = None,
    ) -> None:
        guided = denoiser if isinstance(denoiser, Guided) else Guided(denoiser)
        self._guided = guided if guidance is None else guidance(guided)
        if not (isinstance(noise, Tensor) and noise.is_floating_point() and noise.ndim > 1 and noise.numel()):
            check_that(False, "noise", noise, "a floating-point tensor (batch, ...)")
        if generator is not None:
            generator = check_generator(generator, len(noise))
        if not isinstance(step_kwargs, Mapping | None):
            check_that(False, "step_kwargs", step_kwargs, "a mapping of arguments of the scheduler's step")
        if condition is not None and any(term.needs_null for term in self._guided.guidance):
            getattr(condition, "null", None)  # a Condition that has none says so before anything is computed
        self.condition, self.generator = condition, generator
        self.scheduler = _prepared(scheduler, num_inference_steps, timesteps, sigmas, mu)
        self.memory: dict[Any, Any] = {}
        taken = inspect.signature(self.scheduler.step).parameters
        self._shifts_mean = "guidance_gradient" in taken
        fixed = {"generator": generator} if "generator" in taken else {}
        self._take_step = stepper(self.scheduler, **{**(step_kwargs or {}), **fixed})
        read = adapted(self.scheduler)
        self.timesteps, self._levels, self._prediction_type, self._with_variance, scale = read
        sample = noise if noise.dtype is torch.float32 else at_least_float32(noise)
        scale = scale if isinstance(scale, float) else broadcast(scale, sample, "the first noise level")
        self.sample = sample * scale
        if generator is not None:
            seed_noise(self.scheduler, self.sample, generator)
        self._watch = Watch(type(self.scheduler).__name__, self.timesteps)
        self._taken: tuple[NoiseLevel, Tensor] | None = None
        self._steps = self._walk()

    @property
    def guidance(self) -> Guidance:
        """The terms under which the next step is taken."""
        return GuidanceSum(self._guided.guidance)

    @guidance.setter
    def guidance(self, guidance: Guidance) -> None:
        self._guided = replace(self._guided, guidance=guidance.terms)

    def __len__(self) -> int:
        """How many steps it has."""
        return len(self.timesteps)

    def __iter__(self) -> Iterator[Step]:
        """The steps that are left."""
        return self._steps

    def _walk(self) -> Iterator[Step]:
        levels = self._levels
        following, prepare = next(levels), getattr(self.scheduler, "scale_model_input", None)
        for timestep in self.timesteps:
            if prepare is not None:  # it sets up a multi-stage one's state
                first = self.sample[:1]
                prepare = None if prepare(first, timestep) is first else prepare
            level, following, self._timestep = following, next(levels), timestep
            yield Step(
                sample=self.sample,
                level=level,
                next_level=following,
                condition=self.condition,
                memory=self.memory,
                prediction_type=self._prediction_type,
                shifts_mean=self._shifts_mean,
            )
            self._note()
        self._watch.check()

    def check(self) -> None:
        """Raise NonFiniteError where a sample was not finite: for a loop that is left before its end."""
        self._note()
        self._watch.check()

    def _note(self) -> None:
        """Tell the watch of the step that was taken last; what has been made of its sample since counts."""
        if self._taken is not None:
            self._watch.note(*self._taken, self.sample)
            self._taken = None

    def advance(self, step: Step) -> Prediction:
        """Predict at a step, under the run's guidance and condition as they stand, and go to the next level.

        Returns:
            The guided prediction; where a term recurs, the last.
        """
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.advance(step)
        step = step if step.condition is self.condition else replace(step, condition=self.condition)
        terms = self._guided.guidance
        times = [term.recurrence for term in terms if term.recurrence > 1 and term.active(step)]
        for _ in range(1, max(times, default=1)):
            x0 = self._guided.run(replace(step, shifts_mean=False)).x0
            noise = randn_tensor(x0.shape, self.generator, x0.device, x0.dtype)
            step = replace(step, sample=renoised(step.sample, x0, step.level, step.following, noise))
        prediction = self._guided.run(step)
        output = output_of(prediction.x0, step.sample, step.level, self._prediction_type)
        if self._with_variance:
            output = torch.cat([output, self._variance(prediction).to(output.dtype)], dim=1)
        shifted = {} if prediction.mean is None else {"guidance_gradient": prediction.mean}
        self.sample = self._take_step(output, self._timestep, step.sample, **shifted)
        self._taken = (step.level, prediction.x0)
        return prediction

    def _variance(self, prediction: Prediction) -> Tensor:
        if prediction.extra is None:
            name, kind = type(self.scheduler).__name__, config_of(self.scheduler, "variance_type")
            raise ValueError(
                f"{name} has variance_type {kind!r}, and the denoiser gives no variance (Denoised.extra); "
                "allowed: a network of twice the channels, or a fixed variance_type"
            )
        return prediction.extra


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
    """Sample from noise to x_0: a `Run`, whose arguments these are, from its first step to its last.

    Args:
        denoiser: A denoiser, guided (`guidance(denoiser)`) or plain.
        scheduler: As of `Run`.
        noise: Standard normal, `(batch, ...)`.
        condition: What the denoiser is told, such as a `Condition`.
        num_inference_steps: Steps of the scheduler; ignored where `timesteps` or `sigmas` are given.
        timesteps: As of `Run`.
        sigmas: As of `Run`.
        generator: As of `Run`.
        callback: `(index, timestep, sample) -> sample`, after each step; a run that ends early is a `Run`.
        step_kwargs: As of `Run`.
        mu: As of `Run`.

    Returns:
        The sample, of noise's shape, in float32 (float64 where the noise is).

    Raises:
        ValueError: As of `Run`, or a callback that gives something else than a sample.
        NonFiniteError: The sample stopped being finite; it says at which step.
    """
    callback = read("callback", callback, _CALLBACK)
    run = Run(
        denoiser,
        scheduler,
        noise,
        condition,
        num_inference_steps=num_inference_steps,
        timesteps=timesteps,
        sigmas=sigmas,
        generator=generator,
        step_kwargs=step_kwargs,
        mu=mu,
    )
    for index, step in enumerate(run):
        run.advance(step)
        if callback is None:
            continue
        given = callback(index, run.timesteps[index], run.sample)
        run.sample = at_least_float32(check_same_shape("what callback gave", given, "the sample", run.sample))
    return run.sample


def _prepared(scheduler: AnyScheduler, *arguments: Any) -> AnyScheduler:
    """The scheduler of one run with its timesteps set: a copy of the given one, which lists them too.

    One whose methods were replaced on the object is not copied: they may belong to the object as it is.
    """
    if not hasattr(scheduler, "__dict__") or {"step", "set_timesteps"} & vars(scheduler).keys():
        set_timesteps(scheduler, *arguments)
        return scheduler
    own = copy(scheduler)
    set_timesteps(own, *arguments)
    vars(scheduler).update(vars(own))
    return own
