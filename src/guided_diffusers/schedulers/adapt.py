"""What a scheduler contributes here: noise levels, its row of the prediction table, its steps.

A scheduler that says its `noise_level` is taken at its word (see `Scheduler`); the classes of diffusers,
which do not, are adapted by the table of `families`. Nothing else asks what class a scheduler is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guided_diffusers.core.checks import as_number, check_same_shape, shown
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.schedulers.families import (
    FAMILIES,
    Family,
    check_supported,
    config_of,
    family_of,
    reads_variance,
)
from guided_diffusers.schedulers.protocol import AnyScheduler

SUPPORTED_SCHEDULERS = tuple(FAMILIES)
"""The classes of diffusers that are adapted; ours, and any that says its noise levels, need no list."""


def noise_level(scheduler: AnyScheduler, timestep: Tensor | float) -> NoiseLevel:
    """The noise level of a scheduler's sample at one of its timesteps.

    Args:
        scheduler: A scheduler that says its noise levels, or a class of diffusers (`SUPPORTED_SCHEDULERS`);
            after `set_timesteps`.
        timestep: A timestep listed in `scheduler.timesteps`, or `(batch,)` of them. While a run is under way,
            the entry at the scheduler's `step_index` is meant where a timestep is listed more than once.

    Returns:
        The level, of timestep's shape, read from the scheduler's own table.

    Raises:
        ValueError: An unsupported scheduler, `set_timesteps` not called yet, or a timestep that is not
            listed. (Before `set_timesteps` several tables run the other way; off the list another row would
            be read.)
    """
    check_supported(scheduler)
    if not _timesteps_are_set(scheduler):
        raise ValueError(f"{type(scheduler).__name__} has no timesteps yet: call its set_timesteps first")
    number = isinstance(timestep, Tensor) and timestep.ndim < 2 and timestep.numel() > 0
    if not number and as_number(timestep) is None:
        raise ValueError(f"timestep is {shown(timestep)}; allowed: a listed timestep, or one a sample")
    if isinstance(timestep, Tensor) and timestep.ndim == 1:
        return _stacked([noise_level(scheduler, t) for t in timestep], timestep)
    return _level(scheduler, place_of(scheduler, timestep), timestep)


def next_noise_level(scheduler: AnyScheduler, index: int) -> NoiseLevel:
    """The level that step `index` of a run arrives at.

    Args:
        scheduler: A supported scheduler, after `set_timesteps`.
        index: The step's place in `scheduler.timesteps`.

    Returns:
        The level; at the clean end alpha 1 and sigma 0, or the scheduler's own last level. Its timestep is
        the next listed one, None after the last. For multi-stage schedulers (Heun, KDPM2) it is the next
        stage's.
    """
    check_supported(scheduler)
    if hasattr(scheduler, "next_noise_level"):
        return _said(scheduler, scheduler.next_noise_level(index))
    listed = run_timesteps(scheduler)
    return _level(scheduler, index + 1, listed[index + 1] if index + 1 < len(listed) else None)


class Adapted(NamedTuple):
    """What a run reads from its scheduler once, after `set_timesteps`.

    Attributes:
        timesteps: At which it calls the network.
        levels: At each of them, and where the last step arrives. Those of diffusers' classes are made at
            once; a scheduler that says its own is asked for them as they come.
        prediction_type: As of `prediction_type_of`.
        with_variance: As of `reads_variance`.
        scale: As of `initial_scale`.
    """

    timesteps: Sequence[Any] | Tensor
    levels: Iterator[NoiseLevel]
    prediction_type: str
    with_variance: bool
    scale: Tensor | float


def adapted(scheduler: AnyScheduler) -> Adapted:
    """All that a run reads from a supported scheduler whose timesteps are set; its tables are read once.

    Raises:
        ValueError: A table of noise levels with NaN, or a prediction type as of `prediction_type_of`.
    """
    family = family_of(type(scheduler))
    if family is None or hasattr(scheduler, "noise_level"):
        listed = scheduler.timesteps
        row, scale = row_of(scheduler), initial_scale(scheduler)
        return Adapted(listed, _said_levels(scheduler, listed), row, reads_variance(scheduler), scale)
    values, row, scale = _values(scheduler, family), family.row(scheduler), family.scale(scheduler)
    listed, learned = scheduler.timesteps[: len(values) - 1], reads_variance(scheduler)
    alpha, sigma, input_scale = family.coordinates(scheduler, values[: len(listed) + 1])
    levels = NoiseLevel(alpha=alpha, sigma=sigma, input_scale=input_scale).each([*listed, None])
    return Adapted(listed, iter(levels), row, learned, scale)


def _said_levels(scheduler: AnyScheduler, listed: Sequence[Any] | Tensor) -> Iterator[NoiseLevel]:
    yield noise_level(scheduler, listed[0])
    yield from (next_noise_level(scheduler, index) for index in range(len(listed)))


def prediction_type_of(scheduler: AnyScheduler) -> str:
    """The row of the prediction table in which a scheduler's `step` reads the network's output.

    Args:
        scheduler: A supported scheduler.

    Returns:
        One of `guided_diffusers.core.prediction.PREDICTION_TYPES`.

    Raises:
        ValueError: An unsupported scheduler, or a prediction type that its `step` reads by another process's
            formula: v_prediction of a scheduler that uses flow sigmas, flow_prediction of one that does not.
    """
    check_supported(scheduler)
    return row_of(scheduler)


def row_of(scheduler: AnyScheduler) -> str:
    """`prediction_type_of` a scheduler that is known to be supported."""
    family = family_of(type(scheduler))
    if family is not None:
        return family.row(scheduler)
    return config_of(scheduler, "prediction_type") or getattr(scheduler, "prediction_type", "epsilon")


def process_kind(scheduler: AnyScheduler) -> str:
    """The kind of process a network is told about: one of `process.KINDS`.

    A variance-exploding scheduler's scaled input, `x_t / sqrt(1 + sigma^2)`, is that of the
    variance-preserving process with the same betas, so it is of that kind.

    Raises:
        ValueError: An unsupported scheduler, or one of no class that is known here.
    """
    check_supported(scheduler)
    family = family_of(type(scheduler))
    if family is None:
        own = f"scheduler is a {type(scheduler).__name__}, whose process is not known"
        raise ValueError(f"{own}: give it an attribute `process`, as describe_process gives one")
    known = inspect.signature(type(scheduler).__init__).parameters  # made from another's, it keeps its keys
    flow = config_of(scheduler, "use_flow_sigmas") and "use_flow_sigmas" in known
    return "flow" if flow else family.process


def run_timesteps(scheduler: AnyScheduler) -> Sequence[Any] | Tensor:
    """The timesteps at which a run calls the network; some schedulers list the clean end beside them."""
    family = family_of(type(scheduler))
    if family is None or hasattr(scheduler, "noise_level"):
        return scheduler.timesteps
    return scheduler.timesteps[: len(family.table(scheduler, 0)) - 1]


def initial_scale(scheduler: AnyScheduler) -> Tensor | float:
    """What standard normal noise is multiplied by to be the first sample of a run, one for all or each."""
    family = family_of(type(scheduler))
    if family is not None:
        return family.scale(scheduler)
    start = noise_level(scheduler, scheduler.timesteps[0]).sigma.clamp(min=1)
    return getattr(scheduler, "init_noise_sigma", start)


def stepper(scheduler: AnyScheduler, **fixed: Any) -> Callable[..., Tensor]:
    """One run's `(output, timestep, sample, **more) -> next sample`, whatever the scheduler's `step` wants.

    Args:
        scheduler: A supported scheduler.
        fixed: Further arguments of its `step`, the same at each.
    """
    taken, name = inspect.signature(scheduler.step).parameters, f"what {type(scheduler).__name__}.step gave"
    fixed |= {"return_dict": False} if "return_dict" in taken else {}
    take: Callable[..., Any] = scheduler.step
    before: list[Any] = [None, None]  # CogVideoX's solver is given its last x_0 and timestep by its caller
    family = family_of(type(scheduler))
    whole = family is not None and family.whole  # as integers, they index tables more quickly

    def step(output: Tensor, timestep: Any, sample: Tensor, **more: Any) -> Tensor:
        timestep = int(timestep) if whole else timestep
        if "old_pred_original_sample" not in taken:
            stepped = take(output, timestep, sample, **fixed, **more)
        else:
            stepped = take(output, before[0], timestep, before[1], sample, **fixed, **more)
            before[:] = stepped[1], timestep
        after = stepped[0] if isinstance(stepped, tuple) else getattr(stepped, "prev_sample", stepped)
        return at_least_float32(check_same_shape(name, after, "the sample", sample))

    return step


def seed_noise(scheduler: Any, sample: Tensor, generator: Any) -> None:
    """Let DPMSolverSDEScheduler, whose step takes no generator, draw this run's noise from it all the same.

    Args:
        scheduler: Any; one that was made with a `noise_sampler_seed` keeps it.
        sample: The first of the run.
        generator: None, one, or a list of one a sample.
    """
    if generator is None or getattr(scheduler, "noise_sampler_seed", 0) is not None:
        return
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    several = generator if isinstance(generator, list) else [generator]
    seeds = [int(torch.randint(2**63 - 1, (), generator=each, device=each.device)) for each in several]
    sigmas = scheduler.sigmas[scheduler.sigmas > 0]
    seed = seeds if isinstance(generator, list) else seeds[0]
    scheduler.noise_sampler = BrownianTreeNoiseSampler(sample, float(sigmas.min()), float(sigmas.max()), seed)


def step_names(scheduler: AnyScheduler) -> tuple[str, str, str]:
    """What a scheduler's `step` calls the output, the timestep and the sample."""
    taken, usual = list(inspect.signature(scheduler.step).parameters), ("model_output", "timestep", "sample")
    return usual if {*usual} <= {*taken} else (taken[0], taken[1], taken[2])


