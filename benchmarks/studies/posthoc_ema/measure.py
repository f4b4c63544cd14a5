"""Distance over the length of the average, of one run that kept its post-hoc averages.

    python benchmarks/studies/posthoc_ema/measure.py --run runs/fashion_text_to_image \
        --data data/fashion/test.parquet --output benchmarks/studies/posthoc_ema/results.json

For each length and position the averaged pipeline is reconstructed (`guided-diffusers ema`), draws the
captions of the first real images from the same noise, and is measured against real images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusers import TextToImagePipeline
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation import feature_network, read_images
from guided_diffusers.evaluation.bootstrap import kernel_estimate
from guided_diffusers.evaluation.features import extract_features
from guided_diffusers.evaluation.reference import Reference
from guided_diffusers.evaluation.runs import machine, write_json
from guided_diffusers.training.engine.reconstruct import kept_averages, reconstruct

LENGTHS = (0.03, 0.05, 0.07, 0.1, 0.14, 0.19, 0.25)
TOGETHER = 50


def main() -> None:
    """Parses the command line, measures every length, writes the figures and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="trained with training.posthoc_ema")
    parser.add_argument("--data", type=Path, required=True, help="real images with captions")
    parser.add_argument("--images", type=int, default=400, help="drawn for each length")
    parser.add_argument("--real", type=int, default=2000, help="real images they are compared with")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--parts", type=float, nargs="+", default=[0.5, 1.0], help="positions, of the run")
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--output", type=Path, required=True, help="JSON; beside it a picture, .png")
    arguments = parser.parse_args()
    real, network = read_images(arguments.data, limit=arguments.real), feature_network(arguments.features)
    reference = Reference(extract_features(network, real.images))
    captions = [options[0] for options in real.captions[: arguments.images]]
    last = max(position for position, _ in kept_averages(arguments.run))
    rows: list[dict[str, Any]] = []
    for part in arguments.parts:
        for length in LENGTHS:
            with tempfile.TemporaryDirectory() as temporary:
                folder, position = Path(temporary) / "averaged", round(part * last)
                record = reconstruct(arguments.run, length, folder, position)
                drawn = extract_features(network, draw(folder, captions, arguments))
            row = {"images": position, "length": length, "error": record["profile_error"]}
            rows.append({**row, "kernel_distance": kernel_estimate(reference, drawn).to_dict()})
            print(json.dumps(rows[-1]), flush=True)
    places = ("run", "data", "output")
    options = {name: str(value) for name, value in vars(arguments).items() if name not in places}
    write_json(arguments.output, {"options": options, "machine": machine(), "rows": rows})
    plot(rows, arguments.output.with_suffix(".png"))


def draw(folder: Path, captions: list[str], arguments: argparse.Namespace) -> Tensor:
    """Image i for caption i, of noise that depends on i alone; uint8."""
    pipeline = TextToImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for first in range(0, len(captions), TOGETHER):
        texts = captions[first : first + TOGETHER]
        drawn = pipeline(
            texts,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            generator=[generator_for(0, first + number) for number in range(len(texts))],
            output_type="np",
        ).images
        parts.append(torch.from_numpy(np.ascontiguousarray(drawn.transpose(0, 3, 1, 2))))
    return (255 * torch.cat(parts)).round().to(torch.uint8)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The kernel distance over the length, a line a position."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for position in sorted({row["images"] for row in rows}):
        mine = [row for row in rows if row["images"] == position]
        distances = [row["kernel_distance"] for row in mine]
        lengths, values = [row["length"] for row in mine], [each["value"] for each in distances]
        ends = [
            [each["value"] - each["low"] for each in distances],
            [each["high"] - each["value"] for each in distances],
        ]
        axes.errorbar(lengths, values, ends, marker="o", capsize=3, label=f"after {position:,} images")
    axes.set(xlabel="length of the average, sigma_rel", ylabel="kernel distance", xscale="log")
    axes.set_xticks(LENGTHS, [f"{length:g}" for length in LENGTHS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
