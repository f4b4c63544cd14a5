"""Every supported scheduler with every prediction type it takes: what the laws run over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch

from guided_diffusers import GuidedDDIMScheduler, GuidedDDPMScheduler

UNCLIPPED = {"clip_sample": False}
SPACINGS = ("leading", "linspace", "trailing")
FROM_0_999 = np.linspace(0.999, 0.05, 9).tolist()
OF_ONE_TYPE = {
    diffusers.FlowMatchEulerDiscreteScheduler,
    diffusers.FlowMatchHeunDiscreteScheduler,
    diffusers.FlowMatchLCMScheduler,
    diffusers.LTXEulerAncestralRFScheduler,
    diffusers.MiniMaxH3Scheduler,
    diffusers.IPNDMScheduler,
    diffusers.SCMScheduler,
}
"""Schedulers without a prediction type in their configuration."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scheduler, its configuration, and how it is run.

    `coordinates` says what its tables mean (see `laws.mixture.levels_of`), `written` how its network
    writes its answer where that is not the configured prediction type's name; `ends_in_noise`, that the run
    ends at a level that has noise of its own.
    """

    scheduler: type
    coordinates: str
    prediction_type: str = "epsilon"
    config: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 9
    sigmas: list[float] | None = None
    step_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-9
    ends_in_noise: bool = False
    note: str = ""

    @property
    def written(self) -> str:
        """The prediction type in which the network writes its answer."""
        if self.coordinates == "edm":
            return {"epsilon": "edm", "v_prediction": "edm_v_prediction"}[self.prediction_type]
        return self.prediction_type

    def make(self) -> Any:
        """The scheduler, its timesteps not set."""
        named = {} if self.scheduler in OF_ONE_TYPE else {"prediction_type": self.prediction_type}
        scheduler = self.scheduler(**named, **self.config)
        # These take no sigmas; at alpha = 0 a classifier has no gradient.
        if isinstance(scheduler, diffusers.FlowMatchHeunDiscreteScheduler):
            scheduler.sigma_max = 0.999
        if isinstance(scheduler, diffusers.SCMScheduler):
            scheduler.set_timesteps = partial(scheduler.set_timesteps, max_timesteps=1.5698)
        return scheduler

    def __str__(self) -> str:
        options = [
            "ode" if k == "tau_func" else f"{k}={v}"
            for k, v in {**self.config, **self.step_kwargs}.items()
            if k not in {*UNCLIPPED, *SHORT}
        ]
        return "-".join(
            [self.scheduler.__name__.removesuffix("Scheduler"), self.written, *options, self.note]
        ).strip("-")


def _of(
    scheduler: type, coordinates: str, types: str, *configs: Mapping[str, Any], **kwargs: Any
) -> list[Case]:
    """A case for each prediction type and configuration."""
    return [
        Case(scheduler=scheduler, coordinates=coordinates, prediction_type=kind, config=config, **kwargs)
        for kind in types.split()
        for config in configs or ({},)
    ]


def _spaced(**config: Any) -> list[dict[str, Any]]:
    return [{"timestep_spacing": spacing, **config} for spacing in SPACINGS]


ALL, FLOW, KARRAS = "epsilon sample v_prediction", {"use_flow_sigmas": True}, {"use_karras_sigmas": True}
# Setting KDPM2's timesteps takes long in a table of 1000.
SHORT = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2}
ODE, NOISE = {"tau_func": lambda timestep: 0}, {"algorithm_type": "noise_prediction"}  # of SA-Solver
TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
_UNIPC = {"dtype": torch.float32, "tolerance": 1e-4}  # its linear solves are float32 whatever the sample
_MULTISTEP, _SINGLESTEP = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler

BY_TIMESTEP = [
    *_of(GuidedDDPMScheduler, "timestep", f"{ALL} flow_prediction", *_spaced(**UNCLIPPED)),
    *_of(GuidedDDPMScheduler, "timestep", "epsilon", {"variance_type": "fixed_large", **UNCLIPPED}),
    *_of(GuidedDDPMScheduler, "timestep", ALL, {"beta_schedule": "squaredcos_cap_v2", **UNCLIPPED}),
    *_of(GuidedDDIMScheduler, "timestep", f"{ALL} flow_prediction", *_spaced(**UNCLIPPED)),
    *_of(GuidedDDIMScheduler, "timestep", ALL, UNCLIPPED, step_kwargs={"eta": 0.7}),
    *_of(diffusers.DDPMScheduler, "timestep", ALL, *_spaced(**UNCLIPPED)),
    *_of(diffusers.DDIMScheduler, "timestep", ALL, *_spaced(**UNCLIPPED)),
    *_of(diffusers.DDIMScheduler, "timestep", ALL, UNCLIPPED, step_kwargs={"eta": 0.7}),
    *_of(diffusers.PNDMScheduler, "timestep", "epsilon v_prediction", *_spaced(skip_prk_steps=True)),
    *_of(diffusers.PNDMScheduler, "timestep", "epsilon v_prediction", {"skip_prk_steps": False}),
    *_of(diffusers.DDPMParallelScheduler, "timestep", ALL, UNCLIPPED),
    *_of(diffusers.DDIMParallelScheduler, "timestep", ALL, UNCLIPPED, step_kwargs={"eta": 0.7}),
    *_of(diffusers.CogVideoXDDIMScheduler, "timestep", ALL, *_spaced(), {"snr_shift_scale": 1.0}),
    *_of(diffusers.CogVideoXDPMScheduler, "timestep", ALL, *_spaced(), tolerance=1e-8),
    *_of(diffusers.LCMScheduler, "timestep", ALL, {}, {"original_inference_steps": 100}),
    *_of(diffusers.TCDScheduler, "timestep", ALL, step_kwargs={"eta": 0.0}),
    *_of(diffusers.TCDScheduler, "timestep", ALL, ends_in_noise=True),
]
PRESERVING = [
    *_of(diffusers.SASolverScheduler, "preserving", ALL, {}, KARRAS, tolerance=1e-6, ends_in_noise=True),
    *_of(diffusers.SASolverScheduler, "preserving", ALL, ODE, {**NOISE, **ODE}, tolerance=1e-6),
    *_of(
        _MULTISTEP,
        "preserving",
        ALL,
        *_spaced(),
        KARRAS,
        {"algorithm_type": "sde-dpmsolver++"},
        {"solver_order": 3},
    ),
    *_of(_MULTISTEP, "preserving", ALL, {"algorithm_type": "dpmsolver", **TO_SIGMA_MIN}),
    *_of(
        _SINGLESTEP, "preserving", ALL, {}, KARRAS, {"solver_order": 3}, {"algorithm_type": "sde-dpmsolver++"}
    ),
    *_of(_SINGLESTEP, "preserving", ALL, {"algorithm_type": "dpmsolver", **TO_SIGMA_MIN}),
    *_of(diffusers.DEISMultistepScheduler, "preserving", ALL, *_spaced(), KARRAS, {"solver_order": 3}),
    *_of(
        diffusers.UniPCMultistepScheduler,
        "preserving",
        ALL,
        *_spaced(),
        KARRAS,
        {"predict_x0": False, **TO_SIGMA_MIN},
        **_UNIPC,
    ),
]
PRESERVING_FLOW = [
    *_of(_MULTISTEP, "flow", "flow_prediction epsilon sample", FLOW, tolerance=1e-6),
    *_of(_SINGLESTEP, "flow", "flow_prediction epsilon sample", FLOW, tolerance=1e-6),
    *_of(diffusers.DEISMultistepScheduler, "flow", "flow_prediction epsilon sample", FLOW, tolerance=1e-6),
    *_of(diffusers.SASolverScheduler, "flow", "flow_prediction epsilon", {**FLOW, **ODE}, tolerance=1e-6),
    *_of(diffusers.UniPCMultistepScheduler, "flow", "flow_prediction", FLOW, sigmas=FROM_0_999, **_UNIPC),
]
EXPLODING = [
    *_of(
        diffusers.EulerDiscreteScheduler,
        "exploding",
        ALL,
        *_spaced(),
        KARRAS,
        {"use_exponential_sigmas": True},
    ),
    *_of(diffusers.EulerAncestralDiscreteScheduler, "exploding", "epsilon v_prediction", *_spaced()),
    *_of(diffusers.HeunDiscreteScheduler, "exploding", "epsilon v_prediction", *_spaced(), KARRAS),
    *_of(
        diffusers.LMSDiscreteScheduler, "exploding", ALL, *_spaced(), KARRAS, steps=5
    ),  # it integrates slowly
    *_of(
        diffusers.KDPM2DiscreteScheduler,
        "exploding",
        "epsilon v_prediction",
        *_spaced(**SHORT),
        {**KARRAS, **SHORT},
        steps=5,
    ),
    *_of(  # with leading spacing its last two levels have one timestep
        diffusers.KDPM2AncestralDiscreteScheduler,
        "exploding",
        "epsilon v_prediction",
        *_spaced(**SHORT)[1:],
        {**KARRAS, **SHORT},
        steps=5,
    ),
]
EDM = [
    *_of(diffusers.EDMEulerScheduler, "edm", "epsilon v_prediction", tolerance=1e-6),
    *_of(
        diffusers.EDMEulerScheduler,
        "edm",
        "epsilon v_prediction",
        {"sigma_schedule": "exponential"},
        tolerance=1e-6,
    ),
    *_of(diffusers.EDMDPMSolverMultistepScheduler, "edm", "epsilon v_prediction", tolerance=1e-6),
]
FLOW_MATCH = [
    *_of(
        diffusers.FlowMatchEulerDiscreteScheduler,
        "flow",
        "flow_prediction",
        sigmas=FROM_0_999,
        tolerance=1e-6,
    ),
    *_of(
        diffusers.FlowMatchEulerDiscreteScheduler,
        "flow",
        "flow_prediction",
        {"shift": 3.0},
        sigmas=FROM_0_999,
        tolerance=1e-6,
    ),
    *_of(
        diffusers.FlowMatchEulerDiscreteScheduler,
        "flow",
        "flow_prediction",
        {"stochastic_sampling": True},
        sigmas=FROM_0_999,
        tolerance=1e-6,
    ),
    *_of(
        diffusers.FlowMatchEulerDiscreteScheduler,
        "signal",
        "reversed_flow_prediction",
        {"invert_sigmas": True},
        sigmas=FROM_0_999,
        tolerance=1e-5,
    ),
    *_of(diffusers.FlowMatchHeunDiscreteScheduler, "flow", "flow_prediction", tolerance=1e-6),
    *_of(diffusers.FlowMatchLCMScheduler, "flow", "flow_prediction", sigmas=FROM_0_999, tolerance=1e-6),
    *_of(
        diffusers.LTXEulerAncestralRFScheduler,
        "flow",
        "flow_prediction",
        {},
        {"eta": 0.0},
        sigmas=[*FROM_0_999, 0.0],
        tolerance=1e-5,
    ),
    *_of(
        diffusers.MiniMaxH3Scheduler,
        "flow",
        "reversed_flow_prediction",
        sigmas=[*FROM_0_999, 0.0],
        tolerance=1e-5,
    ),
]
TRIGONOMETRIC = [
    *_of(diffusers.IPNDMScheduler, "quarter turn", "v_prediction", steps=30, tolerance=1e-6),
    *_of(diffusers.SCMScheduler, "angle", "scaled_trigflow", tolerance=1e-6),
]
CASES = [*BY_TIMESTEP, *PRESERVING, *PRESERVING_FLOW, *EXPLODING, *EDM, *FLOW_MATCH, *TRIGONOMETRIC]
