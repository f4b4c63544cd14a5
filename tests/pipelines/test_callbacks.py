"""Callbacks as diffusers writes them: TextToImagePipeline draws what StableDiffusionPipeline draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
)
from tiny import LATENT, WIDTH, tiny_components
from torch import Tensor

from guided_diffusers import TextToImagePipeline
from guided_diffusers.guidance import AutoGuidance, CFGPlusPlus, ClassifierFreeGuidance, RescaledGuidance

STEPS = 6
NOISE = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(5))
PROMPTS = ["ab", "cd"]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """Both pipelines on the same components, of a network to which the text matters."""
    components = tiny_components()
    with torch.no_grad():
        for name, weight in components["unet"].named_parameters():
            if "attn2.to_v" in name:
                weight.mul_(30)
    stock = StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    ours = TextToImagePipeline(**components)
    for pipe in (stock, ours):
        pipe.set_progress_bar_config(disable=True)
    return stock, ours


def drawn(pipe: Any, images: int = 1, **arguments: Any) -> Tensor:
    call = {"guidance_scale": 3.0, "num_inference_steps": STEPS, "output_type": "latent"}
    return pipe(PROMPTS[:images], latents=NOISE[:images], **{**call, **arguments}).images


class Swap(PipelineCallback):
    """Exchanges the prompts' rows for the null's, and back, by diffusers' own order of rows."""

    tensor_inputs = ["prompt_embeds"]

    def callback_fn(self, pipeline: Any, index: int, timestep: Any, tensors: dict) -> dict:
        return {"prompt_embeds": torch.cat(tensors["prompt_embeds"].chunk(2)[::-1])}


def recipe(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
    """Dynamic classifier-free guidance, as diffusers' documentation has it."""
    if index == 2:
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        pipe._guidance_scale = 0.0
    return tensors


def louder(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
    """Changes rows in place, and raises the scale."""
    tensors["prompt_embeds"].mul_(1.1)
    pipe._guidance_scale = 4.0 + index
    return {}


def halved(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
    return {"latents": tensors["latents"].half()}


EMBEDS = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


@pytest.mark.parametrize(
    ("callback", "arguments"),
    [
        (SDCFGCutoffCallback(cutoff_step_ratio=0.34), {}),
        (SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0), {}),
        (SDCFGCutoffCallback(cutoff_step_ratio=0.34), {"guidance_scale": 1.0}),
        (MultiPipelineCallbacks([Swap(), SDCFGCutoffCallback(cutoff_step_ratio=0.5)]), {}),
        (Swap(), {}),
        (recipe, EMBEDS),
        (recipe, {**EMBEDS, "images": 2}),
        (louder, EMBEDS),
    ],
)
def test_equal_to_stable_diffusion(pair: Any, callback: Callable, arguments: dict) -> None:
    stock, ours = (drawn(pipe, callback_on_step_end=callback, **arguments) for pipe in pair)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
    if arguments.get("guidance_scale") != 1.0:  # where it does nothing
        assert (ours - drawn(pair[1], arguments.get("images", 1))).abs().max() > 0.1


def test_diffusers_cutoff_keeps_the_prompt_of_each_image(pair: Any) -> None:
    """StableDiffusionPipeline has one row for all there, and fails."""
    ours = drawn(pair[1], 2, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.34))
    torch.testing.assert_close(
        ours, drawn(pair[0], 2, callback_on_step_end=recipe, **EMBEDS), rtol=0, atol=1e-5
    )
    assert not pair[1].do_classifier_free_guidance and pair[1].guidance_scale == 0


def test_guidance_comes_back_where_the_scale_does(pair: Any) -> None:
    def pause(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipe._guidance_scale = 3.0 if index >= 3 else 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]} if index == 0 else {}

    def off(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipe._guidance_scale = 3.0 if index >= 3 else 1.0
        return {}

    ours = drawn(pair[1], callback_on_step_end=pause, **EMBEDS)
    assert torch.equal(ours, drawn(pair[1], callback_on_step_end=off))


def test_a_scale_below_1_without_embeddings_is_the_formulas(pair: Any) -> None:
    """0 is unconditional, as in a call: the null is what the network is told."""

    def unconditional(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipe._guidance_scale = 0.0
        return tensors

    def told_the_null(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[0]}

    expected = drawn(pair[1], callback_on_step_end=told_the_null, **EMBEDS)
    for arguments in ({}, EMBEDS):
        ours = drawn(pair[1], callback_on_step_end=unconditional, **arguments)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_cutoff_ends_every_term_that_asks_for_the_null(pair: Any) -> None:
    cut = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)
    weak = ClassifierFreeGuidance(1.0)(pair[1].unet)
    for guidance in (CFGPlusPlus(0.6), AutoGuidance(weak, 2.0, (1e9, None), null=True)):
        batches: list[int] = []
        hook = pair[1].unet.register_forward_pre_hook(lambda module, args, b=batches: b.append(len(args[0])))
        drawn(pair[1], guidance=guidance, guidance_scale=None, callback_on_step_end=cut)
        hook.remove()
        assert batches[1:] == [1] * (STEPS - 1)


def test_guidance_scale_is_gamma_whatever_the_term(pair: Any) -> None:
    weak = ClassifierFreeGuidance(1.0)(pair[1].unet)
    for guidance, gamma in (
        (CFGPlusPlus(0.6), None),
        (AutoGuidance(weak, 2.0, (1e9, None)), None),
        (RescaledGuidance(2.5), 2.5),
    ):
        drawn(pair[1], guidance=guidance, guidance_scale=None, num_inference_steps=1)
        assert pair[1].guidance_scale == gamma


def returning(value: Any) -> Callable:
    return lambda pipe, index, timestep, tensors: value


def setting(scale: Any) -> Callable:
    return lambda pipe, index, timestep, tensors: setattr(pipe, "_guidance_scale", scale)


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (returning(3), "callback_on_step_end returned 3"),
        (returning({"image": NOISE}), "returned 'image'; allowed: 'latents', 'prompt_embeds'"),
        (returning({"latents": None}), "latents is None"),
        (returning({"latents": NOISE[:1, :1]}), "latents is .*1, 1, 8, 8"),
        (returning({"latents": NOISE[:1] / 0}), "latents holds values that are NaN"),
        (returning({"prompt_embeds": torch.ones(3, 16, WIDTH)}), r"prompt_embeds has shape \(3, 16"),
        (returning({"prompt_embeds": torch.ones(1, 16, 4)}), r"prompt_embeds has shape \(1, 16, 4\)"),
        (returning({"prompt_embeds": torch.ones(1, 3, WIDTH)}), r"prompt_embeds has shape \(1, 3"),
        (returning({"negative_prompt_embeds": NOISE}), "negative_prompt_embeds"),
        (setting("much"), "_guidance_scale is 'much'"),
        (setting([1.0, 2.0]), "_guidance_scale has 2 values for 1 images"),
        (setting(float("nan")), "_guidance_scale is nan"),
        (SDXLCFGCutoffCallback(), "add_text_embeds"),
        (IPAdapterScaleCutoffCallback(), "IPAdapterScaleCutoffCallback"),
        (MultiPipelineCallbacks([Swap(), IPAdapterScaleCutoffCallback()]), "IPAdapterScaleCutoffCallback"),
    ],
)
def test_what_a_callback_does_wrong_is_named(pair: Any, callback: Callable, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        drawn(pair[1], callback_on_step_end=callback)
    assert "\n" not in str(caught.value)


def test_a_scale_that_no_term_takes_is_refused(pair: Any) -> None:
    with pytest.raises(ValueError, match="CFGPlusPlus.*has no gamma"):
        drawn(pair[1], guidance=CFGPlusPlus(0.6), guidance_scale=None, callback_on_step_end=setting(2.0))


def test_latents_of_another_precision_are_taken(pair: Any) -> None:
    ours = drawn(pair[1], callback_on_step_end=halved)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, drawn(pair[1]), rtol=0, atol=0.1)


