"""Bits a dimension of Fashion-MNIST test images under a denoiser of pixels, for every variance it has.

The unbiased estimate on many images, and the full sum over the timesteps on a few; the two are compared on
the same few images, where only their draws differ. One forward serves all variances. Run:

    python benchmarks/studies/likelihood/measure.py --run runs/fashion_unconditional
        --data data/fashion/test.parquet --output model_cards/fashion-28-unconditional.json
        --pictures docs/images
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline
from diffusers.utils import make_image_grid
from torch import Tensor

from guided_diffusers.cli.likelihood import load_denoiser, load_images, variance_types
from guided_diffusers.evaluation.runs import machine, parameters_millions
from guided_diffusers.likelihood.bound import (
    Bound,
    Schedulers,
    estimated_bound,
    full_bound,
    mean_interval,
    plot_terms,
    with_variance,
)

PARTS = 10  # after each part of the images a line says how far it is


def main() -> None:
    """Parses the command line, measures, writes JSON and pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of training/train_unconditional.py")
    parser.add_argument("--data", type=Path, required=True, help="test.parquet")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=50, help="forwards an image")
    parser.add_argument("--full", type=int, default=20, help="images of the full sum")
    parser.add_argument("--steps", type=int, default=None, help="of the chain; training's by default")
    parser.add_argument("--crop", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--samples", type=int, default=64, help="images to draw; 0: none")
    parser.add_argument("--sampling-steps", type=int, default=100)
    parser.add_argument("--pictures", type=Path, default=None, help="folder of the pictures")
    parser.add_argument(
        "--output", type=Path, required=True, help="the JSON file; it also names the pictures"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = measure(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that the card says."""
    folder, name = arguments.run / "final", arguments.output.stem
    unet, scheduler = load_denoiser(str(folder), arguments.steps, "cpu")
    schedulers = {kind: with_variance(scheduler, kind) for kind in variance_types(unet, scheduler)}
    pixels, _ = load_images(arguments.data, max(arguments.images, arguments.full), arguments.crop, unet)
    start = time.perf_counter()
    many, rate = estimates(unet, schedulers, pixels[: arguments.images], arguments)
    few = full_bound(unet, schedulers, pixels[: arguments.full], seed=arguments.seed + 1)
    seconds = time.perf_counter() - start
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        plot_terms(few, arguments.pictures / f"{name}-terms.png")
        if arguments.samples:
            drawn = draw(folder, arguments.samples, arguments.sampling_steps, arguments.seed)
            drawn.save(arguments.pictures / f"{name}-samples.png")
    return {
        "checkpoint": name,
        "parameters_millions": parameters_millions(unet),
        "megabytes": round(sum(p.numel() * p.element_size() for p in unet.parameters()) / 1e6, 2),
        "images": arguments.images,
        "draws": arguments.draws,
        "full_images": arguments.full,
        "timesteps": len(scheduler.timesteps),
        "seconds": round(seconds, 1),
        "forwards_per_second": round(rate, 1),
        "sampling_steps": arguments.sampling_steps,
        "bounds": {kind: compared(many[kind], few[kind]) for kind in schedulers},
        "floor": floors(unet, schedulers, pixels[: min(500, arguments.images)], arguments.seed),
        "machine": machine(),
        "training": training_run(arguments.run),
    }


def estimates(
    unet: Any, schedulers: Schedulers, pixels: Tensor, arguments: argparse.Namespace
) -> tuple[dict[str, list[Bound]], float]:
    """The estimate in parts, printed as they come, and forwards a second."""
    found: dict[str, list[Bound]] = {kind: [] for kind in schedulers}
    start, done = time.perf_counter(), 0
    for part in pixels.split(-(-len(pixels) // PARTS)):
        options = {"seed": arguments.seed, "first_index": done}
        for kind, bound in estimated_bound(unet, schedulers, part, arguments.draws, **options).items():
            found[kind].append(bound)
        done += len(part)
        rate = done * arguments.draws / (time.perf_counter() - start)
        means = {kind: torch.cat([b.total for b in bounds]).mean().item() for kind, bounds in found.items()}
        shown = ", ".join(f"{kind} {mean:.4f}" for kind, mean in means.items())
        print(f"{done} images, {rate:.0f} forwards a second: {shown}", flush=True)
    return found, rate


def compared(parts: list[Bound], full: Bound) -> dict[str, Any]:
    """The estimate, the full sum, and on the latter's images the difference of the two."""
    total, prior, decoder = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("total", "prior", "decoder")
    )
    difference = mean_interval(total[: len(full.total)] - full.total)
    estimate = mean_interval(total)
    of_full = full.estimate()
    return {
        "estimate": estimate.to_dict(),
        "prior": prior.mean().item(),
        "decoder": decoder.mean().item(),
        "full": full.to_dict(),
        "full_minus_estimate_on_all": {
            "value": of_full.value - estimate.value,
            "intervals_overlap": of_full.low <= estimate.high and estimate.low <= of_full.high,
        },
        "estimate_minus_full_on_the_same": {
            **difference.to_dict(),
            "holds_zero": difference.low <= 0 <= difference.high,
        },
    }


def floors(unet: Any, schedulers: Schedulers, pixels: Tensor, seed: int) -> dict[str, float]:
    """By how many bits the least probability of a pixel flatters the decoder: 0 where it is never reached."""
    with_floor, without = (
        estimated_bound(unet, schedulers, pixels, 2, seed=seed, **f) for f in ({}, {"floor": 0})
    )
    return {kind: (without[kind].decoder - with_floor[kind].decoder).mean().item() for kind in schedulers}


def draw(folder: Path, count: int, steps: int, seed: int) -> Any:
    """A square of samples, one generator an image."""
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed + number) for number in range(count)]
    images = pipeline(count, generators, steps).images
    columns = next(c for c in range(max(1, int(count**0.5)), 0, -1) if count % c == 0)
    return make_image_grid(images, rows=count // columns, cols=columns)


def training_run(folder: Path) -> dict[str, Any]:
    """The run's configuration, what its log says at the end, and its held-out figures on the way."""
    records = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    config = json.loads((folder / "config.json").read_text())
    config["training"]["output_dir"] = Path(config["training"]["output_dir"]).name
    config["data"]["path"] = Path(config["data"]["path"]).name
    return {
        "config": config,
        "images_seen": records[-1]["images"],
        "seconds": records[-1]["seconds"],
        "validation": [
            {"images": record["images"], **record["validation"]}
            for record in records
            if "validation" in record
        ],
    }


if __name__ == "__main__":
    main()
