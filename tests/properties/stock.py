"""Calls of `guide`: pipelines of diffusers, terms and sums, a null of one's own; then a plain call."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import PNDMScheduler
from hypothesis import strategies as st
from properties.guiding import INTERVALS
from properties.harness import Target, finite
from stock_families import FAMILIES, Family, made

from guided_diffusers import guide
from guided_diffusers.guidance import (
    AutoGuidance,
    CFGPlusPlus,
    CFGZeroStar,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Guidance,
    GuidanceSum,
    LossGuidance,
    ProjectedGuidance,
    RescaledGuidance,
)

NAMES = ("sd1", "sd1 img2img", "sdxl", "sd3", "flux", "pixart-sigma", "wan", "dit")
STEPS = 2


@cache
def pipeline_of(name: str) -> tuple[Family, Any, torch.Tensor]:
    """A family, its pipeline, and what it draws plainly."""
    case, pipeline = FAMILIES[name], made(name)
    return case, pipeline, case.call(pipeline, steps=STEPS)


def log_prob(sample: Any, level: Any, condition: Any) -> Any:
    return -sample.square().flatten(1).sum(1) / 2


def loss(images: Any) -> Any:
    return images.square().flatten(1).mean(1)


def weak(sample: Any, level: Any, condition: Any = None) -> Any:
    return sample * 0.5


TERMS = {
    "plain": ClassifierFreeGuidance,
    "rescaled": RescaledGuidance,
    "projected": ProjectedGuidance,
    "cfg-zero": CFGZeroStar,
    "cfg++": CFGPlusPlus,
    "classifier": lambda *given: ClassifierGuidance(log_prob, *given),
    "universal": lambda *given: ClassifierGuidance(log_prob, *given, through="denoised"),
    "auto": lambda *given: AutoGuidance(weak, *given),
    "loss": lambda *given: LossGuidance(loss, *given),
    "recurrent": lambda *given: LossGuidance(loss, *given, recurrence=2),
}
ONE = st.builds(
    lambda name, scale, interval: TERMS[name](scale, interval),
    st.sampled_from(sorted(TERMS)),
    st.floats(0, 8) | st.sampled_from([0, 1, 1.0, (2.0,)]),
    INTERVALS,
)
GUIDANCE = ONE | st.builds(Guidance.__add__, ONE, ONE)


def called(name: str, guidance: Any, condition: Any, sequential: Any, scale: Any) -> torch.Tensor:
    """A guided call; before it and after it the pipeline draws the same."""
    case, pipeline, plain = pipeline_of(name)
    kind = type(pipeline)
    if isinstance(guidance, Guidance) and isinstance(pipeline.scheduler, PNDMScheduler):
        # it takes a step twice, which CFG++ refuses
        guidance = GuidanceSum(tuple(term for term in guidance.terms if not isinstance(term, CFGPlusPlus)))
    try:
        with guide(pipeline, guidance, condition, sequential) as run:
            drawn = case.call(pipeline, steps=STEPS, **{case.scale: scale})
            assert sum(run.calls) >= len(run.record) > 0
    finally:
        assert type(pipeline) is kind and torch.equal(case.call(pipeline, steps=STEPS), plain)
    return drawn


TARGET = Target(
    call=called,
    arguments={
        "name": st.sampled_from(NAMES),
        "guidance": GUIDANCE,
        "condition": st.none(),
        "sequential": st.booleans(),
        "scale": st.floats(1.5, 20) | st.sampled_from([2, 7.5]),
    },
    right=lambda drawn, given: finite(drawn),
    called={"scale": "guidance_scale true_cfg_scale"},
    keep=("name",),
)