class TestWithoutATextEncoder:
    """Embeddings are given; the null is asked for when a term needs it, and not before."""

    @pytest.fixture
    def pipe(self, pair: Any) -> TextToImagePipeline:
        components = {name: part for name, part in pair[1].components.items() if part is not None}
        pipe = TextToImagePipeline(**{**components, "text_encoder": None, "tokenizer": None})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, pipe: Any, **arguments: Any) -> Tensor:
        embeds = torch.randn(1, 16, WIDTH, generator=torch.Generator().manual_seed(9))
        call = {"num_inference_steps": 3, "output_type": "latent", "latents": NOISE[:1]}
        return pipe(prompt_embeds=embeds, **{**call, **arguments}).images

    def test_a_progress_callback_at_scale_1(self, pipe: Any) -> None:
        watch = returning({})
        watched = self.call(pipe, guidance_scale=1.0, callback_on_step_end=watch)
        assert torch.equal(watched, self.call(pipe, guidance_scale=1.0))

    def test_a_callback_that_raises_the_scale_finds_the_null_that_was_given(self, pipe: Any) -> None:
        null = torch.zeros(1, 16, WIDTH)
        raised = self.call(
            pipe, guidance_scale=1.0, negative_prompt_embeds=null, callback_on_step_end=setting(3.0)
        )
        assert (raised - self.call(pipe, guidance_scale=1.0)).abs().max() > 1e-3

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"guidance_scale": 3.0}, "give negative_prompt_embeds, or guidance_scale=1"),
            ({"guidance_scale": 1.0, "callback_on_step_end": setting(3.0)}, "give negative_prompt_embeds"),
        ],
    )
    def test_a_null_that_cannot_be_encoded_is_asked_for_by_name(self, pipe: Any, arguments: dict, words: str):
        with pytest.raises(ValueError, match=f"text_encoder; {words}"):
            self.call(pipe, **arguments)

    def test_a_prompt_is_refused(self, pipe: Any) -> None:
        with pytest.raises(ValueError, match="prompt is to be encoded.*no text_encoder; give prompt_embeds"):
            drawn(pipe)


def test_the_null_is_encoded_when_a_callback_raises_the_scale(pair: Any) -> None:
    encoded: list[int] = []
    hook = pair[1].text_encoder.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    drawn(pair[1], guidance_scale=1.0, callback_on_step_end=returning({}))
    assert encoded == [1]
    raised = drawn(pair[1], guidance_scale=1.0, callback_on_step_end=setting(3.0), num_images_per_prompt=1)
    hook.remove()
    assert encoded == [1, 1, 1]

    def lower(pipe: Any, index: int, timestep: Any, tensors: dict) -> dict:
        return {} if index else setattr(pipe, "_guidance_scale", 3.0)

    assert torch.equal(raised, drawn(pair[1], guidance_scale=1.0, callback_on_step_end=lower))
