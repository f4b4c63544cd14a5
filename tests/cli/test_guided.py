"""`generate` with checkpoints that a classifier or a CLIP guides, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Run
from diffusers import DDPMPipeline
from PIL import Image
from tiny import tiny_tokenizer
from tiny_classifier import NAMES, tiny_image_unet, tiny_noise_aware_classifier
from tiny_clip import tiny_clip

from guided_diffusers import (
    ClassifierGuidedPipeline,
    ClassifierGuidedTextToImagePipeline,
    GuidedDDIMScheduler,
    ImagePipeline,
)
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.pipelines.record import KEY
from guided_diffusers.schedulers import describe_process

DEFAULT = ClassifierGuidance(None, 3.0, (0.0, 100.0), max_gradient_norm=2.0)


def by_class() -> ClassifierGuidedPipeline:
    scheduler = GuidedDDIMScheduler(clip_sample=False)
    classifier = tiny_noise_aware_classifier(scheduler, id2label=NAMES)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter *= 3  # its gradient is seen
    return ClassifierGuidedPipeline(
        tiny_image_unet(), scheduler, classifier, default_guidance=DEFAULT.to_config()
    )


def by_text() -> ClassifierGuidedTextToImagePipeline:
    scheduler = GuidedDDIMScheduler(clip_sample=False)
    clip = tiny_clip(process=describe_process(scheduler))
    parts = (tiny_image_unet(), scheduler, clip, tiny_tokenizer())
    return ClassifierGuidedTextToImagePipeline(*parts, default_guidance=DEFAULT.to_config())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved pipelines; read them only."""
    folder = tmp_path_factory.mktemp("saved")
    unet, scheduler = tiny_image_unet(), GuidedDDIMScheduler()
    pipelines = {"class": by_class(), "text": by_text(), "image": ImagePipeline(unet, scheduler)}
    pipelines["pixels"] = DDPMPipeline(unet, scheduler)
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(folder / name)
    return {name: folder / name for name in pipelines}


def pixels(path: object) -> np.ndarray:
    return np.asarray(Image.open(str(path)))


def expected(folder: Path, prompts: list[Any], **arguments: Any) -> list[np.ndarray]:
    """What Python draws: two images a prompt, of seed 4."""
    kind = ClassifierGuidedPipeline if folder.name == "class" else ClassifierGuidedTextToImagePipeline
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    texts = [prompt for prompt in prompts for _ in range(2)]
    generators = [generator_for(4, index) for _ in prompts for index in range(2)]
    images = pipeline(texts, generator=generators, num_inference_steps=3, **arguments).images
    return [np.asarray(image) for image in images]


@pytest.mark.parametrize(
    ("kind", "prompts", "options", "arguments"),
    [
        ("class", ["bag", "coat"], (), {}),
        ("class", ["2"], ("--classifier-scale", 5), {"classifier_scale": 5.0}),
        ("text", ["bag", "coat"], (), {}),
        (
            "text",
            ["boot"],
            ("--classifier-scale", 5, "--guidance-interval", 0, 2),
            {"classifier_scale": 5.0, "guidance_interval": (0.0, 2.0)},
        ),
        ("class", ["coat"], ("--guidance-interval", 0.1, 5), {"guidance_interval": (0.1, 5.0)}),
    ],
    ids=str,
)
def test_it_draws_what_python_draws_and_again(run: Run, folders, tmp_path, kind, prompts, options, arguments):
    call = ("--checkpoint", folders[kind], "--num-images", 2, "--steps", 3, "--seed", 4)
    code, output, errors = run("generate", *prompts, *call, *options, "--output", tmp_path)
    assert (code, errors) == (0, "")
    paths = [Path(line) for line in output.split()]
    classes = [int(text) if text.isdecimal() else text for text in prompts]
    wanted = expected(folders[kind], classes, **arguments)
    assert len(paths) == len(wanted) + 1
    for path, image in zip(paths, wanted, strict=False):
        assert np.abs(pixels(path).astype(int) - image).max() <= 1
    unguided = expected(folders[kind], classes, classifier_scale=0.0)
    assert max(np.abs(one.astype(int) - other).max() for one, other in zip(wanted, unguided, strict=True)) > 3
    (term, *_) = json.loads(Image.open(paths[0]).info[KEY])["guidance"]
    assert term["term"] == "ClassifierGuidance" and term["scale"] == arguments.get("classifier_scale", 3.0)
    code, output, errors = run("generate", "--from-image", paths[0], "--output", tmp_path / "again", "--json")
    assert (code, errors) == (0, "") and json.loads(output)["identical"] is True


@pytest.mark.parametrize(
    ("kind", "arguments", "reason"),
    [
        ("class", ("hat",), "'hat', which is no class"),
        ("class", ("7",), "class_labels"),
        ("class", ("bag", "--negative-prompt", "x"), "a ClassifierGuidedPipeline takes no negative prompt"),
        ("class", ("bag", "--classifier-scale", "nan"), "classifier_scale is nan"),
        ("class", ("bag", "--guidance-interval", 3, 1), "interval is"),
        ("class", ("bag", "--guidance-scale", 2), "knows no classes"),
        ("text", ("bag", "--guidance-scale", 2), "is told no text"),
        ("image", ("bag",), "ImagePipeline, which draws for no prompt"),
        ("pixels", ("bag",), "DDPMPipeline, which draws for no prompt"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(run: Run, folders, tmp_path, kind, arguments, reason):
    place = ("--checkpoint", folders[kind], "--output", tmp_path)
    code, output, errors = run("generate", *arguments, *place)
    assert code and not output and reason in errors and errors.count("\n") == 1, errors
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_a_classifier_has_no_scale_for_one(run: Run, tiny_folder: Path):
    code, _, errors = run("generate", "a bag", "--checkpoint", tiny_folder, "--classifier-scale", 2)
    assert code == 2 and "has no classifier that guides" in errors and errors.count("\n") == 1


def test_an_interval_for_plain_guidance(run: Run, tiny_folder: Path, tmp_path: Path):
    options = ("--guidance-scale", 3, "--guidance-interval", 0.5, 2, "--steps", 2, "--output", tmp_path)
    code, output, _ = run("generate", "a bag", "--checkpoint", tiny_folder, *options)
    (term,) = json.loads(Image.open(output.split()[0]).info[KEY])["guidance"]
    assert code == 0 and term == {"term": "ClassifierFreeGuidance", "scale": 3.0, "interval": [0.5, 2.0]}
