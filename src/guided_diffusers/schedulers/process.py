"""The process that a network was trained for, in a few JSON values, and its comparison with a scheduler's.

A noise-aware classifier knows one relation between timestep and noise: it sees `input_scale * x_t` and the
timestep, and nothing tells it where the two come from. Under another schedule it answers all the same, and
wrongly. So its configuration holds a description of its process:

    kind                    what else is in it
    variance_preserving     num_train_timesteps and the betas; schedulers in other coordinates (Euler, Heun)
                            give the same inputs once they are scaled, so they are of this kind too
    flow                    num_train_timesteps: at timestep t, sigma = t / num_train_timesteps, or, where
                            `reversed` is there, 1 minus that
    edm                     sigma_data, which scales the input; `timestep` where it is not log(sigma) / 4
    trigflow                noise_timestep, which means pure noise: at timestep t the angle whose tangent is
                            sigma / (sigma_data alpha) is t / noise_timestep of a quarter turn; sigma_data

Two variance-preserving processes are the same if their tables of abar are, however the betas are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import as_number, check_bool, shown
from guided_diffusers.schedulers.adapt import process_kind
from guided_diffusers.schedulers.chain import abar_table
from guided_diffusers.schedulers.families import QUARTER_TURN, is_reversed, known_as
from guided_diffusers.schedulers.protocol import AnyScheduler

KINDS = ("variance_preserving", "flow", "edm", "trigflow")
_NEEDED = {"edm": "sigma_data", "trigflow": "noise_timestep"}
_RELATIVE_TOLERANCE = 1e-4  # of abar; beta_end 0.0201 for 0.02 changes its last value by 5%
_SCHEDULES_WITHOUT_LIMITS = ("squaredcos_cap_v2", "laplace")


def describe_process(scheduler: AnyScheduler) -> dict[str, Any]:
    """What a scheduler's noise levels and timesteps say to a network, as JSON values.

    Args:
        scheduler: One of `SUPPORTED_SCHEDULERS`, or one with such a description as its attribute `process`;
            its timesteps need not be set.

    Returns:
        `kind`, one of `KINDS`, and what the module's documentation lists for it.

    Raises:
        ValueError: An unsupported scheduler.
    """
    if hasattr(scheduler, "process"):
        return checked_process(scheduler.process)
    kind, config, known = process_kind(scheduler), scheduler.config, known_as(scheduler)
    if kind == "edm":
        other = {"timestep": "arctangent"} if known == "CosineDPMSolverMultistepScheduler" else {}
        return {"kind": kind, "sigma_data": config.sigma_data, **other}
    if kind == "trigflow":
        sigma_data = config.get("sigma_data", 1.0)
        return {"kind": kind, "noise_timestep": QUARTER_TURN[known], "sigma_data": sigma_data}
    described = {"kind": kind, "num_train_timesteps": config.get("num_train_timesteps", 1)}
    if kind == "variance_preserving":
        described |= _betas_of_table(scheduler) if "snr_shift_scale" in config else _betas(config)
    elif is_reversed(scheduler):
        described["reversed"] = True
    if config.get("timestep_type", "discrete") != "discrete":
        described["timestep_type"] = config.timestep_type
    return described


def _betas_of_table(scheduler: Any) -> dict[str, Any]:
    """The betas of a table of abar that its configuration's betas do not make (CogVideoX shifts it)."""
    abar = scheduler.alphas_cumprod.cpu().double()
    return {"trained_betas": (1 - abar / torch.cat([torch.ones_like(abar[:1]), abar[:-1]])).tolist()}


def _betas(config: Any) -> dict[str, Any]:
    zero_snr = {"rescale_betas_zero_snr": True} if config.get("rescale_betas_zero_snr", False) else {}
    if config.get("trained_betas") is not None:
        return {"trained_betas": torch.as_tensor(config.trained_betas).tolist(), **zero_snr}
    names = ("beta_schedule", "beta_start", "beta_end")
    names = names[:1] if config.beta_schedule in _SCHEDULES_WITHOUT_LIMITS else names
    return {**{name: config[name] for name in names}, **zero_snr}


def checked_process(process: Mapping[str, Any]) -> dict[str, Any]:
    """A description as `describe_process` gives it, checked.

    Raises:
        ValueError: An unknown kind, or what the kind needs is missing or not understood.
    """
    if not isinstance(process, Mapping):
        raise ValueError(f"process is {shown(process)}; allowed: what describe_process(scheduler) gives")
    described, kind = dict(process), process.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"process has kind {shown(kind)}; allowed: {', '.join(KINDS)}, and the rest as "
            "describe_process(scheduler) gives it"
        )
    needed = _NEEDED.get(kind, "num_train_timesteps")
    number = as_number(described.get(needed))
    if number is None or not 0 < number < float("inf"):
        raise ValueError(f"process of kind {kind!r} needs the number {needed}; got {shown(described)}")
    if kind == "variance_preserving":
        _abar(described)
    return described


def check_process(trained: Mapping[str, Any], scheduler: AnyScheduler, name: str = "classifier") -> None:
    """Compare the process that a network was trained for with a scheduler's.

    Args:
        trained: A description, as `describe_process` gives it.
        scheduler: One of `SUPPORTED_SCHEDULERS`.
        name: What the error calls the network.

    Raises:
        ValueError: They are not the same; it names each value that differs.
    """
    given = describe_process(scheduler)
    if _same(trained, given):
        return
    differing = [key for key in {**trained, **given} if trained.get(key) != given.get(key)]
    said = "; ".join(f"{key} {_short(trained, key)} for {_short(given, key)}" for key in differing)
    raise ValueError(
        f"the {name} was trained for another process than the scheduler's ({type(scheduler).__name__}): "
        f"{said}. Use the {name}'s own process, or a {name} of the scheduler's"
    )


def _same(trained: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    if trained.get("timestep_type") != given.get("timestep_type") or trained["kind"] != given["kind"]:
        return False
    if trained["kind"] != "variance_preserving":
        return dict(trained) == dict(given)
    ours, theirs = _abar(trained), _abar(given)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=_RELATIVE_TOLERANCE, atol=0)


def _abar(process: Mapping[str, Any]) -> Tensor:
    defaults = {"trained_betas": None, "rescale_betas_zero_snr": False, "beta_schedule": None}
    defaults |= {"beta_start": None, "beta_end": None}
    settings = SimpleNamespace(**{**defaults, **process})
    check_bool("rescale_betas_zero_snr", settings.rescale_betas_zero_snr)
    limits = (settings.beta_start, settings.beta_end)
    named = isinstance(settings.beta_schedule, str) and settings.beta_schedule in _SCHEDULES_WITHOUT_LIMITS
    without = settings.trained_betas is not None or named
    if not without and not all(isinstance(value, int | float) for value in limits):
        raise ValueError(f"process needs beta_start and beta_end, two numbers; got {shown(limits)}")
    return abar_table(settings)


def _short(process: Mapping[str, Any], key: str) -> str:
    value = process.get(key, "none")
    return f"{len(value)} numbers" if isinstance(value, list) else str(value)
