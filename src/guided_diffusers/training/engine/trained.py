"""What of a network training changes: all but its frozen parameters, such as those beside a LoRA.

Frozen parameters are where the network was loaded from. They are in no checkpoint, and a network and its
average share them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import Tensor, nn
from torch.optim import Optimizer


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters that an optimizer steps, of all its groups in their order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def frozen_names(module: nn.Module) -> set[str]:
    """The names of the parameters that get no gradients."""
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


def trained_state(module: nn.Module, frozen: Collection[str] | None = None) -> dict[str, Tensor]:
    """A network's `state_dict` without its frozen parameters, or without those that are named."""
    frozen = frozen_names(module) if frozen is None else frozen
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def copy_of_trained(module: nn.Module) -> nn.Module:
    """A copy of a network that shares the frozen parameters with it."""
    return copy.deepcopy(module, {id(p): p for p in module.parameters() if not p.requires_grad})
