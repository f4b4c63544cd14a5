"""Every supported scheduler with every prediction type it takes: what the laws run over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch

from guided_diffusers import GuidedDDIMScheduler, GuidedDDPMScheduler

UNCLIPPED = {"clip_sample": False}
SPACINGS = ("leading", "linspace", "trailing")
FROM_0_999 = np.linspace(0.999, 0.05, 9).tolist()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scheduler, its configuration, and how it is run.

    `coordinates` says what its tables mean (see `laws.mixture.levels_of`), `written` how its network
    writes its answer where that is not the configured prediction type's name.
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
    note: str = ""

    @property
    def written(self) -> str:
        """The prediction type in which the network writes its answer."""
        if self.coordinates == "edm":
            return {"epsilon": "edm", "v_prediction": "edm_v_prediction"}[self.prediction_type]
        return "flow_prediction" if self.scheduler.__name__.startswith("FlowMatch") else self.prediction_type

    def make(self) -> Any:
        """The scheduler, its timesteps not set."""
        named = (
            {}
            if self.scheduler.__name__.startswith("FlowMatch")
            else {"prediction_type": self.prediction_type}
        )
        scheduler = self.scheduler(**named, **self.config)
        if isinstance(scheduler, diffusers.FlowMatchHeunDiscreteScheduler):
            scheduler.sigma_max = 0.999  # it takes no sigmas; at sigma = 1 a classifier has no gradient
        return scheduler

    def __str__(self) -> str:
        options = [
            f"{k}={v}"
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
]
PRESERVING = [
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
    *_of(diffusers.FlowMatchHeunDiscreteScheduler, "flow", "flow_prediction", tolerance=1e-6),
]
CASES = [*BY_TIMESTEP, *PRESERVING, *PRESERVING_FLOW, *EXPLODING, *EDM, *FLOW_MATCH]
