"""Calls whose input is checked: what pipelines check before they compute, labels, prompts, autoencoders."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from properties.harness import Target, finite
from properties.strategies import BATCH, TEXTS, WRONG, generators, integers, numbers, tensors, uniform
from subjects import made
from tiny import CONTEXT, LATENT, WIDTH

from guided_diffusers.core.labels import class_ids
from guided_diffusers.models.labels import class_count, class_names
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.default_guidance import default_guidance_config
from guided_diffusers.pipelines.prompts import Prompts

PROMPTS = TEXTS | st.lists(TEXTS, min_size=1, max_size=3)
SIDE = st.sampled_from([8, 16, 24])
OUTPUT_TYPES = st.sampled_from(inputs.OUTPUT_TYPES)
NAMED = {"id2label": {"0": "boot", "1": "bag", "2": "coat"}, "num_classes": 3}
EMBEDS = tensors(BATCH, CONTEXT, WIDTH)


@cache
def pipeline(name: str) -> Any:
    """A tiny pipeline, made once."""
    return made(name)


def _checked(**given: Any) -> None:
    Prompts(**given, width=WIDTH)


def _encoded(**given: Any) -> Any:
    return pipeline("TextToImagePipeline").encode_prompt(device=torch.device("cpu"), **given)


def _vae(method: str) -> Any:
    def call(**given: Any) -> Any:
        pipe = pipeline("VAEPipeline")
        return getattr(pipe, method)(**given, output_type="pt").images

    return call


def _count(**config: Any) -> Any:
    return class_count({name: value for name, value in config.items() if value is not None})


PICTURES = uniform(1, 1, 16, 16).map(lambda images: 2 * images - 1)

TARGETS: dict[str, Target] = {
    "prompts": Target(
        call=_checked,
        arguments={
            "prompt": PROMPTS.filter(lambda prompt: isinstance(prompt, str)),
            "negative_prompt": st.none() | TEXTS,
        },
        called={"prompt": "negative_prompt"},
    ),
    "embeddings": Target(
        call=_checked,
        arguments={
            "prompt": st.none(),
            "prompt_embeds": EMBEDS,
            "negative_prompt_embeds": st.none() | EMBEDS,
        },
    ),
    "encode_prompt": Target(
        call=_encoded,
        arguments={
            "prompt": PROMPTS,
            "num_images_per_prompt": st.integers(1, 2),
            "do_classifier_free_guidance": st.booleans(),
            "negative_prompt": st.none() | TEXTS,
            "lora_scale": st.none(),
            "clip_skip": st.none() | st.integers(0, 2),
        },
        right=finite,
    ),
    "check_size": Target(
        call=lambda **given: inputs.check_size("height", **given),
        arguments={"value": st.integers(1, 2048).map(lambda value: 8 * value), "multiple": st.just(8)},
        called={"value": "height"},
        keep=("multiple",),
    ),
    "check_generator": Target(
        call=lambda generator: inputs.check_generator(generator, BATCH),
        arguments={"generator": generators(BATCH)},
    ),
    "check_latents": Target(
        call=lambda latents: inputs.check_latents(latents, (BATCH, *LATENT)),
        arguments={"latents": tensors(BATCH, *LATENT)},
    ),
    "class_indices": Target(
        call=lambda labels: class_ids(labels, 3, class_names(NAMED)),
        arguments={
            "labels": st.integers(0, 2)
            | st.sampled_from(["boot", "bag"])
            | st.lists(st.integers(0, 2) | st.just("coat"), min_size=1, max_size=4)
            | integers(3, 4)
        },
        right=finite,
    ),
    "class_count": Target(
        call=_count,
        arguments={"num_classes": st.none() | st.integers(1, 5), "num_labels": st.integers(1, 5)},
        right=finite,
        called={"num_classes": "num_labels", "num_labels": "num_classes"},
    ),
    "class_names": Target(
        call=lambda id2label: class_names({"id2label": id2label}),
        arguments={"id2label": st.none() | st.just(NAMED["id2label"]) | st.just({0: "a"})},
    ),
    "class_ids of images": Target(
        call=lambda class_labels, count: class_ids(class_labels, 3, None, "class_labels", count),
        arguments={"class_labels": st.just(1) | st.just([0, 2]), "count": st.just(BATCH)},
        right=finite,
        keep=("count",),
    ),
    "default_guidance": Target(
        call=lambda default_guidance: default_guidance_config(default_guidance),
        arguments={
            "default_guidance": st.none()
            | numbers(-2, 9)
            | st.just([{"term": "ClassifierFreeGuidance", "scale": 2}])
        },
        called={"default_guidance": "guidance config"},
    ),
    "draws of the prior": Target(
        call=_vae("__call__"),
        arguments={
            "batch_size": st.just(BATCH),
            "generator": generators(BATCH),
            "height": st.none() | SIDE,
            "width": st.none() | SIDE,
        },
        wrong=WRONG,
        right=finite,
        called={"batch_size": "generator"},
    ),
    "given latents": Target(call=_vae("__call__"), arguments={"latents": tensors(1, 2, 4, 4)}, right=finite),
    "reconstruct": Target(call=_vae("reconstruct"), arguments={"images": PICTURES}, right=finite),
    "interpolate": Target(
        call=_vae("interpolate"),
        arguments={
            "a": PICTURES,
            "b": PICTURES,
            "steps": st.integers(2, 4),
            "method": st.sampled_from(["spherical", "linear"]),
        },
        right=finite,
    ),
    "traverse": Target(
        call=_vae("traverse"),
        arguments={
            "dims": st.just((0, 1)) | st.just([1, 0]),
            "steps": st.integers(2, 3),
            "span": numbers(1, 5),
            "latents": st.none() | tensors(1, 2, 8, 8),
        },
        right=finite,
    ),
}
