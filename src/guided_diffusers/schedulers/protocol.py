"""What a scheduler is to this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from guided_diffusers.core.noise import NoiseLevel


class Scheduler(Protocol):
    """Anything that lists timesteps, steps, and says how noisy its sample is. No list of names is kept.

    Further names are used where a scheduler has them:

    | name | default |
    |---|---|
    | `next_noise_level(index) -> NoiseLevel`: where step `index` arrives | the next one's; at last no noise |
    | `prediction_type`, or `config.prediction_type`: the row that `step` reads | "epsilon" |
    | `init_noise_sigma`: what standard normal noise is multiplied by | sigma at the start, at least 1 |
    | `scale_model_input(sample, timestep)`, called before each step | - |
    | `generator`, `return_dict`, `device` as arguments of its methods | not given |
    | `process`, as of `describe_process`, for networks trained for one | such networks are refused |
    """

    timesteps: Sequence[Any] | Tensor
    """The timesteps of a run in their order, one a step."""

    def set_timesteps(self, num_inference_steps: int) -> None:
        """List the timesteps of a run."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor) -> Any:
        """The next sample: alone, first in a tuple or as `.prev_sample`."""

    def noise_level(self, timestep: Any) -> NoiseLevel:
        """Alpha and sigma of the sample at a listed timestep: numbers, or `(batch,)`, one a sample."""


class StockScheduler(Protocol):
    """What the schedulers of diffusers that `SUPPORTED_SCHEDULERS` names have in common."""

    config: Any
    """The constructor's arguments."""
    timesteps: Any
    """The timesteps of a run."""
    set_timesteps: Callable[..., None]
    """Lists them; of what, differs."""
    step: Callable[..., Any]
    """The next sample, `.prev_sample`; what else it is told, differs."""
    scale_model_input: Callable[..., Tensor]
    """The network's input, `(sample, timestep)`."""


AnyScheduler = Scheduler | StockScheduler
"""One of these; what only some have is asked for by `hasattr`."""
