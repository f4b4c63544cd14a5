"""What a scheduler of diffusers contributes here: noise levels, and its row of the prediction table.

This is the one place of the package that looks at a scheduler's type. Schedulers come in two kinds: those
that look alpha-bar up by timestep (DDPM, DDIM, PNDM), and those that keep a table of sigmas along the steps.
In the second kind only the coordinates differ, and they are one function `sigma -> (alpha, sigma,
input_scale)` each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

from guided_diffusers.checks import as_number, shown
from guided_diffusers.noise_level import NoiseLevel

Coordinates = Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor | float]]


def _variance_preserving(scheduler: Any, sigma: Tensor) -> tuple[Tensor, Tensor, float]:
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)  # 1 - sigma, sigma under use_flow_sigmas
    return alpha, sigma, 1.0


def _variance_exploding(scheduler: Any, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones_like(sigma), sigma, (1 + sigma**2).rsqrt()


def _edm(scheduler: Any, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones_like(sigma), sigma, (scheduler.config.sigma_data**2 + sigma**2).rsqrt()


def _flow(scheduler: Any, sigma: Tensor) -> tuple[Tensor, Tensor, float]:
    return 1 - sigma, sigma, 1.0


_BY_TIMESTEP: tuple[type, ...] = (diffusers.DDPMScheduler, diffusers.DDIMScheduler, diffusers.PNDMScheduler)
_BY_SIGMA: dict[type, Coordinates] = {
    diffusers.DPMSolverMultistepScheduler: _variance_preserving,
    diffusers.DPMSolverSinglestepScheduler: _variance_preserving,
    diffusers.UniPCMultistepScheduler: _variance_preserving,
    diffusers.DEISMultistepScheduler: _variance_preserving,
    diffusers.EulerDiscreteScheduler: _variance_exploding,
    diffusers.EulerAncestralDiscreteScheduler: _variance_exploding,
    diffusers.HeunDiscreteScheduler: _variance_exploding,
    diffusers.LMSDiscreteScheduler: _variance_exploding,
    diffusers.KDPM2DiscreteScheduler: _variance_exploding,
    diffusers.EDMEulerScheduler: _edm,
    diffusers.EDMDPMSolverMultistepScheduler: _edm,
    diffusers.FlowMatchEulerDiscreteScheduler: _flow,
    diffusers.FlowMatchHeunDiscreteScheduler: _flow,
}
SUPPORTED_SCHEDULERS = tuple(cls.__name__ for cls in (*_BY_TIMESTEP, *_BY_SIGMA))


def noise_level(scheduler: Any, timestep: Tensor | float) -> NoiseLevel:
    """The noise level of a scheduler's sample at one of its timesteps.

    Args:
        scheduler: A scheduler of this package or of diffusers (`SUPPORTED_SCHEDULERS`), after
            `set_timesteps`.
        timestep: A timestep listed in `scheduler.timesteps`, or `(batch,)` of them. While a run is under way,
            the entry at the scheduler's `step_index` is meant where a timestep is listed more than once.

    Returns:
        The level, of timestep's shape, read from the scheduler's own table.

    Raises:
        ValueError: An unsupported scheduler, `set_timesteps` not called yet, or a timestep that is not
            listed. (Before `set_timesteps` several tables run the other way; off the list another row would
            be read.)
    """
    check_supported(scheduler)
    if not _timesteps_are_set(scheduler):
        raise ValueError(f"{type(scheduler).__name__} has no timesteps yet: call its set_timesteps first")
    number = isinstance(timestep, Tensor) and timestep.ndim < 2 and timestep.numel() > 0
    if not number and as_number(timestep) is None:
        raise ValueError(f"timestep is {shown(timestep)}; allowed: a listed timestep, or one a sample")
    if isinstance(timestep, Tensor) and timestep.ndim == 1:
        return _stacked([noise_level(scheduler, t) for t in timestep], timestep)
    index = place_of(scheduler, timestep)
    if _has_sigmas(scheduler):
        return _level_at_sigma(scheduler, _sigmas(scheduler, index)[index], timestep)
    return _level_at_timestep(scheduler, timestep)


def next_noise_level(scheduler: Any, index: int) -> NoiseLevel:
    """The level that step `index` of a run arrives at.

    Args:
        scheduler: A supported scheduler, after `set_timesteps`.
        index: The step's place in `scheduler.timesteps`.

    Returns:
        The level; at the clean end alpha 1 and sigma 0, or the scheduler's own last level. Its timestep is
        the next listed one, None after the last. For multi-stage schedulers (Heun, KDPM2) it is the next
        stage's.
    """
    check_supported(scheduler)
    following = scheduler.timesteps[index + 1] if index + 1 < len(scheduler.timesteps) else None
    if _has_sigmas(scheduler):
        return _level_at_sigma(scheduler, _sigmas(scheduler, index + 1)[index + 1], following)
    if following is not None:
        return _level_at_timestep(scheduler, following)
    abar = torch.as_tensor(getattr(scheduler, "final_alpha_cumprod", 1.0), dtype=torch.float64)
    return NoiseLevel(alpha=abar.sqrt(), sigma=(1 - abar).sqrt())


def prediction_type_of(scheduler: Any) -> str:
    """The row of the prediction table in which a scheduler's `step` reads the network's output.

    Args:
        scheduler: A supported scheduler.

    Returns:
        One of `guided_diffusers.prediction.PREDICTION_TYPES`.

    Raises:
        ValueError: An unsupported scheduler, or a prediction type that its `step` reads by another process's
            formula: v_prediction of a scheduler that uses flow sigmas, flow_prediction of one that does not.
    """
    check_supported(scheduler)
    coordinates = _coordinates(scheduler)
    if coordinates is _flow:
        return "flow_prediction"
    configured = scheduler.config.prediction_type
    if coordinates is _edm:
        return {"epsilon": "edm", "v_prediction": "edm_v_prediction"}.get(configured, configured)
    with_flow_sigmas = bool(scheduler.config.get("use_flow_sigmas", False))
    misread = "v_prediction" if with_flow_sigmas else "flow_prediction"
    if configured == misread and coordinates is _variance_preserving:
        raise ValueError(
            f"prediction_type is {configured!r} with use_flow_sigmas={with_flow_sigmas}, of which "
            f"{type(scheduler).__name__} makes a wrong x_0; use flow_prediction with flow sigmas and "
            "v_prediction without"
        )
    return "sample" if configured == "original_sample" else configured


def process_kind(scheduler: Any) -> str:
    """The kind of process a network is told about: "variance_preserving", "flow" or "edm".

    A variance-exploding scheduler's scaled input, `x_t / sqrt(1 + sigma^2)`, is that of the
    variance-preserving process with the same betas, so it is of that kind.

    Raises:
        ValueError: An unsupported scheduler.
    """
    check_supported(scheduler)
    coordinates = _coordinates(scheduler)
    if coordinates is _flow or scheduler.config.get("use_flow_sigmas", False):
        return "flow"
    return "edm" if coordinates is _edm else "variance_preserving"


def reads_variance(scheduler: Any) -> bool:
    """Whether a scheduler's `step` takes the channels of a learned variance beside the prediction."""
    learned = scheduler.config.get("variance_type") in ("learned", "learned_range")
    return learned and isinstance(scheduler, diffusers.DDPMScheduler)


