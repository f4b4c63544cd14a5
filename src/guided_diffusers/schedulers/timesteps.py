"""Setting the timesteps of a run, on any scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from guided_diffusers.core.checks import check_int, check_number, check_numbers, shown
from guided_diffusers.schedulers.adapt import check_supported, config_of, sigmas_for, takes
from guided_diffusers.schedulers.protocol import AnyScheduler


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
    setter: Callable[..., None] = scheduler.set_timesteps
    taken, more = inspect.signature(setter).parameters, dict(more)
    if "device" in taken:
        more["device"] = "cpu"
    if "intermediate_timesteps" in taken and value != 2:  # SCM's default is for two steps only
        more["intermediate_timesteps"] = None
    by_position = [] if name in taken else [value]  # of one's own scheduler the first may have any name
    try:
        setter(*by_position, **more, **({} if by_position else {name: value}))
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
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # where the first timestep is listed twice, it would begin at the second
