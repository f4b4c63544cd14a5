"""Exponential moving average of weights, with a half-life in images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from guided_diffusers.training.engine.trained import copy_of_trained, frozen_names, trained_state

Modules = Mapping[str, nn.Module]
Copied = Callable[[Modules], dict[str, nn.Module]]


def copied(modules: Modules) -> dict[str, nn.Module]:
    """Copies of modules, in evaluation mode, without gradients; frozen parameters are shared."""
    copies = {name: copy_of_trained(module) for name, module in modules.items()}
    return {name: module.eval().requires_grad_(False) for name, module in copies.items()}


class ExponentialMovingAverage:
    """Averaged copies of named modules, ready to be used and saved.

    After a step of n images, average <- average + (1 - 2^(-n / h)) (weights - average): a weight's share
    halves every h images. At the start h is at most `ramp_up` times the images seen, so that the random
    initial weights fade.

    Args:
        modules: the trained modules by name, in float32. The copies are in evaluation mode, without
            gradients; parameters that are frozen here are shared.
        half_life_images: h, in images; 0 follows the last weights exactly.
        ramp_up: upper bound of h as a fraction of the images seen; None for no bound.
        copied: gives copies of modules, in evaluation mode. Parameters may be shards: each process averages
            its own.

    References:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv:2206.00364,
        app. F.2.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        half_life_images: float,
        ramp_up: float | None = 0.05,
        copied: Copied = copied,
    ) -> None:
        self.half_life_images = half_life_images
        self.ramp_up = ramp_up
        self._frozen = {name: frozen_names(module) for name, module in modules.items()}
        self.modules = copied(modules)
        pairs = [
            (average, source)
            for name, module in modules.items()
            for average, source in zip(_tensors(self.modules[name]), _tensors(module), strict=True)
            if average is not source
        ]
        pairs = [(_local(average), _local(source)) for average, source in pairs]
        floating = [pair for pair in pairs if pair[1].is_floating_point()]
        self._averages, self._sources = [a for a, _ in floating], [s for _, s in floating]
        self._copied = [pair for pair in pairs if not pair[1].is_floating_point()]

    def decay(self, images_seen: int, images: int) -> float:
        """The factor that multiplies the average at a step of `images` images that ends at `images_seen`."""
        half_life = self.half_life_images
        if self.ramp_up is not None:
            half_life = min(half_life, self.ramp_up * images_seen)
        return 0.5 ** (images / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, images_seen: int, images: int) -> None:
        """Take in the modules' weights after a step of `images` images, `images_seen` in all."""
        if self._averages:
            torch._foreach_lerp_(self._averages, self._sources, 1 - self.decay(images_seen, images))
        for average, source in self._copied:
            average.copy_(source)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averaged weights by module and name, without frozen ones."""
        return {name: trained_state(module, self._frozen[name]) for name, module in self.modules.items()}


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _local(tensor: Tensor) -> Tensor:
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor
