"""Whole calls of every pipeline with random combinations of arguments."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from properties.guiding import INTERVALS, NAMES, denoiser, log_prob, scheduler_of
from properties.harness import Target, finite
from properties.strategies import TEXTS, WRONG, generators, numbers, tensors
from subjects import made
from tiny import CONTEXT, LATENT, WIDTH

from guided_diffusers.guidance import (
    AutoGuidance,
    CFGPlusPlus,
    CFGZeroStar,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    GuidanceSum,
    ProjectedGuidance,
    RescaledGuidance,
)
from guided_diffusers.schedulers import describe_process
from guided_diffusers.schedulers.timesteps import takes

OUTPUT_TYPES = st.sampled_from(["pil", "np", "pt", "latent"])
CLASSIFIER_SCHEDULERS = [name for name in NAMES if "beta_start" in describe_process(scheduler_of(name))]
"""Of the process that the tiny classifiers were made for."""


@cache
def pipeline(name: str) -> Any:
    """A tiny pipeline, made once; each call gets its own scheduler."""
    return made(name)


def call(name: str, scheduler: Any, arguments: Mapping[str, Any]) -> Any:
    """A call under a scheduler of a name, at the process of the pipeline's own."""
    pipe = pipeline(name)
    if scheduler is not None:
        own = pipe.scheduler.config
        betas = {key: own[key] for key in ("beta_start", "beta_end", "beta_schedule") if key in own}
        pipe.scheduler = scheduler_of(scheduler, **(betas if name.startswith("Classifier") else {}))
        if pipe.scheduler.config.get("clip_sample"):
            pipe.scheduler.register_to_config(clip_sample=False)
    return pipe(**arguments).images


