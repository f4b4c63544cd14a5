r"""Agreement with the prompt of images by a denoiser that knows no text, over scales of a noise-aware CLIP.

    python benchmarks/studies/clip_guidance/measure.py --denoiser runs/fashion_latent_unconditional \
        --clip runs/fashion_noise_aware_clip --data data/fashion --judge cache/judge.safetensors \
        --picture docs/images/fashion-32-clip-guided.png --output model_cards/fashion-32-clip-guided.json

Denoiser and CLIP are what `train_unconditional.py` and `train_clip.py` made of the configurations
`fashion_latent_unconditional.yaml` and `fashion_noise_aware_clip.yaml`. Each row is 500 images, 50 a class,
of the class's captions in turn: the judge's agreement with the prompt, sharpness, variance within classes
over that of the real test images, and images a second. With `--contrast` what guides is the log of the
prompt's share among one caption a class, and not the similarity alone. The first step, at a sigma / alpha
above 10,000, is outside `--interval`: x_0 is shifted by sigma^2 / alpha times a gradient, and no network's is
small enough there.
`--picture FILE` draws eight images a class at one scale, which the JSON names with the rule by which it was
chosen; `--save FOLDER` writes the pipeline with that as its default guidance.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from guided_diffusers import (
    ClassifierGuidedTextToImagePipeline,
    GuidedDDIMScheduler,
    GuidedDDPMScheduler,
    ImagePipeline,
    NoiseAwareCLIP,
)
from guided_diffusers.evaluation import ImageSet, load_judge, read_images
from guided_diffusers.evaluation.cards import scale_of
from guided_diffusers.evaluation.grid import labelled_grid, to_pictures
from guided_diffusers.evaluation.labelled import Generated, captions_by_class, generate
from guided_diffusers.evaluation.metrics import ClassMetrics
from guided_diffusers.evaluation.runs import machine, parameters_millions, training_run, write_json
from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.guidance.classifier import FORMS

COLUMNS = 8
RULE = "the smallest scale whose agreement lies within the interval of the highest"
SCHEDULERS = {"ddim": GuidedDDIMScheduler, "ddpm": GuidedDDPMScheduler}


def main() -> None:
    """Parses the command line, measures scale after scale, writes the JSON file."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    pipeline = load(arguments.denoiser / "final", arguments.clip / "final", arguments.scheduler)
    real = read_images(arguments.data / "test.parquet")
    judge, facts = load_judge(arguments.judge)
    metrics = ClassMetrics(judge, real)
    measured = [measure(pipeline, real, metrics, scale, arguments) for scale in arguments.scales]
    scales = [scale_of(row) for row, _ in measured]
    best = gentlest([row["agreement"] for row, _ in measured], scales)
    if arguments.picture is not None:
        draw(measured[scales.index(best)][1], real.names, arguments.picture)
    if arguments.save is not None:
        guidance = measured[scales.index(best)][0]["guidance"]
        parts = pipeline.components
        ClassifierGuidedTextToImagePipeline(**parts, default_guidance=guidance).save_pretrained(
            arguments.save
        )
    chosen = ("images_per_class", "steps", "scheduler", "form", "contrast", "interval", "seed", "batch_size")
    results = {
        "name": arguments.output.stem if arguments.output is not None else "clip-guided",
        "settings": {
            **{name: getattr(arguments, name) for name in chosen},
            "captions_per_class": len(captions_by_class(real)[0]),
        },
        "judge": {**facts, "class": type(judge).__name__},
        "models": {
            "unconditional": model(pipeline.unet, arguments.denoiser),
            "clip": model(pipeline.clip, arguments.clip),
        },
        "machine": machine(),
        "rule": RULE,
        "best_scale": best,
        "rows": [row for row, _ in measured],
    }
    write_json(arguments.output, results)


def gentlest(agreements: Sequence[Mapping[str, float]], scales: Sequence[float]) -> float:
    """The scale by `RULE`."""
    highest = max(agreements, key=lambda agreement: agreement["value"])
    pairs = zip(agreements, scales, strict=True)
    return min(scale for agreement, scale in pairs if agreement["value"] >= highest["low"])


def model(network: torch.nn.Module, run: Path) -> dict[str, Any]:
    """What a trained network is, and how it came about."""
    return {
        "class": type(network).__name__,
        "parameters_millions": parameters_millions(network),
        "training": training_run(run),
    }


def load(denoiser: Path, clip: Path, scheduler: str) -> ClassifierGuidedTextToImagePipeline:
    """The pipeline of a denoiser's ImagePipeline and a CLIP, under a scheduler of the denoiser's process."""
    images = ImagePipeline.from_pretrained(denoiser)
    pipeline = ClassifierGuidedTextToImagePipeline(
        unet=images.unet,
        scheduler=SCHEDULERS[scheduler].from_config(images.scheduler.config),
        clip=NoiseAwareCLIP.from_pretrained(clip),
        tokenizer=CLIPTokenizer.from_pretrained(clip),
        vae=images.vae,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure(
    pipeline: Any, real: ImageSet, metrics: ClassMetrics, scale: float, arguments: argparse.Namespace
) -> tuple[dict[str, Any], Generated]:
    """The row of a scale, and its images."""
    captions = captions_by_class(real)
    contrast = [texts[0] for texts in captions] if arguments.contrast else None
    guidance = ClassifierGuidance(pipeline.log_prob, scale, arguments.interval, form=arguments.form)
    made = generate(
        partial(pipeline, contrast_prompts=contrast),
        captions,
        guidance=guidance,
        images_per_class=arguments.images_per_class,
        num_inference_steps=arguments.steps,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    row = {
        "guidance": guidance.to_config(),
        **metrics.measure(made.images, made.labels),
        "images_per_second": round(len(made.images) / made.seconds, 2),
    }
    agrees = row["agreement"]
    print(
        f"scale {scale:g}: agreement {agrees['value']:.3f} [{agrees['low']:.3f}, {agrees['high']:.3f}], "
        f"sharpness {row['sharpness']['value']:.3f}, variance {row['variance_within_class']:.3f}, "
        f"{row['images_per_second']} images/s",
        flush=True,
    )
    return row, made


def draw(made: Generated, names: Sequence[str], path: Path) -> None:
    """A row a class, each image for another wording of its caption."""
    rows = [to_pictures(made.images[made.labels == label][:COLUMNS]) for label in range(len(names))]
    path.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid(rows, list(names), 64).quantize(64).save(path, optimize=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--denoiser", type=Path, required=True, help="run of train_unconditional.py")
    parser.add_argument("--clip", type=Path, required=True, help="run of train_clip.py --noise_aware")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.parquet")
    parser.add_argument("--judge", type=Path, required=True, help="what fashion_32/judge.py wrote")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed where absent")
    parser.add_argument("--picture", type=Path, default=None, help="PNG of the best scale's images")
    parser.add_argument("--save", type=Path, default=None, help="folder to write the pipeline to")
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--form", choices=FORMS, default="score")
    parser.add_argument("--contrast", action="store_true", help="against one caption of each class")
    parser.add_argument(
        "--interval", type=float, nargs=2, default=[0.0, 100.0], help="low and high sigma / alpha"
    )
    parser.add_argument("--scheduler", choices=sorted(SCHEDULERS), default="ddim")
    parser.add_argument("--images-per-class", type=int, default=50)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
