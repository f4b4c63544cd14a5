"""A sweep's sampler draws what the pipeline itself draws for a caption or class, whichever pipeline it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_components, tiny_tokenizer
from tiny_classifier import tiny_image_unet, tiny_noise_aware_classifier
from tiny_clip import tiny_clip
from tiny_data import SLICE

from guided_diffusers import (
    ClassifierGuidedPipeline,
    ClassifierGuidedTextToImagePipeline,
    GuidedDDIMScheduler,
    GuidedDDPMScheduler,
    ImagePipeline,
    TextToImagePipeline,
)
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation import ImageSet, read_images
from guided_diffusers.evaluation.sweep import PipelineSampler, Point
from guided_diffusers.schedulers import describe_process

DATA = read_images(SLICE)
INDICES = [1, 4]


def classifier_guided() -> ClassifierGuidedPipeline:
    scheduler = GuidedDDPMScheduler(clip_sample=False)
    classifier = tiny_noise_aware_classifier(scheduler, num_classes=10)
    return ClassifierGuidedPipeline(tiny_image_unet(num_class_embeds=11), scheduler, classifier)


def clip_guided(**unet: Any) -> ClassifierGuidedTextToImagePipeline:
    scheduler = GuidedDDIMScheduler(clip_sample=False)
    clip = tiny_clip(process=describe_process(scheduler))
    return ClassifierGuidedTextToImagePipeline(tiny_image_unet(**unet), scheduler, clip, tiny_tokenizer())


def images_only(**unet: Any) -> ImagePipeline:
    return ImagePipeline(tiny_image_unet(**unet), GuidedDDPMScheduler())


BY_CLASS = {"term": "ClassifierGuidance", "scale": 3.0, "form": "mean_shift", "interval": [0.0, 5.0]}
BY_TEXT = {"term": "ClassifierGuidance", "scale": 3.0}
NULL = {"term": "ClassifierFreeGuidance", "scale": 2.0, "interval": [0.0, 5.0]}
# of each pipeline: its guidance, what it is told, what else its own call has, forwards an image
CASES = {
    "text to image": (
        lambda: TextToImagePipeline(**tiny_components()),
        [NULL],
        {"prompt"},
        {"guidance_scale": 2.0, "guidance_interval": (0.0, 5.0)},
        6,
    ),
    "text to image, unguided": (
        lambda: TextToImagePipeline(**tiny_components()),
        [],
        {"prompt"},
        {"guidance_scale": 1.0},
        3,
    ),
    "classifier": (
        classifier_guided,
        [BY_CLASS, NULL],
        {"class_labels"},
        {"classifier_scale": 3.0, "guidance_scale": 2.0, "form": "mean_shift", "guidance_interval": (0, 5)},
        5,  # the first step is outside the interval
    ),
    "CLIP": (clip_guided, [BY_TEXT], {"prompt"}, {"classifier_scale": 3.0}, 3),
    "CLIP, a denoiser of classes": (
        lambda: clip_guided(num_class_embeds=10),
        [BY_TEXT],
        {"prompt", "class_labels"},
        {"classifier_scale": 3.0},
        3,
    ),
    "classes": (lambda: images_only(num_class_embeds=10), [], {"class_labels"}, {"batch_size": 2}, 3),
    "unconditional": (images_only, [], set(), {"batch_size": 2}, 3),
}


def point_of(guidance: list[dict[str, Any]]) -> Point:
    return Point(arm="a", guidance=guidance, scheduler="own", steps=3, images=6, seed=5)


@pytest.mark.parametrize("case", CASES)
def test_a_point_is_drawn_as_the_pipeline_draws_it(case: str):
    make, guidance, told, call, forwards = CASES[case]
    pipeline = make()
    sampler, point = PipelineSampler(pipeline), point_of(guidance)
    prompts = sampler.prompts(DATA, 6)
    assert (prompts.texts is None, prompts.labels is None) == ("prompt" not in told, not told)
    known = {"prompt": prompts.texts, "class_labels": told and prompts.labels.tolist()}
    images = pipeline(
        **{name: [known[name][index] for index in INDICES] for name in told},
        **call,
        num_inference_steps=3,
        generator=[generator_for(5, index) for index in INDICES],
        output_type="pt",
    ).images
    assert torch.equal(sampler.sample(point, prompts, INDICES), (images * 255).round().to(torch.uint8))
    cost = sampler.compute(point, prompts)
    steered = any(term["term"] == "ClassifierGuidance" for term in guidance)
    assert bool(cost.backwards) == steered and cost.forwards["unet"] == forwards


def test_classes_are_those_of_the_data_in_their_proportions():
    labels = PipelineSampler(classifier_guided()).prompts(DATA, 64).labels
    assert torch.equal(labels, DATA.labels.sort().values)


@pytest.mark.parametrize(
    ("make", "guidance", "message"),
    [
        (images_only, [NULL], "arm a has guidance, and ImagePipeline takes none; allowed: an empty arm"),
        (lambda: TextToImagePipeline(**tiny_components()), [BY_TEXT], "ClassifierGuidance needs log_prob="),
        (classifier_guided, [{"term": "AutoGuidance", "scale": 2.0}], "AutoGuidance needs a weak network"),
    ],
)
def test_guidance_that_a_pipeline_cannot_have_is_named(make: Any, guidance: Any, message: str):
    with pytest.raises(ValueError, match=message):
        PipelineSampler(make()).guidance(point_of(guidance))


@pytest.mark.parametrize(
    ("make", "message"),
    [(clip_guided, "the data have no captions"), (classifier_guided, "and the data have no column `label`")],
)
def test_data_without_what_is_asked_for_are_named(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        PipelineSampler(make()).prompts(ImageSet(images=DATA.images), 2)
