"""The state of a training run, to and from the tensors and plain data of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from .ema import ExponentialMovingAverage
from .task import Task

Parts = dict[str, Mapping[str, Tensor]]


def training_state(
    task: Task, average: ExponentialMovingAverage, accelerator: Accelerator
) -> tuple[Parts, dict[str, Any]]:
    """Weights, averaged weights, optimizers and loss scale: tensors by part, and plain data."""
    tensors: Parts = {f"modules/{name}": module.state_dict() for name, module in task.modules.items()}
    tensors |= {f"averaged/{name}": values for name, values in average.state_dict().items()}
    plain: dict[str, Any] = {"optimizers": {}}
    for name, optimizer in task.optimizers.items():
        tensors[f"optimizers/{name}"], plain["optimizers"][name] = optimizer_state(optimizer)
    if accelerator.scaler is not None:
        plain["scaler"] = accelerator.scaler.state_dict()
    return tensors, plain


def restore_training(
    task: Task,
    average: ExponentialMovingAverage,
    accelerator: Accelerator,
    tensors: Parts,
    plain: Mapping[str, Any],
) -> None:
    """Put back what `training_state` gave."""
    for name, module in task.modules.items():
        module.load_state_dict(tensors[f"modules/{name}"])
    average.load_state_dict({name: tensors[f"averaged/{name}"] for name in average.modules})
    for name, optimizer in task.optimizers.items():
        load_optimizer(optimizer, tensors[f"optimizers/{name}"], plain["optimizers"][name])
    if accelerator.scaler is not None and "scaler" in plain:
        accelerator.scaler.load_state_dict(plain["scaler"])


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimizer has gathered: flat tensors, `<parameter's index>.<name>`, and plain data (the rest).

    Its settings (learning rate, betas) are not in it: they are the configuration's.
    """
    tensors, plain = {}, {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else plain)[f"{index}.{name}"] = value
    return tensors, {"plain": plain}


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Restore what `optimizer_state` gave, each tensor in its parameter's memory format."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    whole: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **state["plain"]}.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        whole.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": whole, "param_groups": optimizer.state_dict()["param_groups"]})
