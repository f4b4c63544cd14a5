"""Setting the timesteps of a run, on any scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch

from guided_diffusers.core.checks import MAX_COUNT, check_int, check_number, check_that, shown
from guided_diffusers.core.declared import AtLeast, Within, read
from guided_diffusers.schedulers.families import check_supported, config_of, family_of
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
    dynamic = bool(config_of(scheduler, "use_dynamic_shifting"))
    check_supported(scheduler)
    more: dict[str, Any] = _shift(scheduler, dynamic, mu) if dynamic or mu is not None else {}
    if timesteps is not None and sigmas is not None:
        check_that(False, "sigmas", sigmas, "None, because timesteps are given: one of the two")
    name: str = "sigmas" if timesteps is None else "timesteps"
    value: Any = sigmas if timesteps is None else timesteps
    if value is None:
        name, count = "num_inference_steps", num_inference_steps
        whole = type(count) is int and 0 < count <= MAX_COUNT  # most: 2 calls fewer (speed/loop.py)
        value = count if whole else check_int(name, count, 1)
    else:
        value = _custom(scheduler, name, value)
    setter: Callable[..., None] = scheduler.set_timesteps
    taken = inspect.signature(setter).parameters
    if "device" in taken:
        more["device"] = "cpu"
    if "intermediate_timesteps" in taken and value != 2:  # SCM's default is for two steps only
        more["intermediate_timesteps"] = None
    by_position = [] if name in taken else [value]  # of one's own scheduler the first may have any name
    try:  # its errors on few or uneven steps are of every kind
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
        own, allowed = type(scheduler).__name__, "one number a step, and at least one step"
        check_that(False, f"the timesteps that {own} lists", listed, allowed)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # where the first timestep is listed twice, it would begin at the second


def takes(scheduler: AnyScheduler, name: str) -> bool:
    """Whether a scheduler's `set_timesteps` takes custom `timesteps` or `sigmas` and uses them as given."""
    family = family_of(type(scheduler))
    bent = family is not None and name in family.unusable
    return name in inspect.signature(scheduler.set_timesteps).parameters and not bent


def _custom(scheduler: AnyScheduler, name: str, values: Any) -> Any:
    """Custom `timesteps` or `sigmas` as the scheduler takes them.

    As numbers of our own: schedulers multiply them, and some write into what they are given.
    """
    own = type(scheduler).__name__
    check_that(takes(scheduler, name), name, values, f"None, because {own} takes no custom {name}")
    if name == "sigmas":
        family, sigmas = family_of(type(scheduler)), _descending(name, values, None)
        return np.array(sigmas) if family is None else family.sequence(sigmas)
    numbers = _descending(name, values, config_of(scheduler, "num_train_timesteps"))
    return [int(each) if each == int(each) else each for each in numbers]


def _descending(name: str, values: Any, most: float | None) -> list[float]:
    """Custom timesteps or sigmas, of a list, a tuple, or a tensor or array of one dimension."""
    listed = values.tolist() if getattr(values, "ndim", 0) == 1 else values
    listed = list(listed) if isinstance(listed, range) else listed
    number = Annotated[float, AtLeast(0) if most is None else Within(0, most)]
    numbers = read(name, listed, Annotated[list[number], AtLeast(1)])
    falls = all(after < before for before, after in zip(numbers, numbers[1:], strict=False))
    check_that(falls, name, values, "descending numbers")
    return numbers


def _shift(scheduler: AnyScheduler, shifts: bool, mu: float | None) -> dict[str, float]:
    """`mu` as an argument of the scheduler's `set_timesteps`, where it has to be one."""
    own = type(scheduler).__name__
    check_that(shifts or mu is None, "mu", mu, f"None, because {own} has no use_dynamic_shifting")
    needs = f"a number: {own} has use_dynamic_shifting, so it needs mu, a shift by the image's size; or make "
    check_that(mu is not None or not shifts, "mu", mu, f"{needs}it with use_dynamic_shifting=False")
    return {"mu": check_number("mu", mu)} if shifts else {}
