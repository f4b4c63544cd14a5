"""How `guide` listens: in the place of a network's call and of a scheduler's step, while a call runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any

import torch

from guided_diffusers.stock.recorder import Recorder
from guided_diffusers.stock.stepping import Stepper


def listen(network: torch.nn.Module, recorder: Recorder) -> Callable[[], None]:
    """Put the recorder in the place of a network's call, above its hooks and its compiled form.

    `torch.nn.Module.__call__` looks there first, and copies of the module leave it out.
    """
    name, held = "_compiled_call_impl", vars(network)
    before = held.get(name)
    plain = network._call_impl if before is None else before

    def call(*args: Any, **kwargs: Any) -> Any:
        return recorder.called(plain, network, args, kwargs)

    held[name] = call

    def undo() -> None:
        if before is None:
            held.pop(name, None)
        else:
            held[name] = before

    return undo


def replace_step(scheduler: Any, stepper: Stepper) -> Callable[[], None]:
    """Put ours in the place of a scheduler's step, with its signature; a copy of the scheduler has it too."""

    @wraps(type(scheduler).step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return stepper.step(self, args, kwargs)

    before = vars(scheduler).get("step")
    scheduler.step = MethodType(step, scheduler)

    def undo() -> None:
        if before is None:
            vars(scheduler).pop("step", None)
        else:
            scheduler.step = before

    return undo
