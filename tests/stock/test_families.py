"""Families of diffusers' pipelines under `guide`: each as it is, and as our own loop on the same network.

The commonest are in the fast suite. LoRA needs peft, and Kolors' tokenizer sentencepiece.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from own_loop import AsQwenDoes, by_our_loop, drawn
from stock_families import FAMILIES, GAMMA, STEPS, made

from guided_diffusers import guide
from guided_diffusers.guidance import (
    CFGZeroStar,
    ClassifierFreeGuidance,
    GuidanceInterval,
    LossGuidance,
    ProjectedGuidance,
)

COMMON = ("sd1", "sdxl", "sd3", "flux", "pixart-sigma", "qwen-image", "wan", "dit")
NEEDS = {"kolors": "sentencepiece", "lora": "peft"}
EVERY = [
    pytest.param(
        name,
        marks=[
            *([] if name in COMMON else [pytest.mark.slow]),
            *([pytest.mark.skip(f"needs {NEEDS[name]}")] if not find_spec(NEEDS.get(name, "torch")) else []),
        ],
    )
    for name in FAMILIES
]


@pytest.fixture(scope="module", params=EVERY)
def family(request):
    """A family and its pipeline."""
    return FAMILIES[request.param], made(request.param)


def assert_same(ours, theirs):
    """Equal to 1e-5 of the deviation of what was drawn."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(float(theirs.std()), 1))


def own_guidance(case, pipeline):
    term = AsQwenDoes if type(pipeline).__name__ == "QwenImagePipeline" else ClassifierFreeGuidance
    return term(case.ours)


def test_plain_guidance_is_the_untouched_pipeline(family):
    case, pipeline = family
    plain = case.call(pipeline)
    with guide(pipeline, own_guidance(case, pipeline)) as run:
        assert_same(case.call(pipeline), plain)
        assert_same(case.call(pipeline, **{case.scale: case.gamma + 3}), plain)  # its scale has no effect
    assert sum(run.calls) == 2 * len(run.record)
    assert torch.equal(case.call(pipeline), plain)


def test_outside_its_interval_the_network_runs_on_the_condition_alone(family):
    case, pipeline = family
    with guide(pipeline, ClassifierFreeGuidance(1.0)) as run:
        case.call(pipeline, steps=20)
    levels = sorted({each["noise_to_signal"] for each in run.record})
    with guide(pipeline, ClassifierFreeGuidance(GAMMA, GuidanceInterval(levels[1], levels[9]))) as run:
        case.call(pipeline, steps=20)
    active = [bool(each["terms"]) for each in run.record]
    assert sum(active) == 8 and sum(run.calls) == len(active) + 8


def loss(images):
    return (images - 0.5).square().flatten(1).mean(1)


TERMS = {
    "projected": lambda case, pipeline: ProjectedGuidance(GAMMA, momentum=-0.5),
    "cfg-zero": lambda case, pipeline: CFGZeroStar(GAMMA),
    "a view": lambda case, pipeline: case.viewed(pipeline, 2.0),
    "loss": lambda case, pipeline: LossGuidance(loss, 5.0, decode=torch.tanh),
    "loss through the network": lambda case, pipeline: LossGuidance(
        loss, 5.0, through="denoised", max_norm=1.0
    ),
    "a sum": lambda case, pipeline: ProjectedGuidance(GAMMA, (0.1, 5.0)) + LossGuidance(loss, 1.0),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms_draw_what_our_own_loop_draws(family, name):
    case, pipeline = family
    if name == "a view" and case.view == ():
        pytest.skip("none of its layers has a view")
    guidance = TERMS[name](case, pipeline)
    with guide(pipeline, guidance):
        ours = drawn(case, pipeline, STEPS)
    assert ours.isfinite().all()
    if case.alone and not isinstance(guidance, dict):
        assert_same(ours, by_our_loop(case, pipeline, guidance, STEPS))
