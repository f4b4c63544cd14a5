"""Averages of the weights whose length is chosen after training: two are kept, any other is a sum of them.

A power-function average weighs the weights theta(tau) of all earlier positions tau, in images, by tau^gamma:

    average(t) = (gamma + 1) / t^(gamma + 1)  integral_0^t tau^gamma theta(tau) d tau

Its length is sigma_rel, the deviation of that profile as a fraction of t. While a run goes, two such averages
are kept as they are at evenly spaced positions, beside the run in `averages/<images>/<length>/<module>/`.
Afterwards the profile of any length is fitted by those of the kept averages, by least squares, and the same
sum of the kept weights is the average of that length (`reconstruct.py`).

References:
    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv:2312.02696),
        section 3 and appendix C.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from guided_diffusers.core.checks import check_that
from guided_diffusers.store.files import atomic_folder
from guided_diffusers.training.engine.checkpoint import Checkpoint
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.ema import Copied, ExponentialMovingAverage, copied

logger = logging.getLogger(__name__)

FOLDER = "averages"
LENGTHS = (0.05, 0.1)
"""Of the two that are kept, as in the paper."""
LONGEST = 12**-0.5
"""The length of gamma = 0, the plain mean of all positions; it is not reached."""


def exponent(length: float) -> float:
    """gamma of a length sigma_rel, in (0, LONGEST)."""
    # arXiv:2312.02696, section 3.1: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), solved for gamma
    return float(np.roots([1, 7, 16 - length**-2, 12 - length**-2]).real.max())


class PowerFunctionAverage(ExponentialMovingAverage):
    """Averaged copies of modules whose profile has a length sigma_rel, whatever the length of the run."""

    def __init__(self, modules: Mapping[str, nn.Module], length: float, copied: Copied = copied) -> None:
        super().__init__(modules, half_life_images=0, ramp_up=None, copied=copied)
        self.exponent = exponent(length)

    def decay(self, images_seen: int, images: int) -> float:
        """beta, the factor of the average at a step of `images` images that ends at `images_seen`."""
        # arXiv:2312.02696, section 3.1: beta = (1 - 1 / t)^(gamma + 1), for a step from t - n to t
        return (1 - images / images_seen) ** (self.exponent + 1)


class PosthocAverages:
    """The two averages of a run, and what is kept of them.

    Args:
        modules: the trained modules by name; float32.
        config: `posthoc_ema` positions are kept, 0 for none, in `posthoc_dtype`.
        copied: gives copies of modules.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], config: TrainingConfig, copied: Copied = copied
    ) -> None:
        lengths = LENGTHS if config.posthoc_ema else ()
        self.averages = {length: PowerFunctionAverage(modules, length, copied) for length in lengths}
        self._positions, self._dtype = config.posthoc_ema, getattr(torch, config.posthoc_dtype)
        self._num_images, self._folder = config.num_images, Path(config.output_dir) / FOLDER
        values = sum(t.numel() for module in modules.values() for t in module.state_dict().values())
        self.bytes = self._positions * len(lengths) * values * self._dtype.itemsize

    def update(self, images_seen: int, images: int) -> None:
        """Take in the modules' weights after a step of `images` images, `images_seen` in all."""
        for average in self.averages.values():
            average.update(images_seen, images)

    def due(self, before: int, seen: int) -> bool:
        """Whether one of the positions lies in (before, seen]."""
        total, positions = self._num_images, self._positions
        return any(before < total * number / positions <= seen for number in range(1, positions + 1))

    def keep(self, seen: int, averages: Mapping[float, Mapping[str, nn.Module]]) -> None:
        """Write both averages, whose weights are whole, by length and name."""
        with atomic_folder(self._folder / f"{seen:012d}") as folder:
            for length, modules in averages.items():
                for name, module in modules.items():
                    module.save_pretrained(folder / str(length) / name)
            if self._dtype != torch.float32:
                for file in folder.rglob("*.safetensors"):
                    _cast(file, self._dtype)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averages' weights, by the part of a checkpoint and name."""
        return {
            f"{FOLDER}/{length}/{name}": tensors
            for length, average in self.averages.items()
            for name, tensors in average.state_dict().items()
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back what `state_dict` gave, in place.

        Raises:
            ValueError: the run was begun without these averages, which hold the weights of every position.
        """
        allowed = "0, as when this run was begun: post-hoc averages are of all positions from the first"
        mine = self.state_dict()
        there = all(part in checkpoint.parts for part in mine)
        check_that(there, "training.posthoc_ema", self._positions, allowed)
        for part, tensors in mine.items():
            checkpoint.fill(part, tensors)

    def tell(self) -> None:
        """Say what is kept, and its size."""
        if self.averages:
            lengths = " and ".join(str(length) for length in self.averages)
            what = f"averages of lengths {lengths} at {self._positions} positions"
            logger.info("%s, %.3g MB in all: %s", what, self.bytes / 1e6, self._folder)


def _cast(file: Path, dtype: torch.dtype) -> None:
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


Kept = tuple[int, float]
"""The position in images and the length of an average that is kept."""


def combination(kept: Sequence[Kept], images: int, length: float) -> tuple[Any, float]:
    """How an average of any length is a sum of those that are kept, none of them later than it.

    Args:
        kept: positions and lengths.
        images: the position of the wanted average.
        length: its sigma_rel.

    Returns:
        A weight for each, in float64, which sum to 1; and the error of the fitted profile, its L2 norm over
        that of the wanted one.
    """
    positions = np.array([position for position, _ in kept], dtype=np.float64)
    exponents = np.array([exponent(of) for _, of in kept])
    gamma, count = exponent(length), len(kept)
    gram = _inner(positions[:, None], exponents[:, None], positions[None], exponents[None])
    target, norm = _inner(positions, exponents, images, gamma), _inner(images, gamma, images, gamma)
    # arXiv:2312.02696, appendix C: least squares of the profiles, A x = b; and the weights sum to 1, by a
    # Lagrange multiplier's row
    system = np.block([[gram / norm, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
    weights = np.linalg.solve(system, np.append(target / norm, 1.0))[:count]
    error = 1 - 2 * weights @ target / norm + weights @ gram @ weights / norm
    return weights, float(max(error, 0.0) ** 0.5)


def _inner(position: Any, gamma: Any, other_position: Any, other_gamma: Any) -> Any:
    """The integral of the product of two profiles (gamma + 1) tau^gamma / t^(gamma + 1)."""
    first = position <= other_position
    early, late = np.minimum(position, other_position), np.maximum(position, other_position)
    late_gamma = np.where(first, other_gamma, gamma)
    # arXiv:2312.02696, appendix C: up to the earlier of the two positions
    scale = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1)
    return scale * (early / late) ** late_gamma / late
