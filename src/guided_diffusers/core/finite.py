"""Where a run stops being finite: what is drawn, decoded or measured from then on means nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.noise import NoiseLevel


class NonFiniteError(FloatingPointError, ValueError):
    """A result is NaN or infinite; the message says where that began, and what to try."""


@dataclass
class Watch:
    """Notices at which step of a run its sample stops being finite.

    It sums what it sees and looks at the sums once, at the end: looking at each step would wait for an
    accelerator each time. A callback that mends a sample has mended it.

    Args:
        scheduler: The scheduler's name, for the message.
        timesteps: Of the run, one a step.
    """

    scheduler: str
    timesteps: Sequence[Any] | Tensor
    levels: list[NoiseLevel] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)

    def note(self, level: NoiseLevel, x0: Tensor, sample: Tensor) -> None:
        """One step: its level, the guided x_0, and the sample after it."""
        self.levels.append(level)
        self.sums += x0.sum(), sample.sum()

    def check(self) -> None:
        """Raise NonFiniteError where a sample was not finite after some step."""
        finite = torch.stack(self.sums).isfinite().view(-1, 2).tolist() if self.sums else []
        for index, (_, stepped) in enumerate(finite):
            if not stepped:
                self._refuse(index, all(predicted for predicted, _ in finite[: index + 1]))

    def _refuse(self, index: int, predicted: bool) -> None:
        timestep = float(self.timesteps[index])
        where = f"step {index + 1} of {len(self.timesteps)} (timestep {timestep:g}, sigma / alpha "
        where += f"{float(self.levels[index].noise_to_signal.max()):.3g})"
        cause = (
            f"the prediction was, {self.scheduler}.step made it so; try more steps, or another scheduler or "
            "timestep_spacing"
            if predicted
            else "neither was the prediction of x_0; try the network in float32 or bfloat16, a smaller scale "
            "or interval of guidance, or another scheduler"
        )
        raise NonFiniteError(f"the sample is not finite after {where}: {cause}")


def check_output(output: Tensor, what: str, model: Any) -> Tensor:
    """What an autoencoder gave, where it is finite.

    Args:
        output: Of any shape.
        what: What it is, for the message: "decoded picture", "encoded latent".
        model: The autoencoder.

    Raises:
        NonFiniteError: It is not, as after an overflow of float16.
    """
    if not output.isfinite().all():
        named = f"the {what} of {type(model).__name__} in {str(output.dtype).removeprefix('torch.')}"
        raise NonFiniteError(f"{named} is not finite: {_REMEDIES[output.dtype.itemsize == 2]}")
    return output


_REMEDIES = (
    "its weights are not fit for what it was given",
    "try it in float32, vae.to(torch.float32), which the rest need not be in",
)
