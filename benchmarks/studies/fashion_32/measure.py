r"""Measures a text-to-image checkpoint of Fashion-MNIST over guidance scales and draws its picture.

    python benchmarks/studies/fashion_32/measure.py --checkpoint fashion-32 --data data/fashion \
        --judge cache/judge.safetensors --grid docs/images/fashion-32-grid.png \
        --run autoencoder=runs/fashion_autoencoder --run text-to-image=runs/fashion_text_to_image \
        --output model_cards/fashion-32.json

Each row is 1,000 images, 100 a class: the judge's agreement with the prompt, high-frequency energy over that
of the 10,000 real test images, variance within classes over theirs, and images a second. With
`--gammas default --scheduler dpmsolver++ --steps 15` it tries another sampler at the
checkpoint's own guidance. Rows take minutes each: measure some in another process, one thread a process, and
take them over with `--rows-from OTHER.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from guided_diffusers import TextToImagePipeline
from guided_diffusers.cli.drawing import SCHEDULERS, load_pipeline
from guided_diffusers.evaluation import ImageSet, load_judge, read_images
from guided_diffusers.evaluation.grid import labelled_grid
from guided_diffusers.evaluation.labelled import captions_by_class, default_guidance, generate
from guided_diffusers.evaluation.metrics import ClassMetrics
from guided_diffusers.evaluation.runs import machine, parameters_millions, training_run, write_json
from guided_diffusers.guidance import ClassifierFreeGuidance

GAMMAS = ["0", "1", "1.5", "2", "3", "5", "8"]


def main() -> None:
    """Parses the command line, measures row after row, writes the JSON file and the picture."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    pipeline = load_pipeline(arguments.checkpoint, arguments.scheduler, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    real = read_images(arguments.data / "test.parquet")
    judge, facts = load_judge(arguments.judge)
    metrics = ClassMetrics(judge, real)
    results = {
        **describe(pipeline, arguments, facts),
        "real": metrics.measure(real.images, real.labels),
        "autoencoder": metrics.measure(*reconstructed(pipeline, real)),
        "rows": measured_rows(pipeline, real, metrics, arguments),
    }
    write_json(arguments.output, results)
    if arguments.grid is not None:
        arguments.grid.parent.mkdir(parents=True, exist_ok=True)
        picture(pipeline, real, arguments.steps, arguments.grid_images).save(arguments.grid, optimize=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="a folder or a shipped checkpoint's name")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.parquet")
    parser.add_argument("--judge", type=Path, required=True, help="what judge.py wrote")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed where absent")
    parser.add_argument(
        "--grid", type=Path, default=None, help="PNG of one row a class at the default guidance"
    )
    parser.add_argument("--grid-images", type=int, default=8, help="images a row of the picture")
    parser.add_argument(
        "--run", action="append", default=[], help="NAME=FOLDER of a training run to describe"
    )
    parser.add_argument(
        "--training-from", type=Path, help="earlier results of the same weights, whose runs these describe"
    )
    parser.add_argument("--gammas", nargs="+", default=GAMMAS, help='guidance scales, and "default"')
    parser.add_argument("--rows-from", type=Path, nargs="+", default=[], help="results to take rows from")
    parser.add_argument("--images-per-class", type=int, default=100)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--scheduler", choices=sorted(SCHEDULERS), help="by default the checkpoint's own")
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def measured_rows(
    pipeline: TextToImagePipeline, real: ImageSet, metrics: ClassMetrics, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row a guidance; the checkpoint's default is marked, and added where no plain scale equals it."""
    default = default_guidance(pipeline)
    asked = [
        default if gamma == "default" else ClassifierFreeGuidance(float(gamma)) for gamma in arguments.gammas
    ]
    if default not in asked:
        asked.append(default)
    rows = []
    known = rows_known(arguments)
    for guidance in asked:
        if (row := known.get(json.dumps(guidance.to_config()))) is not None:
            rows.append({**row, "default": guidance == default})
            continue
        made = generate(
            pipeline,
            captions_by_class(real),
            guidance=guidance,
            images_per_class=arguments.images_per_class,
            num_inference_steps=arguments.steps,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
        )
        row = {
            "guidance": guidance.to_config(),
            "default": guidance == default,
            **metrics.measure(made.images, made.labels),
            "images_per_second": round(len(made.images) / made.seconds, 2),
        }
        print(
            f"{row['guidance']}: agreement {row['agreement']['value']:.3f}, sharpness "
            f"{row['sharpness']['value']:.3f}, {row['images_per_second']} images/s",
            flush=True,
        )
        rows.append(row)
    return rows


def rows_known(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rows of earlier results by their guidance.

    Raises:
        ValueError: If they were measured with another checkpoint, seed, number of steps or scheduler.
    """
    rows = {}
    for path in arguments.rows_from:
        earlier = json.loads(path.read_text())
        if earlier["settings"] != settings(arguments):
            raise ValueError(f"--rows-from {path} was measured with {earlier['settings']}: measure it anew")
        rows |= {json.dumps(row["guidance"]): row for row in earlier["rows"]}
    return rows


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the rows of a table must have in common."""
    names = ("images_per_class", "steps", "scheduler", "seed", "threads")
    return {
        "checkpoint": Path(arguments.checkpoint).name,
        **{name: getattr(arguments, name) for name in names},
    }


@torch.no_grad()
def reconstructed(pipeline: TextToImagePipeline, real: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Test images through the autoencoder and back, with their labels: what it costs alone."""
    parts = []
    for images in real.images[:2000].split(250):
        latents = pipeline.vae.encode(images.float() / 127.5 - 1).latent_dist.mode()
        decoded = pipeline.vae.decode(latents).sample.clamp(-1, 1)
        parts.append(((decoded + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(parts), real.labels[:2000]


def picture(pipeline: TextToImagePipeline, real: ImageSet, steps: int, images: int) -> Image.Image:
    """One labelled row a class, drawn at the default guidance from the seeds 0, 1, 2, ..."""
    prompts = [captions[min(1, len(captions) - 1)] for captions in captions_by_class(real)]
    rows = [
        pipeline(
            [prompt] * images,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in range(images)],
        ).images
        for prompt in prompts
    ]
    return labelled_grid(rows, prompts)


def describe(
    pipeline: TextToImagePipeline, arguments: argparse.Namespace, judge: dict[str, Any]
) -> dict[str, Any]:
    """What was measured, with what, and how it was trained."""
    return {
        "checkpoint": Path(arguments.checkpoint).name,
        "parameters_millions": {
            name: parameters_millions(getattr(pipeline, name)) for name in ("unet", "vae", "text_encoder")
        },
        "image_size": pipeline.unet.config.sample_size * pipeline.vae_scale_factor,
        "latent_shape": [pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2],
        "prediction_type": pipeline.scheduler.config.prediction_type,
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": arguments.steps,
        "settings": settings(arguments),
        "default_guidance": pipeline.config.default_guidance,
        "judge": judge,
        "machine": machine(),
        "training": training_runs(arguments),
    }


def training_runs(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is known of the runs that made the checkpoint: of their folders, or of earlier results."""
    if arguments.training_from is not None:
        return json.loads(arguments.training_from.read_text())["training"]
    return {name: training_run(Path(folder)) for name, folder in (run.split("=", 1) for run in arguments.run)}


if __name__ == "__main__":
    main()
