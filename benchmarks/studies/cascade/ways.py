"""Pixels, cascade, latents: what each way around the U-Net problem costs and gives, a row a checkpoint.

    python benchmarks/studies/cascade/ways.py --data data/emoji-128 --captions 100 --output ways.json
        --arm pixels=runs/ways_pixels/final cascade=runs/ways_cascade latents=runs/ways_latents/final

Every checkpoint draws the same captions with the same seeds, at its own steps unless --steps says how many of
the base. FLOPs are counted, of all networks; seconds and the peak of memory are of a process of its own a
checkpoint, on an idle machine. The distance is to held-out pictures. Training is told by the runs' logs: a
cascade is the runs of its stages (--training NAME=RUN,RUN).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from guided_diffusers.cli.drawing import load_pipeline, prompt_arguments
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation import Reference, extract_features, feature_network
from guided_diffusers.evaluation.bootstrap import kernel_estimate
from guided_diffusers.evaluation.compute import all_components, count_compute, networks_of
from guided_diffusers.evaluation.runs import machine, parameters_millions, training_run, write_json
from guided_diffusers.models.latents import image_channels
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset


def main() -> None:
    """Parses the command line, measures each arm in a process of its own, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arm", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--training", nargs="*", default=[], metavar="NAME=RUN,RUN")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arms = dict(each.split("=", 1) for each in arguments.arm)
    if arguments.one is not None:
        print("RESULT", json.dumps(measure(arms[arguments.one], arguments)))
        return
    results: dict[str, Any] = {"machine": machine(), "arms": {}}
    runs = dict(each.split("=", 1) for each in arguments.training)
    for name in arms:
        line = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        said = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
        results["arms"][name] = json.loads(said.rpartition("RESULT ")[2])
        if name in runs:
            logs = [training_run(Path(run)) for run in runs[name].split(",")]
            seconds = sum(log["seconds"] for log in logs)
            results["arms"][name] |= {
                "training_seconds": seconds,
                "training_images_per_second": sum(log["images_seen"] for log in logs) / seconds,
            }
    write_json(arguments.output, results)
    print(table(results["arms"]))


def measure(folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint's pictures cost, and how far they are from the data."""
    torch.set_num_threads(1)
    pipeline = load_pipeline(folder)
    pipeline.set_progress_bar_config(disable=True)
    base = getattr(pipeline, "base", pipeline)
    vae = getattr(base, "vae", None)
    config = DataConfig(
        path=str(arguments.data),
        split=arguments.split,
        resolution=arguments.resolution,
        channels=base.unet.config.in_channels if vae is None else image_channels(vae.config),
    )
    data = ImageTextDataset(config)
    rows = range(min(arguments.captions, len(data) // 2))
    captions = data.captions(rows, rows)
    steps = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}

    def draw(indices: range) -> torch.Tensor:
        told = prompt_arguments(pipeline, [captions[index] for index in indices], None)
        generators = [generator_for(0, index) for index in indices]
        return pipeline(**told, **steps, generator=generators, output_type="pt").images

    compute = count_compute(networks_of(pipeline.components), lambda: draw(range(1)), images=1)
    began, parts = time.perf_counter(), []
    for start in range(0, len(captions), arguments.batch_size):
        parts.append(draw(range(start, min(start + arguments.batch_size, len(captions)))))
    seconds = (time.perf_counter() - began) / len(captions)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    network, images = feature_network(arguments.features), (torch.cat(parts) * 255).round().to(torch.uint8)
    others = ((data.pixels(range(len(rows), len(data))) + 1) * 127.5).round().to(torch.uint8)
    reference = Reference(extract_features(network, others))
    parts = all_components(pipeline.components)
    return {
        "parameters_millions": {
            name: parameters_millions(part)
            for name, part in parts.items()
            if isinstance(part, torch.nn.Module)
        },
        "compute": compute.to_dict(),
        "seconds_per_image": seconds,
        "peak_memory_mb": memory,
        "distance": kernel_estimate(reference, extract_features(network, images)).to_dict(),
    }


def table(arms: dict[str, dict[str, Any]]) -> str:
    """The arms in Markdown."""
    lines = [
        "| way | distance | GFLOPs an image | seconds | peak MB | training images/s |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in arms.items():
        speed = row.get("training_images_per_second")
        lines.append(
            f"| {name} | {row['distance']['value']:.4g} | {row['compute']['flops'] / 1e9:.1f} | "
            f"{row['seconds_per_image']:.2f} | {row['peak_memory_mb']:.0f} | "
            f"{'' if speed is None else format(speed, '.1f')} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