def place_of(scheduler: AnyScheduler, timestep: Tensor | float) -> int:
    """The place of a timestep in `scheduler.timesteps`: the current step's where that is it.

    Args:
        scheduler: A supported scheduler, after `set_timesteps`.
        timestep: A listed timestep.

    Returns:
        The index of the step, as `next_noise_level` takes it.

    Raises:
        ValueError: A timestep that is not listed.
    """
    timesteps = torch.as_tensor(scheduler.timesteps)
    step_index = getattr(scheduler, "step_index", None)
    if step_index is not None and step_index < len(timesteps) and bool(timesteps[step_index] == timestep):
        return step_index
    wanted = timestep if isinstance(timestep, Tensor) else as_number(timestep)  # any integer, however large
    places = (timesteps == torch.as_tensor(wanted, device=timesteps.device)).nonzero().flatten()
    if len(places) == 0:
        first = ", ".join(f"{float(t):g}" for t in timesteps[:5])
        raise ValueError(
            f"timestep is {shown(timestep)}, which {type(scheduler).__name__} does not list; "
            f"its {len(timesteps)} timesteps begin {first}"
        )
    return int(places[0])


def _level(scheduler: AnyScheduler, index: int, timestep: Any) -> NoiseLevel:
    """The level of step `index`, by the scheduler's own word or its family's table; then where it ends."""
    if timestep is not None and hasattr(scheduler, "noise_level"):
        level = _said(scheduler, scheduler.noise_level(timestep))
        return level if level.timestep is not None else replace(level, timestep=timestep)
    family = family_of(type(scheduler))
    if family is None:
        return NoiseLevel(alpha=1.0, sigma=0.0)
    values = _values(scheduler, family)
    value = values[min(index, len(values) - 1)]
    alpha, sigma, input_scale = family.coordinates(scheduler, value)
    return NoiseLevel(alpha=alpha, sigma=sigma, timestep=timestep, input_scale=input_scale)