def takes(scheduler: Any, name: str) -> bool:
    """Whether a scheduler's `set_timesteps` takes custom `timesteps` or `sigmas` and uses them as given."""
    bent = name == "sigmas" and _coordinates(scheduler) is _edm  # through its own schedule once more
    return name in inspect.signature(scheduler.set_timesteps).parameters and not bent


def check_supported(scheduler: Any) -> None:
    """Raise ValueError for an unsupported scheduler, naming those that are, or for inverted sigmas."""
    if not (isinstance(scheduler, _BY_TIMESTEP) or _has_sigmas(scheduler)):
        raise ValueError(
            f"scheduler is a {type(scheduler).__name__}, whose noise levels are not known here; "
            f"supported: {', '.join(SUPPORTED_SCHEDULERS)} and their subclasses"
        )
    if getattr(scheduler.config, "invert_sigmas", False):
        raise ValueError(
            "a scheduler with invert_sigmas=True is not supported: its sigmas are those of the signal"
        )


def _coordinates(scheduler: Any) -> Coordinates | None:
    return next((_BY_SIGMA[cls] for cls in type(scheduler).__mro__ if cls in _BY_SIGMA), None)


def _has_sigmas(scheduler: Any) -> bool:
    return _coordinates(scheduler) is not None


def _timesteps_are_set(scheduler: Any) -> bool:
    """Whether a run's timesteps are listed; Heun, LMS and KDPM2 list one over all of training's when made."""
    if scheduler.timesteps is None:
        return False
    train = scheduler.config.num_train_timesteps
    return (
        getattr(scheduler, "num_inference_steps", None) is not None
        or getattr(scheduler, "custom_timesteps", False)
        or len(scheduler.timesteps) not in (train, train + 1)
    )


