"""The schedulers of diffusers: what the tables of each class mean, and the classes that are refused.

A family says what a value of its table is in noise, `value -> (alpha, sigma, input_scale)`, in which row of
the prediction table its `step` reads the network's output, and of which kind of process it is. A class is
found by its name along a scheduler's bases, so a subclass is what its parent is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from diffusers.utils import is_torchsde_available
from torch import Tensor

from guided_diffusers.schedulers.protocol import AnyScheduler

Triple = tuple[Tensor, Tensor, Tensor | float]


def _sigmas(scheduler: Any, index: int) -> Tensor:
    return scheduler.sigmas


def _configured(scheduler: Any) -> str:
    kind = scheduler.config.prediction_type
    return "sample" if kind == "original_sample" else kind


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a scheduler means by its tables.

    Args:
        process: The kind of process that its network is told about (see `describe_process`).
        coordinates: `(scheduler, value) -> (alpha, sigma, input_scale)` of a value of the table.
        table: `(scheduler, index) -> values`: the table that holds step `index`, one value longer than the
            run: the last is where it ends.
        row: The row of the prediction table in which its `step` reads the network's output.
        scale: What standard normal noise is multiplied by to be the first sample.
        unusable: Arguments of its `set_timesteps` that mean something else than they say.
        sequence: What its `set_timesteps` takes custom sigmas as.
        staged: Every second step has a table of its own.
        whole: Its `step` takes timesteps that are integers, by which it looks its tables up.
    """

    process: str
    coordinates: Callable[[Any, Tensor], Triple]
    table: Callable[[Any, int], Tensor] = _sigmas
    row: Callable[[Any], str] = _configured
    scale: Callable[[Any], float] = lambda scheduler: float(getattr(scheduler, "init_noise_sigma", 1.0))
    unusable: tuple[str, ...] = ()
    sequence: Callable[[list[float]], Any] = np.array
    staged: bool = False
    whole: bool = False


def _by_abar(scheduler: Any, abar: Tensor) -> Triple:
    return abar.sqrt(), (1 - abar).sqrt(), 1.0


def _abar_of_run(final: Callable[[Any], Any]) -> Callable[[Any, int], Tensor]:
    """Abar at the listed timesteps, and where the last step arrives."""

    def table(scheduler: Any, index: int) -> Tensor:
        whole = scheduler.alphas_cumprod.cpu().double()
        end = torch.as_tensor(final(scheduler), dtype=torch.float64).cpu()
        return torch.cat([whole[scheduler.timesteps.cpu().long()], end.reshape(1)])

    return table


def _by_timestep(final: Callable[[Any], Any]) -> Family:
    table = _abar_of_run(final)
    return Family(process="variance_preserving", coordinates=_by_abar, table=table, whole=True)


def _preserving(scheduler: Any, sigma: Tensor) -> Triple:
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)  # 1 - sigma, sigma under use_flow_sigmas
    return alpha, sigma, 1.0


def _preserving_row(scheduler: Any) -> str:
    kind, with_flow_sigmas = _configured(scheduler), bool(scheduler.config.get("use_flow_sigmas", False))
    if kind == ("v_prediction" if with_flow_sigmas else "flow_prediction"):
        raise ValueError(
            f"prediction_type is {kind!r} with use_flow_sigmas={with_flow_sigmas}, whose x_0 would be wrong; "
            "allowed: flow_prediction with flow sigmas and v_prediction without"
        )
    return kind


def _exploding(scheduler: Any, sigma: Tensor) -> Triple:
    return torch.ones_like(sigma), sigma, (1 + sigma**2).rsqrt()


def _between(midpoints: Callable[[Any], Tensor]) -> Family:
    """A variance-exploding family whose odd stages are evaluated between two sigmas."""

    def table(scheduler: Any, index: int) -> Tensor:
        return midpoints(scheduler) if index % 2 == 1 else scheduler.sigmas

    return Family(process="variance_preserving", coordinates=_exploding, table=table, staged=True)


def _edm(scheduler: Any, sigma: Tensor) -> Triple:
    return torch.ones_like(sigma), sigma, (scheduler.config.sigma_data**2 + sigma**2).rsqrt()


def _edm_row(scheduler: Any) -> str:
    configured = scheduler.config.prediction_type
    return {"epsilon": "edm", "v_prediction": "edm_v_prediction"}.get(configured, configured)