def _values(scheduler: AnyScheduler, family: Family) -> Tensor:
    """The values of a family's table at the steps of a run, and where it ends, `(steps + 1,)` float64."""
    values = torch.as_tensor(family.table(scheduler, 0)).cpu().double()
    if family.staged:  # the values of second stages are in a table of their own
        second, places = torch.as_tensor(family.table(scheduler, 1)).cpu().double(), torch.arange(len(values))
        values = torch.where(places % 2 == 1, second[places.clamp(max=len(second) - 1)], values)
    if values.isnan().any():
        step = f"step {int(values.isnan().nonzero()[0]) + 1} of {len(values) - 1}"
        made = f"the table of noise levels that {type(scheduler).__name__} made has no number (NaN) at {step}"
        raise ValueError(f"{made}; try more steps, or another scheduler or timestep_spacing")
    return values


def _said(scheduler: AnyScheduler, level: Any) -> NoiseLevel:
    """A level as a scheduler says it, where it is one."""
    if not isinstance(level, NoiseLevel):
        given = f"the noise level that {type(scheduler).__name__} says is {shown(level)}"
        raise TypeError(f"{given}; allowed: a NoiseLevel")
    return level


def _timesteps_are_set(scheduler: AnyScheduler) -> bool:
    """Whether a run's timesteps are listed; Heun, LMS and KDPM2 list one over all of training's when made."""
    if getattr(scheduler, "timesteps", None) is None or len(scheduler.timesteps) == 0:
        return False
    train = config_of(scheduler, "num_train_timesteps")
    return (
        train is None
        or getattr(scheduler, "num_inference_steps", None) is not None
        or getattr(scheduler, "custom_timesteps", False)
        or len(scheduler.timesteps) not in (train, train + 1)
    )


def _stacked(levels: list[NoiseLevel], timestep: Tensor) -> NoiseLevel:
    alpha, sigma, input_scale = (
        torch.stack([getattr(level, name) for level in levels]) for name in ("alpha", "sigma", "input_scale")
    )
    return NoiseLevel(alpha=alpha, sigma=sigma, timestep=timestep, input_scale=input_scale)