def place_of(scheduler: Any, timestep: Tensor | float) -> int:
    """The place of a timestep in `scheduler.timesteps`: the current step's where that is it.

    Args:
        scheduler: A supported scheduler, after `set_timesteps`.
        timestep: A listed timestep.

    Returns:
        The index of the step, as `next_noise_level` takes it.

    Raises:
        ValueError: A timestep that is not listed.
    """
    timesteps = scheduler.timesteps
    step_index = getattr(scheduler, "step_index", None)
    if step_index is not None and step_index < len(timesteps) and bool(timesteps[step_index] == timestep):
        return step_index
    wanted = timestep if isinstance(timestep, Tensor) else as_number(timestep)  # any integer, however large
    places = (timesteps == torch.as_tensor(wanted, device=timesteps.device)).nonzero().flatten()
    if len(places) == 0:
        first = ", ".join(f"{float(t):g}" for t in timesteps[:5])
        raise ValueError(
            f"timestep is {shown(timestep)}, which {type(scheduler).__name__} does not list; "
            f"its {len(timesteps)} timesteps begin {first}"
        )
    return int(places[0])


def _sigmas(scheduler: Any, index: int) -> Tensor:
    """The table that holds step `index`: KDPM2's odd stages are evaluated between two sigmas."""
    between = isinstance(scheduler, diffusers.KDPM2DiscreteScheduler) and index % 2 == 1
    return scheduler.sigmas_interpol if between else scheduler.sigmas


def _level_at_sigma(scheduler: Any, sigma: Tensor, timestep: Any) -> NoiseLevel:
    alpha, sigma, input_scale = _coordinates(scheduler)(scheduler, torch.as_tensor(sigma).cpu().double())
    return NoiseLevel(alpha=alpha, sigma=sigma, timestep=timestep, input_scale=input_scale)


def _level_at_timestep(scheduler: Any, timestep: Any) -> NoiseLevel:
    if hasattr(scheduler, "noise_level"):
        return scheduler.noise_level(timestep)
    abar = scheduler.alphas_cumprod[int(timestep)].double()
    return NoiseLevel(alpha=abar.sqrt(), sigma=(1 - abar).sqrt(), timestep=timestep)


def _stacked(levels: list[NoiseLevel], timestep: Tensor) -> NoiseLevel:
    alpha, sigma, input_scale = (
        torch.stack([getattr(level, name) for level in levels]) for name in ("alpha", "sigma", "input_scale")
    )
    return NoiseLevel(alpha=alpha, sigma=sigma, timestep=timestep, input_scale=input_scale)
