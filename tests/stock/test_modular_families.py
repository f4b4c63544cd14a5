"""Families of diffusers' modular pipelines under `guide`: each as it is, its guider diffusers' own.

Between their blocks that encode and decode, on the networks and schedulers of `stock_families`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance as StockGuidance
from own_loop import AsQwenDoes
from stock_families import FAMILIES, GAMMA, draw, made

from guided_diffusers import guide
from guided_diffusers.guidance import ClassifierFreeGuidance, ProjectedGuidance

STEPS = 4
MODULAR = {  # the family, the module and class of its blocks, what a call is told otherwise
    "sd3": ("stable_diffusion_3", "StableDiffusion3AutoBlocks", {"height": 16, "width": 16}),
    "flux2 klein": ("flux2.modular_blocks_flux2_klein_base", "Flux2KleinBaseAutoBlocks", {}),
    "qwen-image": (
        "qwenimage",
        "QwenImageAutoBlocks",
        {
            name: torch.ones(1, 6, dtype=torch.long)
            for name in ("prompt_embeds_mask", "negative_prompt_embeds_mask")
        },
    ),
    "z-image": ("z_image", "ZImageAutoBlocks", {"height": 128, "width": 128}),
    "wan": ("wan", "WanBlocks", {}),
    "ltx": ("ltx", "LTXBlocks", {}),
}


def called(name: str) -> tuple[Any, Callable[[], torch.Tensor]]:
    """A family's modular pipeline without its encoders and decoder, and a call of it."""
    module, kind, others = MODULAR[name]
    blocks = getattr(import_module(f"diffusers.modular_pipelines.{module}"), kind)()
    for each in ("text_encoder", "vae_encoder", "decode"):
        blocks.sub_blocks.pop(each, None)
    pipeline, case, stock = blocks.init_pipeline(), FAMILIES[name], made(name)
    known = {each.name for each in blocks.expected_components}
    parts = {key: part for key, part in stock.components.items() if part is not None and key in known}
    pipeline.update_components(**parts, guider=StockGuidance(GAMMA))
    given = {**case.arguments(), **others, "latents": draw(*case.latents, seed=9)}

    def call() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipeline(**given, num_inference_steps=STEPS, generator=generator).get("latents")

    return pipeline, call


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "sd3" else []) for name in MODULAR]
)
def test_plain_guidance_is_the_untouched_pipeline_and_others_run(name):
    pipeline, call = called(name)
    plain = call()
    term = (AsQwenDoes if name == "qwen-image" else ClassifierFreeGuidance)(GAMMA)
    with guide(pipeline, term) as run:
        torch.testing.assert_close(call(), plain, rtol=0, atol=1e-5)
    assert run.calls == [1, 1] * STEPS
    with guide(pipeline, ProjectedGuidance(GAMMA, momentum=-0.5)):
        assert (call() - plain).abs().max() > 1e-3
    assert torch.equal(call(), plain)