def is_reversed(scheduler: Any) -> bool:
    """Whether a flow-matching scheduler's timesteps, and its velocity, go from noise to data."""
    inverted = scheduler.config.get("invert_sigmas", False)
    return inverted or known_as(scheduler.__class__) == "MiniMaxH3Scheduler"


def _flow(scheduler: Any, sigma: Tensor) -> Triple:
    signal = scheduler.config.get("invert_sigmas", False)  # its sigmas are those of the signal
    return (sigma, 1 - sigma, 1.0) if signal else (1 - sigma, sigma, 1.0)


def _flow_row(scheduler: Any) -> str:
    return "reversed_flow_prediction" if is_reversed(scheduler) else "flow_prediction"


_FLOW = Family(process="flow", coordinates=_flow, row=_flow_row)


def _sine(scheduler: Any, sigma: Tensor) -> Triple:
    return (1 - sigma**2).clamp_min(0).sqrt(), sigma, 1.0


def _angle(scheduler: Any, angle: Tensor) -> Triple:
    """TrigFlow of data of deviation sigma_data; diffusers starts a little above pi / 2."""
    sigma_data = torch.as_tensor(scheduler.config.sigma_data, dtype=torch.float64)
    return angle.cos().clamp_min(0), sigma_data * angle.sin(), 1 / sigma_data


_TO_1 = _by_timestep(lambda scheduler: getattr(scheduler, "final_alpha_cumprod", 1.0))
_SOLVER = Family(process="variance_preserving", coordinates=_preserving, row=_preserving_row)
_EXPLODING = Family(process="variance_preserving", coordinates=_exploding)
_EDM = Family(process="edm", coordinates=_edm, row=_edm_row, unusable=("sigmas",))  # bent once more

FAMILIES: dict[str, Family] = {
    "DDPMScheduler": _TO_1,
    "DDPMParallelScheduler": _TO_1,
    "DDIMScheduler": _TO_1,
    "DDIMParallelScheduler": _TO_1,
    "CogVideoXDDIMScheduler": _TO_1,
    "CogVideoXDPMScheduler": _TO_1,
    "PNDMScheduler": _TO_1,
    "LCMScheduler": _by_timestep(lambda scheduler: 1.0),  # the last step adds no noise
    "TCDScheduler": _by_timestep(lambda scheduler: scheduler.alphas_cumprod[0]),
    "IPNDMScheduler": Family(
        process="trigflow",
        coordinates=_sine,
        table=lambda scheduler, index: scheduler.betas,
        row=lambda scheduler: "v_prediction",
    ),
    "SCMScheduler": Family(
        process="trigflow",
        coordinates=_angle,
        table=lambda scheduler, index: scheduler.timesteps,
        row=lambda scheduler: "scaled_trigflow",
        scale=lambda scheduler: scheduler.config.sigma_data,
        unusable=("timesteps",),
    ),
    "DPMSolverMultistepScheduler": _SOLVER,
    "DPMSolverSinglestepScheduler": _SOLVER,
    "UniPCMultistepScheduler": _SOLVER,
    "DEISMultistepScheduler": _SOLVER,
    "SASolverScheduler": _SOLVER,
    "EulerDiscreteScheduler": _EXPLODING,
    "EulerAncestralDiscreteScheduler": _EXPLODING,
    "HeunDiscreteScheduler": _EXPLODING,
    "LMSDiscreteScheduler": _EXPLODING,
    "KDPM2DiscreteScheduler": _between(lambda scheduler: scheduler.sigmas_interpol),
    "KDPM2AncestralDiscreteScheduler": _between(lambda scheduler: scheduler.sigmas_interpol.roll(1)),
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": _FLOW,
    "LTXEulerAncestralRFScheduler": replace(_FLOW, unusable=("timesteps",), sequence=list),
    "MiniMaxH3Scheduler": _FLOW,
}
if is_torchsde_available():  # without it diffusers has the names only
    FAMILIES["DPMSolverSDEScheduler"] = _between(lambda s: (s.sigmas * s.sigmas.roll(1)).sqrt())
    FAMILIES["CosineDPMSolverMultistepScheduler"] = _EDM

