"""How what is trained lies on devices: whole on every process, or in shards.

A task calls any method of several modules, has several optimizers and takes `torch.autograd.grad`: no wrapper
around a network would see all that. So tasks keep their modules as they are, and what is wrapped is something
else:

- `Replicated`: DistributedDataParallel wraps the parameters of one optimizer, and what goes through its
  forward is the loss (`Gate`): its hooks are on the parameters, and average gradients while the backward pass
  goes on.
- `Sharded`: torch's `fully_shard`, in place, on the large blocks of all modules and on one module that holds
  them all (`Losses`), whose forward is the computation of a loss, whatever it calls: what is in no block is
  whole while it lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast, reduce
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from guided_diffusers.core.checks import check_that
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.ema import copied
from guided_diffusers.training.engine.sharding import (
    Losses,
    exchange_parameters,
    hollow,
    mesh_of,
    plugin_of,
    shard,
    with_parameters,
)
from guided_diffusers.training.engine.task import Task
from guided_diffusers.training.engine.trained import parameters_of


def place(task: Task, config: TrainingConfig, accelerator: Accelerator) -> Replicated | Sharded:
    """Move a task's modules to where they are trained, all processes from the first one's weights."""
    plugin = plugin_of(accelerator)
    if config.sharding == "none" and plugin is None:
        return Replicated(task, accelerator)
    return Sharded(task, config, accelerator, plugin)


class Replicated:
    """Every process has whole modules, and steps them by the mean of the processes' gradients."""

    sharded = False

    def __init__(self, task: Task, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        for module in task.modules.values():
            module.to(accelerator.device).train()
            for tensor in module.state_dict().values():
                broadcast(tensor)
        self.parameters = {name: parameters_of(optimizer) for name, optimizer in task.optimizers.items()}
        self.gates = gates(accelerator, self.parameters)

    def copied(self, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Copies of modules, in evaluation mode, without gradients."""
        return copied(modules)

    def computed(self, compute: Callable[[], Any]) -> Any:
        """What a function of the modules gives."""
        return compute()

    def backward(self, name: str, loss: Tensor, last: bool) -> None:
        """Add a loss's gradients to those of its optimizer's parameters; averaged with the `last` part's."""
        gate = self.gates.get(name)
        waiting: AbstractContextManager = nullcontext()
        if gate is not None and not last:
            waiting = self.accelerator.no_sync(gate)
        with waiting:
            through = loss if gate is None else gate(loss)
            self.accelerator.backward(through, inputs=self.parameters[name])

    def clip(self, name: str, limit: float) -> Tensor:
        """Scale an optimizer's gradients to a norm of at most `limit`; the norm that they had."""
        return nn.utils.clip_grad_norm_(self.parameters[name], limit, foreach=True)

    def whole(self, modules: Mapping[str, nn.Module], everywhere: bool) -> dict[str, nn.Module]:
        """Modules whose weights are whole, as they are here."""
        return dict(modules)


class Sharded:
    """Every process has a share of each parameter, its gradient, its optimizer's state and its average.

    0-dim parameters, which cannot be split, are whole everywhere, and their gradients averaged as in
    `Replicated`.

    Raises:
        ValueError: what does not go with it.
    """

    sharded = True

    def __init__(self, task: Task, config: TrainingConfig, accelerator: Accelerator, plugin: Any) -> None:
        check_that(config.channels_last is not True, "channels_last", True, "false or auto, with sharding")
        check_that(config.optimizer == "adamw", "optimizer", config.optimizer, "adamw, with sharding")
        self.accelerator = accelerator
        mesh = mesh_of(accelerator)
        for module in task.modules.values():
            module.train()
            for tensor in module.state_dict().values():
                if mesh.size() > 1:
                    tensor.copy_(broadcast(tensor.to(accelerator.device)))
        self.hollows = {name: hollow(module) for name, module in task.modules.items()}
        before = {name: dict(module.named_parameters()) for name, module in task.modules.items()}
        self.losses = Losses(task.modules)
        apart = shard(self.losses, mesh, config, plugin, accelerator.device)
        for optimizer in task.optimizers.values():
            exchange_parameters(optimizer, before, task.modules)
        self.parameters = {name: parameters_of(optimizer) for name, optimizer in task.optimizers.items()}
        self.every = list(self.losses.parameters())
        kept = {name: [p for p in ps if id(p) in apart] for name, ps in self.parameters.items()}
        self.gates = gates(accelerator, kept)

    def copied(self, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Copies of modules by the task's names, in evaluation mode, split; frozen parameters shared."""

        def copy(parameter: nn.Parameter) -> Tensor:
            return parameter.detach().clone() if parameter.requires_grad else parameter

        return {name: with_parameters(self.hollows[name], m, copy) for name, m in modules.items()}

    def computed(self, compute: Callable[[], Any]) -> Any:
        """What a function of the modules gives, whose parameters outside of blocks are whole meanwhile."""
        item = self.losses(compute)
        if item is None:  # no backward pass will do it
            self.losses.reshard()
        return item

    def backward(self, name: str, loss: Tensor, last: bool) -> None:
        """Add the mean over processes of a loss's gradients to those of its optimizer's parameters.

        The graph's leaves are the whole parameters, which optimizers do not know: so all parameters get
        gradients, and those of other optimizers get back what they had. Each part's are averaged, for only
        shares of them are kept.
        """
        own = {id(parameter) for parameter in self.parameters[name]}
        others = [parameter for parameter in self.every if id(parameter) not in own]
        gradients = [parameter.grad for parameter in others]
        for parameter in others:
            parameter.grad = None
        gate = self.gates.get(name)
        self.accelerator.backward(loss if gate is None else gate(loss))
        for parameter, gradient in zip(others, gradients, strict=True):
            parameter.grad = gradient

    def clip(self, name: str, limit: float) -> Tensor:
        """Scale an optimizer's gradients to a norm of at most `limit`; the norm that they had."""
        gradients = [p.grad for p in self.parameters[name] if p.grad is not None]
        shares = [g.to_local() for g in gradients if isinstance(g, DTensor)]
        whole = [g for g in gradients if not isinstance(g, DTensor)]
        squares = reduce(_squares(shares, self.accelerator.device), "sum")
        norm = (squares + _squares(whole, self.accelerator.device)).sqrt()
        torch._foreach_mul_(shares + whole, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def whole(self, modules: Mapping[str, nn.Module], everywhere: bool) -> dict[str, nn.Module]:
        """Modules that hold all weights, gathered from the processes, which must all call this.

        Args:
            modules: those of the task, or their averages, by the task's names.
            everywhere: on every process, on its device; else on the main one, on the CPU, and the others get
                modules that hold none.
        """
        wanted = everywhere or self.accelerator.is_main_process
        device = self.accelerator.device if everywhere else torch.device("cpu")

        def gathered(parameter: Tensor) -> Tensor:
            value = parameter.detach()
            full = value.full_tensor() if isinstance(value, DTensor) else value
            return full.to(device, copy=True) if wanted else full.to("meta")

        found = {}
        for name, module in modules.items():
            found[name] = with_parameters(self.hollows[name], module, gathered)
            if wanted:
                found[name].to(device)  # its buffers
        return found


class Gate(nn.Module):
    """Some parameters as a module through which a loss goes as it is."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.held = nn.ParameterList(parameters)

    def forward(self, loss: Tensor) -> Tensor:
        """The loss."""
        return loss


def gates(accelerator: Accelerator, parameters: Mapping[str, list[nn.Parameter]]) -> dict[str, nn.Module]:
    """What averages the gradients of each optimizer's parameters; of one process nothing."""
    if accelerator.num_processes == 1:
        return {}
    wrapped: Callable[[nn.Module], nn.Module] = accelerator.prepare
    if accelerator.distributed_type == DistributedType.FSDP:  # whose accelerator would split the gate
        wrapped = partial(DistributedDataParallel, find_unused_parameters=True)
    trained = {name: held for name, held in parameters.items() if any(p.requires_grad for p in held)}
    return {name: wrapped(Gate(held)) for name, held in trained.items()}


def _squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """The sum of squares of all elements, 0-dim."""
    norms = torch._foreach_norm([tensor for tensor in tensors if tensor.numel()]) if tensors else []
    return torch.stack(list(norms)).square().sum() if norms else torch.zeros((), device=device)
