"""The state of a training run, to and from the tensors and plain data of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from guided_diffusers.training.engine.checkpoint import Checkpoint
from guided_diffusers.training.engine.ema import ExponentialMovingAverage
from guided_diffusers.training.engine.task import Task
from guided_diffusers.training.engine.trained import frozen_names, parameters_of, trained_state

Parts = dict[str, Mapping[str, Tensor]]

FORMER = {"TextToImageTask": "DenoisingTask", "UnconditionalTask": "DenoisingTask"}
"""Tasks of older checkpoints, by the name that they had then."""

TABLES = {f"{name}{number}" for name in ("qmap", "absmax") for number in (1, 2)}
"""What an 8-bit optimizer of bitsandbytes has of large parameters besides what it has of all."""


def training_state(
    task: Task, average: ExponentialMovingAverage, accelerator: Accelerator
) -> tuple[Parts, dict[str, Any]]:
    """Weights, averaged weights, optimizers and loss scale: tensors by part, and plain data."""
    tensors = _networks(task, average)
    plain: dict[str, Any] = {"task": type(task).__name__, "optimizers": {}}
    for name, optimizer in task.optimizers.items():
        tensors[f"optimizers/{name}"], plain["optimizers"][name] = optimizer_state(optimizer)
    if accelerator.scaler is not None:
        plain["scaler"] = accelerator.scaler.state_dict()
    return tensors, plain


def _networks(task: Task, average: ExponentialMovingAverage) -> Parts:
    """Weights and averaged weights, without frozen ones, by part."""
    parts: Parts = {f"modules/{name}": trained_state(module) for name, module in task.modules.items()}
    return parts | {f"averaged/{name}": values for name, values in average.state_dict().items()}


def restore_training(
    task: Task, average: ExponentialMovingAverage, accelerator: Accelerator, checkpoint: Checkpoint
) -> None:
    """Put back what `training_state` gave, in place; of shards, this process's."""
    plain = checkpoint.state
    for kind, modules in (("modules", task.modules), ("averaged", average.modules)):
        for name, module in modules.items():
            own, part = module.state_dict(), f"{kind}/{name}"
            checkpoint.fill(part, {key: own[key] for key in checkpoint.parts[part] if key in own})
    for name, optimizer in task.optimizers.items():
        part = f"optimizers/{name}"
        tensors = room_for_state(optimizer, checkpoint.parts[part])
        checkpoint.fill(part, tensors)
        load_optimizer(optimizer, tensors, plain["optimizers"][name])
    if accelerator.scaler is not None and "scaler" in plain:
        accelerator.scaler.load_state_dict(plain["scaler"])


def check_fits(
    path: Path, task: Task, average: ExponentialMovingAverage, tensors: Parts, plain: Mapping[str, Any]
) -> None:
    """Compare a checkpoint with what it is to be restored into, before anything is.

    Raises:
        ValueError: it is of another kind of run, another network or another optimizer; what differs first is
            named.
    """
    own, optimizers = type(task).__name__, plain.get("optimizers", {})
    networks = _networks(task, average)
    parts = [*networks, *(f"optimizers/{name}" for name in task.optimizers)]
    other = plain.get("task", own)
    if FORMER.get(other, other) != own:
        problem = f"it is of another kind of run, a {other}, where this is a {own}"
    elif missing := [part for part in parts if part not in tensors]:
        problem = f"it has no {missing[0]}, which this run trains"
    else:
        frozen = {name: frozen_names(module) for name, module in task.modules.items()}
        found = [
            (part, _network_difference(tensors[part], values, frozen[part.partition("/")[2]]))
            for part, values in networks.items()
        ]
        for name, optimizer in task.optimizers.items():
            stored = (tensors[f"optimizers/{name}"], optimizers.get(name, {}))
            found.append((f"optimizers/{name}", _optimizer_difference(*stored, optimizer)))
        problem = next((f"its {part}.safetensors {text}" for part, text in found if text), "")
    if problem:
        raise ValueError(
            f"checkpoint {path} does not fit this run: {problem}: go on with the configuration and script "
            f"that wrote it ({path.parents[1] / 'config.json'} says which), or name another output_dir"
        )


def _network_difference(given: Mapping[str, Tensor], own: Mapping[str, Tensor], frozen: set[str]) -> str:
    """How a checkpoint's tensors differ from the network's; "" where they do not, frozen ones apart."""
    for name in dict.fromkeys([*own, *given]):
        if name in frozen:  # older checkpoints hold these too
            continue
        if name not in given:
            return f"lacks {name}"
        if name not in own:
            return f"has {name}, which this run's network has not"
        if given[name].shape != own[name].shape:
            return f"has {name} of shape {tuple(given[name].shape)}, this run's is {tuple(own[name].shape)}"
    return ""


def _optimizer_difference(given: Mapping[str, Tensor], state: Mapping[str, Any], optimizer: Optimizer) -> str:
    """How a checkpoint's optimizer differs from this one; "" where it does not."""
    parameters = parameters_of(optimizer)
    own = [type(optimizer).__name__, len(parameters)]
    if "plain" not in state:
        return "is of an optimizer that state.json does not know"
    if (kind := state.get("kind", own)) != own:
        return f"is of {kind[0]} of {kind[1]} parameters, this run's is {own[0]} of {own[1]}"
    for key, value in given.items():
        index = int(key.partition(".")[0])
        if index >= len(parameters):
            return f"is of more than {index} parameters, this run's has {len(parameters)}"
        if value.dim() and key.partition(".")[2] not in TABLES and value.shape != parameters[index].shape:
            shapes = f"{tuple(value.shape)}, this run's is {tuple(parameters[index].shape)}"
            return f"is of other parameters: number {index} of shape {shapes}"
    places, names = ({key.split(".", 1)[part] for key in given} for part in (0, 1))  # Adam: alike for all
    lacking = sorted({f"{place}.{name}" for place in places for name in names - TABLES}.difference(given))
    return f"lacks {lacking[0]}" if lacking else ""


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimizer has gathered: flat tensors, `<parameter's index>.<name>`, and plain data (the rest).

    Its settings (learning rate, betas) are not in it: they are the configuration's.
    """
    tensors, plain = {}, {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            inner = value if isinstance(value, dict) else {name: value}  # bitsandbytes nests its tensors
            for key, item in inner.items():
                (tensors if isinstance(item, Tensor) else plain)[f"{index}.{key}"] = item
    kind = [type(optimizer).__name__, len(parameters_of(optimizer))]
    return tensors, {"plain": plain, "kind": kind}


def room_for_state(optimizer: Optimizer, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors for what `optimizer_state` gave, those like a parameter in its layout and shards."""
    parameters = parameters_of(optimizer)
    room = {}
    for key, value in stored.items():
        parameter = parameters[int(key.partition(".")[0])]
        alike = value.dim() and value.shape == parameter.shape
        like, device = (parameter, parameter.device) if alike else (value, torch.device("cpu"))
        room[key] = torch.empty_like(like, dtype=value.dtype, device=device).detach()
    return room


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Restore what `optimizer_state` gave; the tensors are as `room_for_state` lays them out."""
    whole: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **state["plain"]}.items():
        index, name = key.split(".", 1)
        whole.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": whole, "param_groups": optimizer.state_dict()["param_groups"]})
