"""Pixels, cascade, latents: what each way around the U-Net problem costs and gives, a row a checkpoint.

    python benchmarks/studies/cascade/ways.py --data data/noto-128 --judge runs/emoji_judge/final
        --arm pixels=runs/ways_pixels/final cascade=runs/ways_cascade latents=runs/ways_latents/final
        --steps pixels=14 cascade=20 latents=25 --drawn cache/ways --output ways.json
        --figure docs/images/ways.png --grid docs/images/ways-grid.png

Every checkpoint draws the same captions with the same seeds, at its own steps unless --steps says how many of
the base. FLOPs are counted, of all networks; seconds and the peak of memory are of a process of its own a
checkpoint, on an idle machine. The distance is to the other pictures of the split; agreement is the share of
pictures for which the judge, a CLIP trained apart, picks the caption of all that were asked for. Training is
told by the runs' logs: a cascade is the runs of its stages (--training NAME=RUN,RUN).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guided_diffusers.cli.drawing import load_pipeline, prompt_arguments
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation import Reference, extract_features, feature_network
from guided_diffusers.evaluation.bootstrap import kernel_estimate
from guided_diffusers.evaluation.clip import ClipScorer, clip_figures
from guided_diffusers.evaluation.compute import all_components, count_compute, networks_of
from guided_diffusers.evaluation.grid import labelled_grid, to_pictures
from guided_diffusers.evaluation.plotting import new_figure, write_figure
from guided_diffusers.evaluation.runs import machine, parameters_millions, training_run, write_json
from guided_diffusers.models.super_resolution import area_averaged
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset


def main() -> None:
    """Parses the command line, measures each arm in a process of its own, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arm", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--training", nargs="*", default=[], metavar="NAME=RUN,RUN")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--steps", nargs="*", default=[], metavar="NAME=COUNT")
    parser.add_argument("--judge", default=None, help="folder of a CLIP model")
    parser.add_argument("--drawn", type=Path, required=True, help="folder in which the pictures are kept")
    parser.add_argument("--figure", type=Path, default=None, help="PNG: what each way costs and gives")
    parser.add_argument("--grid", type=Path, default=None, help="PNG: pictures of eight captions")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arms, steps = (dict(each.split("=", 1) for each in given) for given in (arguments.arm, arguments.steps))
    if unknown := [*(steps.keys() - arms.keys())]:
        parser.error(f"--steps has {', '.join(unknown)}; allowed: {', '.join(arms)}")
    if arguments.one is not None:
        print("RESULT", json.dumps(measure(arguments.one, arms[arguments.one], arguments)))
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
    if arguments.figure is not None:
        write_figure(figure(results["arms"]), arguments.figure)
    if arguments.grid is not None:
        grid(arms, arguments).save(arguments.grid, optimize=True)


def opened(arguments: argparse.Namespace) -> tuple[ImageTextDataset, list[int], list[int]]:
    """The pictures in colour, the rows whose captions are drawn, and the others, drawn by a fixed seed."""
    config = DataConfig(path=arguments.data, split=arguments.split, resolution=arguments.resolution)
    data = ImageTextDataset(config)
    order = torch.randperm(len(data), generator=generator_for(0, 0)).tolist()
    count = min(arguments.captions, len(data) // 2)
    return data, order[:count], order[count:]


def pixels_of(data: ImageTextDataset, rows: Sequence[int]) -> torch.Tensor:
    """In uint8."""
    return ((data.pixels(rows) + 1) * 127.5).round().to(torch.uint8)


def measure(name: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint's pictures cost, how far from the data they are, whether they are what was asked."""
    torch.set_num_threads(1)
    pipeline = load_pipeline(folder)
    pipeline.set_progress_bar_config(disable=True)
    data, rows, others = opened(arguments)
    captions = [data.first_captions()[row] for row in rows]
    steps = dict(each.split("=", 1) for each in arguments.steps)
    steps = {"num_inference_steps": int(steps[name])} if name in steps else {}

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
    arguments.drawn.mkdir(parents=True, exist_ok=True)
    np.save(arguments.drawn / f"{name}.npy", images)
    reference = Reference(extract_features(network, pixels_of(data, others)))
    parts = all_components(pipeline.components)
    judged = {}
    if arguments.judge is not None:
        judge = ClipScorer.from_pretrained(arguments.judge)
        side = judge.model.config.vision_config.image_size
        small = area_averaged(images.float(), arguments.resolution // side)
        told = clip_figures(judge, small.round().to(torch.uint8), captions, candidates=len(set(captions)))
        judged = {"agreement": told.retrieval.to_dict()}
    return {
        **judged,
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
        "| way | distance | agreement | GFLOPs an image | seconds | peak MB | training images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in arms.items():
        flops = f"{row['compute']['flops'] / 1e9:.1f}"
        speed, agreement = row.get("training_images_per_second"), row.get("agreement")
        lines.append(
            f"| {name} | {row['distance']['value']:.4g} | "
            f"{'' if agreement is None else format(agreement['value'], '.2f')} | {flops} | "
            f"{row['seconds_per_image']:.2f} | {row['peak_memory_mb']:.0f} | "
            f"{'' if speed is None else format(speed, '.1f')} |"
        )
    return "\n".join(lines)


def figure(arms: dict[str, dict[str, Any]]) -> Any:
    """Distance and agreement with their intervals, and seconds an image."""
    shown = new_figure(9, 3)
    names = list(arms)
    panels = {"kernel distance": "distance", "agreement": "agreement"}
    panels = {title: key for title, key in panels.items() if all(key in row for row in arms.values())}
    axes = shown.subplots(1, 1 + len(panels))
    for axis, (title, key) in zip(axes, panels.items(), strict=False):
        found = [arms[name][key] for name in names]
        below, above = ([abs(each["value"] - each[end]) for each in found] for end in ("low", "high"))
        axis.bar(names, [each["value"] for each in found], yerr=[below, above], capsize=3)
        axis.set_title(title)
    axes[-1].bar(names, [arms[name]["seconds_per_image"] for name in names])
    axes[-1].set_title("seconds a picture, one core")
    return shown


def grid(arms: dict[str, str], arguments: argparse.Namespace) -> Any:
    """The first eight captions: a real picture, and one of each way."""
    data, rows, _ = opened(arguments)
    drawn = [torch.from_numpy(np.load(arguments.drawn / f"{name}.npy"))[:8] for name in arms]
    shown = zip(pixels_of(data, rows[:8]), *drawn, strict=True)
    labels = [data.first_captions()[row] for row in rows[:8]]
    pictures = [to_pictures(torch.stack(each)) for each in shown]
    return labelled_grid(pictures, labels, arguments.resolution, ["real", *arms])


if __name__ == "__main__":
    main()
