"""Modules split over processes by torch's `fully_shard`, and put together again.

References:
    Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (arXiv:2304.11277).
    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"
        (arXiv:1910.02054): `training.sharding` gradients is its stage 2, parameters its stage 3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed import HashStore, init_process_group, is_initialized
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.setup import asked_of_accelerate

SMALLEST = 1_000_000
"""Parameters of a block that is gathered on its own: fewer would cost more messages than memory."""


class Losses(nn.Module):
    """All modules of a task as one, whose forward computes with them."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleDict(modules)

    def forward(self, compute: Callable[[], Any]) -> Any:
        """What a function without arguments gives."""
        return compute()


def plugin_of(accelerator: Accelerator) -> Any:
    """The settings of FSDP that `accelerate config` or the script's accelerator has; None without.

    On a CPU accelerate drops them without a word: there the environment has them.
    """
    given = getattr(getattr(accelerator, "state", None), "fsdp_plugin", None)
    if given is None and asked_of_accelerate("FSDP"):
        given = FullyShardedDataParallelPlugin()
    return given


def mesh_of(accelerator: Accelerator) -> DeviceMesh:
    """All processes in a row; a process that is alone is a group of one."""
    kind = accelerator.device.type
    if not is_initialized():
        init_process_group("nccl" if kind == "cuda" else "gloo", store=HashStore(), rank=0, world_size=1)
    return init_device_mesh(kind, (accelerator.num_processes,))


def shard(
    losses: Losses, mesh: DeviceMesh, config: TrainingConfig, plugin: Any, device: torch.device
) -> set[int]:
    """Split all modules, in place; what was a Parameter of theirs is another then.

    Args:
        losses: holds them.
        mesh: the processes.
        config: `sharding`; an explicit `mixed_precision: bf16` gathers weights in bfloat16.
        plugin: accelerate's settings, which go before; None for none.
        device: where parameters that are not split go.

    Returns:
        The ids of the parameters that stay whole.
    """
    apart = {parameter for parameter in losses.parameters() if parameter.dim() == 0}
    for parameter in apart:
        parameter.data = parameter.data.to(device)
    settings: dict[str, Any] = {"mesh": mesh, "ignored_params": apart}
    settings["reshard_after_forward"] = config.sharding != "gradients"
    if config.mixed_precision == "bf16":
        settings["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    if plugin is not None:
        settings["reshard_after_forward"] = bool(plugin.reshard_after_forward)
        settings["offload_policy"] = plugin.cpu_offload
        if plugin.mixed_precision_policy is not None:
            settings["mp_policy"] = plugin.mixed_precision_policy
    for block in blocks(losses, apart):
        fully_shard(block, **settings)
    fully_shard(losses, **{**settings, "reshard_after_forward": False})
    return {id(parameter) for parameter in apart}


def blocks(module: nn.Module, apart: set[nn.Parameter]) -> list[nn.Module]:
    """What is gathered on its own: the items of lists of modules, inner ones first.

    An item counts with the parameters that no inner one has, and must be called, by its `forward`.
    """
    taken, found = set(apart), []
    lists = [held for held in module.modules() if isinstance(held, nn.ModuleList)]
    items = [item for held in lists for item in held if item is not None and type(item) is not nn.ModuleList]
    for item in sorted(items, key=lambda item: sum(1 for _ in item.modules())):  # inner before outer
        left = [parameter for parameter in item.parameters() if parameter not in taken]
        if sum(parameter.numel() for parameter in left) >= SMALLEST:
            taken.update(left)
            found.append(item)
    return found


def hollow(module: nn.Module) -> nn.Module:
    """A copy of a module, in evaluation mode, whose parameters have shapes and no values."""
    empty = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in module.parameters()
    }
    return copy.deepcopy(module, empty).eval()


def with_parameters(empty: nn.Module, module: nn.Module, each: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a hollow module with a function of each parameter, and the buffers, of the full one."""
    values = dict(module.named_parameters())
    memo = {id(place): _held(each(values[name])) for name, place in empty.named_parameters()}
    buffers = dict(module.named_buffers())
    memo |= {id(place): buffers[name].clone() for name, place in empty.named_buffers()}
    return copy.deepcopy(empty, memo)


def _held(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach(), requires_grad=False)


def exchange_parameters(
    optimizer: Optimizer, before: Mapping[str, Mapping[str, Tensor]], modules: Mapping[str, nn.Module]
) -> None:
    """Give an optimizer, in the place of parameters that modules had, those that they have now.

    Raises:
        ValueError: it steps a parameter that is no module's.
    """
    now = {name: dict(module.named_parameters()) for name, module in modules.items()}
    new = {id(value): now[name][key] for name, values in before.items() for key, value in values.items()}
    for group in optimizer.param_groups:
        if any(id(parameter) not in new for parameter in group["params"]):
            raise ValueError(
                "an optimizer steps a parameter that is in none of the task's modules, and cannot be split "
                "over processes: add its module to `modules`, or train with sharding none"
            )
        group["params"] = [new[id(parameter)] for parameter in group["params"]]
