"""Views and the further terms under `guide`: diffusers' own pipelines of them, and our own loop."""

from __future__ import annotations

import diffusers
import pytest
import torch
from own_loop import by_our_loop, drawn
from stock_families import FAMILIES, STEPS, made

from guided_diffusers import guide
from guided_diffusers.guidance import (
    AutoGuidance,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    DynamicThresholding,
    HistoryGuidance,
    LossGuidance,
    NormCap,
    RectifiedCFGPlusPlus,
    SlidingWindowGuidance,
    TimestepGuidance,
    views,
)


def plain(name: str) -> ClassifierFreeGuidance:
    return ClassifierFreeGuidance(FAMILIES[name].ours)


def pag(pipeline, **options):
    parts = {key: part for key, part in pipeline.components.items() if key != "image_encoder"}
    theirs = diffusers.StableDiffusionPAGPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    return FAMILIES["sd1"].call(theirs, pag_scale=3.0)


PUBLISHED = {
    "PAG": ("sd1", pag, lambda net: AutoGuidance(views.identity_attention(net), 1 + 3.0)),
    "skip-layer guidance": (
        "sd3",
        lambda pipeline: FAMILIES["sd3"].call(
            pipeline, skip_guidance_layers=[0], skip_layer_guidance_start=-1, skip_layer_guidance_stop=2
        ),
        lambda net: AutoGuidance(views.skip_layers(net, [0]), 1 + 2.8),
    ),
    "a capped norm": (
        "z-image",
        lambda pipeline: FAMILIES["z-image"].call(pipeline, cfg_normalization=0.7),
        lambda net: NormCap(0.7),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_terms_are_what_pipelines_of_diffusers_have(name):
    family, theirs_of, term_of = PUBLISHED[name]
    pipeline = made(family)
    theirs = theirs_of(pipeline)
    pipeline = made(family)
    with guide(pipeline, plain(family) + term_of(getattr(pipeline, FAMILIES[family].network))):
        ours = FAMILIES[family].call(pipeline)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(float(theirs.std()), 1))
    assert (FAMILIES[family].call(pipeline) - theirs).abs().max() > 1e-3


WINDOWS = SlidingWindowGuidance(1.0, size=0.75, multiple=2)
RECURRENT = LossGuidance(lambda images: images.square().flatten(1).mean(1), 3.0, recurrence=2)
LOOPED = {
    "rectified": ("sd3", RectifiedCFGPlusPlus(2.5, exponent=0.5)),
    "timestep": ("sd3", TimestepGuidance(3.0)),
    "timestep of integers": ("sd1", TimestepGuidance(3.0)),
    "windows": ("sd3", plain("sd3") + WINDOWS),
    "windows of a video": ("wan", plain("wan") + WINDOWS),
    "history": ("sd3", plain("sd3") + HistoryGuidance()),
    "norm": ("sd3", plain("sd3") + NormCap(0.5)),
    "threshold": ("sd1", plain("sd1") + DynamicThresholding(0.9)),
    "cfg++": ("sd2 v", CFGPlusPlus(0.6)),
    "recurrence": ("sd3", RECURRENT + plain("sd3")),
    "recurrence of v": ("sd2 v", RECURRENT),
}


@pytest.mark.parametrize("name", LOOPED)
def test_terms_draw_what_our_own_loop_draws(name):
    family, guidance = LOOPED[name]
    pipeline, case = made(family), FAMILIES[family]
    with guide(pipeline, guidance):
        ours = drawn(case, pipeline, STEPS)
    theirs = by_our_loop(case, pipeline, guidance, STEPS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(float(theirs.std()), 1))