_TOKENS = "it draws discrete tokens, which have no x_0 under Gaussian noise"
_INVERSE = "it goes from an image to its noise: guide the way back, with the scheduler it is the inverse of"
_STAGES = "a run of it is stages of several resolutions, each with tables and arguments of its own"
_SCORE = "it has no `step`: it reads a score in step_pred and step_correct; use EulerDiscreteScheduler"
REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "DDIMInverseScheduler": _INVERSE,
    "DPMSolverMultistepInverseScheduler": _INVERSE,
    "HeliosScheduler": _STAGES,
    "HeliosDMDScheduler": _STAGES,
    "ScoreSdeVeScheduler": _SCORE,
    "ScoreSdeVpScheduler": _SCORE,
    "KarrasVeScheduler": "its step takes two sigmas and a sample that it has noised; use EDMEulerScheduler",
    "RePaintScheduler": "its step takes the known image and a mask, and goes back to more noise as well",
    "CMStochasticIterativeScheduler": "its step reads x_0 by a consistency model's boundary condition at "
    "sigma_min, which is no prediction type here; use LCMScheduler",
    "ConsistencyDecoderScheduler": "it steps a decoder of latents, whose input and output are scaled apart",
    "FlowMapEulerDiscreteScheduler": "its network predicts the mean velocity to the next timestep, which "
    "says nothing about x_0; use FlowMatchEulerDiscreteScheduler for a network of velocities",
    "PiflowScheduler": "its network predicts several values a channel, a policy, and no single x_0",
    "RFD4ProteinaScheduler": "its step rescales the score and takes a mask of tokens",
    "UnCLIPScheduler": "diffusers has replaced it: use DDPMScheduler.from_config(scheduler.config)",
    "DDPMWuerstchenScheduler": "its step takes a ratio a sample for a timestep, and its betas are a formula",
}


@lru_cache(maxsize=256)
def known_as(kind: type) -> str | None:
    """The class in `FAMILIES` or `REFUSED` that a scheduler's class is or comes from; None of others."""
    bases = [cls.__name__ for cls in kind.__mro__ if cls.__module__.startswith("diffusers.")]
    return next((name for name in bases if name in FAMILIES or name in REFUSED), None)


@lru_cache(maxsize=256)
def family_of(kind: type) -> Family | None:
    """The family of a scheduler's class; None of one of another kind."""
    return FAMILIES.get(known_as(kind) or "")


_NEEDED = ("set_timesteps", "step", "noise_level")


def why_unsupported(scheduler: Any) -> str | None:
    """Why a scheduler cannot be worked with, in words that follow its name; None where it can."""
    known = known_as(scheduler.__class__)
    if hasattr(scheduler, "noise_level"):
        lacking = [each for each in _NEEDED if not callable(getattr(scheduler, each, None))]
        return f" with a noise_level, and lacks {', '.join(lacking)} to call" if lacking else None
    if known is None:
        return (
            ", whose noise levels are not known here; supported: any that has noise_level(timestep), and "
            f"{', '.join(FAMILIES)} and their subclasses"
        )
    if known in REFUSED:
        return f", which is not supported: {REFUSED[known]}"
    renewed = known == "FlowMatchLCMScheduler" or scheduler.config.get("stochastic_sampling", False)
    if renewed and is_reversed(scheduler):
        return (
            " with invert_sigmas=True and new noise at each step, which is not supported: it takes the "
            "signal's scale for the noise's, and makes a wrong x_0"
        )
    if getattr(scheduler, "_scale_factors", None):
        return (
            " with scale_factors, which is not supported: its steps change the sample's size, and a run here "
            "keeps it; leave scale_factors out"
        )
    return None


def check_supported(scheduler: AnyScheduler) -> None:
    """Raise ValueError for a scheduler without an x_0 or without known noise levels; it says why."""
    reason = why_unsupported(scheduler)
    if reason is not None:
        raise ValueError(f"scheduler is a {type(scheduler).__name__}{reason}")


def config_of(scheduler: AnyScheduler, name: str, default: Any = None) -> Any:
    """A value of a scheduler's configuration, where it has one."""
    config = getattr(scheduler, "config", None)
    return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)


def reads_variance(scheduler: AnyScheduler) -> bool:
    """Whether a scheduler's `step` takes the channels of a learned variance beside the prediction."""
    learned = config_of(scheduler, "variance_type") in ("learned", "learned_range")
    return learned and known_as(type(scheduler)) in ("DDPMScheduler", "DDPMParallelScheduler")


QUARTER_TURN = {"IPNDMScheduler": 1.0, "SCMScheduler": math.pi / 2}
"""The timestep that means pure noise, of the trigonometric processes."""