def keep_latents(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """A callback that looks and leaves everything as it is."""
    return {"latents": tensors["latents"]}


def interrupt(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """A callback that ends the run."""
    pipe._interrupt = True
    return {}


CALLBACKS = {"callback_on_step_end": st.sampled_from([None, keep_latents, interrupt])}


def steps_of(scheduler: str) -> SearchStrategy[dict[str, Any]]:
    """Numbers of steps, or timesteps or sigmas where the scheduler takes them."""
    choices = [st.fixed_dictionaries({"num_inference_steps": st.integers(4, 5)})]
    custom = {"timesteps": [[900, 500, 100, 20]], "sigmas": [[0.9, 0.5, 0.2]]}
    for name, values in custom.items():
        if takes(scheduler_of(scheduler), name) and not (name == "sigmas" and "Flow" not in scheduler):
            choices.append(st.fixed_dictionaries({name: st.sampled_from(values)}))
    return st.one_of(choices)


def terms(free: bool, scheduler: str) -> SearchStrategy[Any]:
    """Sums of one or two terms that go together, with scales as people use them."""
    scales, interval = st.floats(-1, 6), INTERVALS
    known: list[SearchStrategy[Any]] = [
        st.builds(AutoGuidance, st.just(denoiser), scales, interval),
        st.builds(ClassifierGuidance, st.just(log_prob), st.floats(0, 2), interval),
        st.builds(
            ClassifierGuidance,
            st.just(log_prob),
            st.floats(0, 2),
            interval,
            st.just("score"),
            st.just("denoised"),
        ),
    ]
    if free:
        known += [st.builds(ClassifierFreeGuidance, scales, interval)]
        known += [st.builds(RescaledGuidance, scales, interval, st.floats(0, 1))]
        known += [st.builds(ProjectedGuidance, scales, interval, st.floats(0, 1), st.floats(-0.9, 0.9))]
        known += [st.builds(CFGZeroStar, scales, interval, st.integers(0, 2))]
    if free and scheduler in ("DDIMScheduler", "GuidedDDIMScheduler", "EulerDiscreteScheduler"):
        known += [st.builds(CFGPlusPlus, st.floats(0, 1), interval)]
    return st.lists(st.one_of(known), min_size=1, max_size=2).map(lambda parts: GuidanceSum(tuple(parts)))


@st.composite
def text_to_image(draw: Any) -> dict[str, Any]:
    """Arguments that go together."""
    scheduler = draw(st.sampled_from(NAMES))
    prompts, repeats = draw(st.lists(TEXTS, min_size=1, max_size=2)), draw(st.integers(1, 2))
    images, size = len(prompts) * repeats, draw(st.sampled_from([(None, None), (16, 16), (8, 24)]))
    arguments = {"scheduler": scheduler, "prompt": prompts, "num_images_per_prompt": repeats}
    if draw(st.booleans()):
        embeds = draw(tensors(len(prompts), CONTEXT, WIDTH, dtypes=(torch.float32,)))
        arguments |= {"prompt": None, "prompt_embeds": embeds}
    arguments |= dict(zip(("height", "width"), size, strict=True))
    if draw(st.booleans()):
        height, width = (side or 16 for side in size)
        latents = tensors(images, LATENT[0], height // 2, width // 2, dtypes=(torch.float32,))
        arguments["latents"] = draw(latents)
    arguments |= _guided(draw, scheduler, images, free=True)
    arguments |= draw(
        st.fixed_dictionaries(
            {
                "negative_prompt": st.none() | TEXTS,
                "eta": numbers(0, 1),
                "generator": generators(images),
                "output_type": OUTPUT_TYPES,
                "clip_skip": st.none() | st.integers(0, 1),
                **CALLBACKS,
            }
        )
    )
    return arguments | draw(steps_of(scheduler))


def _guided(
    draw: Any, scheduler: str, images: int, free: bool, name: str = "guidance_scale"
) -> dict[str, Any]:
    kind = draw(st.sampled_from(["none", "scale", "scales", "terms"]))
    if kind == "terms":
        return {"guidance": draw(terms(free, scheduler))}
    arguments: dict[str, Any] = {"guidance_interval": draw(INTERVALS)}
    if kind == "scale":
        arguments[name] = draw(numbers(0, 6))
    if kind == "scales":
        arguments[name] = draw(st.lists(st.floats(0, 6), min_size=images, max_size=images))
    return arguments


OPTIONS = {
    "form": st.none() | st.just("score"),
    "through": st.none() | st.sampled_from(["classifier", "denoised"]),
    "max_gradient_norm": st.none() | st.floats(0.1, 9),
}


@st.composite
def classifier_guided(draw: Any, prompted: bool) -> dict[str, Any]:
    """Arguments that go together, of either pipeline that a network's log p steers."""
    scheduler = draw(st.sampled_from(CLASSIFIER_SCHEDULERS))
    arguments: dict[str, Any] = {"scheduler": scheduler}
    if prompted:
        prompts, repeats = draw(st.lists(TEXTS, min_size=1, max_size=2)), draw(st.integers(1, 2))
        images = len(prompts) * repeats
        contrast = draw(st.none() | st.lists(TEXTS, min_size=1, max_size=2))
        arguments |= {"prompt": prompts, "num_images_per_prompt": repeats, "contrast_prompts": contrast}
    else:
        labels = draw(st.sampled_from([0, "bag", [1], ["boot", 2]]))
        images = draw(st.integers(1, 2)) if not isinstance(labels, list) or len(labels) == 1 else 2
        arguments |= {"class_labels": labels, "batch_size": images}
    guided = _guided(draw, scheduler, images, free=not prompted, name="classifier_scale")
    arguments |= guided if "guidance" in guided else {**guided, **draw(st.fixed_dictionaries(OPTIONS))}
    arguments |= draw(
        st.fixed_dictionaries(
            {
                "eta": numbers(0, 1),
                "generator": generators(images),
                "latents": st.none() | tensors(images, 1, 8, 8, dtypes=(torch.float32,)),
                "output_type": OUTPUT_TYPES,
                **CALLBACKS,
            }
        )
    )
    return arguments | draw(steps_of(scheduler))


@st.composite
def images(draw: Any) -> dict[str, Any]:
    """Arguments that go together, of ImagePipeline."""
    count = draw(st.integers(1, 2))
    return draw(
        st.fixed_dictionaries(
            {
                "scheduler": st.sampled_from(NAMES),
                "batch_size": st.just(count),
                "class_labels": st.integers(0, 2) | st.just([1] * count),
                "generator": generators(count),
                "num_inference_steps": st.integers(4, 5),
                "output_type": OUTPUT_TYPES,
            }
        )
    )


@st.composite
def upsampled(draw: Any) -> dict[str, Any]:
    """Arguments that go together, of UpsamplePipeline."""
    count, sides = draw(st.integers(1, 2)), draw(st.sampled_from([(8, 8), (5, 9)]))
    image = st.integers(0, 99).map(lambda seed: torch.rand(count, 1, *sides, generator=seeded(seed)))
    arguments = draw(
        st.fixed_dictionaries(
            {
                "scheduler": st.sampled_from(NAMES),
                "image": image,
                "augmentation_level": st.none() | st.integers(0, 350),
                "num_inference_steps": st.integers(4, 5),
                "eta": numbers(0, 1),
                "height": st.sampled_from([None, 36, 40]),
                "tile_size": st.sampled_from([None, 32]),
                "generator": generators(count),
                "output_type": OUTPUT_TYPES,
                **CALLBACKS,
            }
        )
    )
    if draw(st.booleans()):
        arguments["guidance"] = draw(terms(False, arguments["scheduler"]))
    return arguments


def seeded(seed: int) -> torch.Generator:
    """A generator of a seed."""
    return torch.Generator().manual_seed(seed)


@st.composite
def cascaded(draw: Any) -> dict[str, Any]:
    """Arguments that go together, of CascadePipeline."""
    prompts, repeats = draw(st.lists(TEXTS, min_size=1, max_size=2)), draw(st.integers(1, 2))
    own = [{"num_inference_steps": 4}, {"augmentation_level": 9, "num_inference_steps": 2}]
    return draw(
        st.fixed_dictionaries(
            {
                "prompt": st.just(prompts),
                "num_inference_steps": st.integers(4, 5),
                "num_images_per_prompt": st.just(repeats),
                "guidance_scale": st.none() | st.floats(0, 6),
                "negative_prompt": st.none() | TEXTS,
                "generator": generators(len(prompts) * repeats),
                "stage_arguments": st.sampled_from([(), [None, own[1]], own]),
                "output_type": OUTPUT_TYPES,
            }
        )
    )


def of(name: str, arguments: SearchStrategy[dict[str, Any]], called: Mapping[str, str]) -> Target:
    """The target of a pipeline."""

    def run(scheduler: Any = None, **given: Any) -> Any:
        return call(name, scheduler, given)

    return Target(
        call=run, arguments=arguments, wrong=WRONG, right=_images, called=called, keep=("scheduler",)
    )


def _images(result: Any, arguments: Mapping[str, Any]) -> None:
    count = arguments.get("batch_size") if isinstance(arguments.get("batch_size"), int) else None
    assert len(result) == (count or len(result)) and len(result) > 0
    if not isinstance(result, list):
        finite(result)


STEERING = {
    "class_labels": "batch_size",
    "batch_size": "class_labels generator latents classifier_scale",
    "prompt": "latents generator classifier_scale num_images_per_prompt images",
    "num_images_per_prompt": "latents generator classifier_scale",
    "guidance_interval": "interval",
    "guidance": "classifier_scale guidance_scale",
    "classifier_scale": "guidance",
    "form": "next",
}
TARGETS: dict[str, Target] = {
    "TextToImagePipeline": of(
        "TextToImagePipeline",
        text_to_image(),
        {
            "prompt": "prompt_embeds latents generator guidance_scale negative_prompt",
            "prompt_embeds": "prompt latents generator",
            "num_images_per_prompt": "latents generator guidance_scale",
            "height": "latents",
            "width": "latents",
            "guidance_interval": "interval",
            "guidance": "guidance_scale",
        },
    ),
    "ImagePipeline": of(
        "ImagePipeline", images(), {"batch_size": "class_labels generator", "class_labels": "batch_size"}
    ),
    "UpsamplePipeline": of(
        "UpsamplePipeline",
        upsampled(),
        {"image": "generator height width latents", "guidance": "guidance_scale classifier_scale"},
    ),
    "CascadePipeline": of(
        "CascadePipeline",
        cascaded(),
        {
            "prompt": "prompt_embeds generator negative_prompt",
            "num_images_per_prompt": "generator guidance_scale",
            "stage_arguments": "num_inference_steps",
        },
    ),
    "ClassifierGuidedPipeline": of("ClassifierGuidedPipeline", classifier_guided(False), STEERING),
    "ClassifierGuidedTextToImagePipeline": of(
        "ClassifierGuidedTextToImagePipeline", classifier_guided(True), STEERING
    ),
    "VAEPipeline": of(
        "VAEPipeline",
        st.fixed_dictionaries(
            {
                "batch_size": st.just(2),
                "generator": generators(2),
                "height": st.sampled_from([None, 8, 16]),
                "width": st.sampled_from([None, 8, 16]),
                "output_type": st.sampled_from(["pil", "np", "pt"]),
            }
        ),
        {"batch_size": "generator"},
    ),
}
