"""How the networks of diffusers are told a condition and its null by the pipelines that call them.

Nearly all pipelines tell both in one batch, the null first, or in two calls, the condition first. What
differs is in a table by the network's class; how it takes its timestep and whether its output is negated
stands where networks are called (`core.networks`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.networks import CALLING, WITHOUT_A_BATCH, unwrapped


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is particular to a network.

    Attributes:
        condition_first: In one batch the condition stands before its null.
        doubled: Its pipeline steps the doubled batch too, and not one sample a condition.
        off_at_0: Its pipeline's scale counts from 0 and not from 1.
        listed: Arguments that are lists of one entry a sample.
        per_frame: Arguments that have a row for each frame of each sample.
        negated: Its output is the negative of what its scheduler reads.
        timestep: What it calls its timestep.
        scaled: From a scheduler's timesteps to those it is told; None finds out whether they are divided.
        arguments: What it takes, in its order: the sample is the first.
    """

    condition_first: bool = False
    doubled: bool = False
    off_at_0: bool = False
    listed: tuple[str, ...] = ()
    per_frame: tuple[str, ...] = ()
    negated: bool = False
    timestep: str = "timestep"
    scaled: Callable[[Tensor, Mapping[str, Any]], Tensor] | None = None
    arguments: tuple[str, ...] = ()


def _rising(timestep: Tensor, config: Mapping[str, Any]) -> Tensor:
    return 1 - timestep / 1000


FACTS: dict[str, Facts] = {
    "DiTTransformer2DModel": Facts(condition_first=True, doubled=True),
    "HiDreamImageTransformer2DModel": Facts(negated=True, timestep="timesteps"),
    "LuminaNextDiT2DModel": Facts(condition_first=True, negated=True, scaled=_rising),
    "UNetMotionModel": Facts(per_frame=("encoder_hidden_states", "image_embeds")),
    "ZImageTransformer2DModel": Facts(
        condition_first=True,
        off_at_0=True,
        listed=("x", "cap_feats"),
        negated=True,
        timestep="t",
        scaled=_rising,
    ),
}


def facts_of(network: Any) -> Facts:
    """What is particular to a network, by its class or one of its bases."""
    return _facts_of(type(unwrapped(network)))


@cache
def _facts_of(kind: type) -> Facts:
    names = [base.__name__ for base in kind.__mro__]
    known = next((FACTS[name] for name in names if name in FACTS), None)
    calling = next((CALLING[name] for name in names if name in CALLING), None)
    if known is None and calling is not None:
        known = Facts(negated=calling.negated, scaled=calling.timestep)
    return replace(known or Facts(), arguments=parameters_of(kind.forward)[1:])


@cache
def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters, which take longer to find than to use."""
    return tuple(inspect.signature(function).parameters)


def largest(timestep: Any) -> float:
    """A timestep as a network or a scheduler's step is told it: one for all, or the largest of them."""
    if isinstance(timestep, int | float):
        return float(timestep)
    given = torch.as_tensor(timestep)
    return float(given.max() if given.ndim else given)


def told_timesteps(facts: Facts, network: Any, timesteps: Tensor, like: float) -> Tensor:
    """A scheduler's timesteps as a network is told them, float64.

    Args:
        facts: The network's.
        network: Whose configuration may scale them.
        timesteps: A scheduler's.
        like: One that it was told: of a network that is not known, it shows whether they are divided.
    """
    timesteps = torch.as_tensor(timesteps).cpu().double()
    if facts.scaled is not None:
        return facts.scaled(timesteps, getattr(unwrapped(network), "config", {}))
    candidates = [timesteps, timesteps / 1000]
    return min(candidates, key=lambda each: float((each - like).abs().min()))


def rows_of(arguments: Mapping[str, Any], part: slice, total: int, facts: Facts) -> dict[str, Any]:
    """The arguments of some samples of a batch: the rows of whatever has the batch first, at any depth."""
    return {name: _rows(name, value, part, total, facts) for name, value in arguments.items()}


def _rows(name: str, value: Any, part: slice, total: int, facts: Facts) -> Any:
    if isinstance(value, Tensor):
        if value.ndim == 0 or (name in WITHOUT_A_BATCH and value.ndim < 3):
            return value
        if name in facts.per_frame and len(value) % total == 0:
            return value.unflatten(0, (total, -1))[part].flatten(0, 1)
        return value[part] if len(value) == total else value
    if isinstance(value, Mapping):
        return {key: _rows(key, each, part, total, facts) for key, each in value.items()}
    if isinstance(value, list | tuple):
        if name in facts.listed:
            return value[part]
        if name in WITHOUT_A_BATCH:
            return value
        return type(value)(_rows(name, each, part, total, facts) for each in value)
    return value


def copied(value: Any) -> Any:
    """The same arguments in containers of their own: networks take entries out of lists they are given."""
    if isinstance(value, Mapping):
        return {key: copied(each) for key, each in value.items()}
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value
