"""What an autoencoder's features are worth where labels are few: probe, fine-tuning, from scratch.

    python benchmarks/studies/autoencoders/features.py --autoencoder runs/fashion_autoencoder_plain/final
        --data data/fashion --runs runs/features --output model_cards/fashion-28-features.json

The arms are one network, the autoencoder's encoder with a linear head: the head alone is trained, or all of
it from the autoencoder's weights, or all of it from random ones; on the same labels, for the same number of
steps, with a learning rate that depends on the arm alone. A point is one arm, one number of labels and one
seed, which draws the labels, stratified by class, and all else. Points that are in --runs are not run again.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from features_table import table

from guided_diffusers.evaluation.runs import machine
from guided_diffusers.models import ImageClassifier, VariationalAutoencoder
from guided_diffusers.store.files import write_json_atomically
from guided_diffusers.training.data.cache import fingerprint
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.data.images import Pixels
from guided_diffusers.training.data.labels import class_labels
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.trainer import train
from guided_diffusers.training.tasks import classifier as cl

ARMS = {"linear probe": 1e-2, "fine-tuning": 1e-3, "from scratch": 1e-3}
"""The arms, and the learning rate of each."""


def main() -> None:
    """Parses the command line, measures, writes JSON and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of the plain autoencoder")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the points")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 500, 1000], help="for each of --labels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pool-size", type=int, default=4, help="features: the last map averaged to this")
    parser.add_argument("--split", default="test", help="what accuracy is measured on")
    parser.add_argument("--cache", default=None, help="folder for decoded images")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if len(arguments.steps) != len(arguments.labels):
        parser.error(f"--steps has {len(arguments.steps)} numbers for {len(arguments.labels)} of --labels")
    results = measure(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomically(arguments.output, results)
    print(table(results))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every point, and each arm's mean and spread over seeds by number of labels."""
    vae = VariationalAutoencoder.from_pretrained(arguments.autoencoder).requires_grad_(False).eval()
    shared = {
        "autoencoder": fingerprint(vae),
        "batch_size": arguments.batch_size,
        "pool_size": arguments.pool_size,
        "split": arguments.split,
    }
    data, held_out = (read(arguments, vae, split) for split in ("train", arguments.split))
    points = []
    for labels, steps in zip(arguments.labels, arguments.steps, strict=True):
        for seed in arguments.seeds:
            for arm, rate in ARMS.items():
                settings = {"arm": arm, "labels": labels, "seed": seed, "steps": steps, "learning_rate": rate}
                point = measured(arguments.runs, {**settings, **shared}, vae, data, held_out)
                points.append(point)
                report = f"{100 * point['accuracy']:.2f}% after {point['seconds']:.0f} s"
                print(f"{arm}, {labels} labels, seed {seed}: {report}", flush=True)
    return {
        "summary": list(summary(points)),
        "test_images": len(held_out[0].labels),
        "points": points,
        "machine": machine(),
    }


def read(
    arguments: argparse.Namespace, vae: VariationalAutoencoder, split: str
) -> tuple[cl.LabelledImages, list[str] | None]:
    """The images of a split, of the autoencoder's size, and the names of their classes."""
    size, channels = vae.config.sample_size, vae.config.in_channels
    sizes = {"crop": size, "resolution": size, "channels": channels}
    path, cache = str(arguments.data), arguments.cache
    data = ImageTextDataset(DataConfig(path=path, split=split, caption_column=None, cache_dir=cache, **sizes))
    labels, names = class_labels(data, "label")
    return cl.LabelledImages(images=Pixels(data), labels=labels, shape=data.shape), names


def measured(
    runs: Path, settings: dict[str, Any], vae: VariationalAutoencoder, data: Any, held_out: Any
) -> dict[str, Any]:
    """A point, from its folder or trained now.

    Raises:
        ValueError: The folder holds a point of other settings.
    """
    folder = runs / f"{settings['arm'].replace(' ', '-')}-{settings['labels']}-{settings['seed']}"
    path = folder / "point.json"
    if path.is_file():
        point = json.loads(path.read_text())
        differing = sorted(key for key, value in settings.items() if point.get(key) != value)
        if differing:
            raise ValueError(
                f"{path} was measured with another {', '.join(differing)}: give --runs another folder"
            )
        return point
    start = time.perf_counter()
    run(folder, settings, vae, data, held_out)
    [report] = json.loads((folder / "final" / "metrics.json").read_text())
    figures = {
        "accuracy": report["accuracy"]["value"],
        "calibration_error": report["calibration_error"],
        "cross_entropy": report["cross_entropy"]["value"],
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json_atomically(path, {**settings, **figures})
    return {**settings, **figures}


def run(
    folder: Path, settings: dict[str, Any], vae: VariationalAutoencoder, data: Any, held_out: Any
) -> None:
    """Train one point; killed, it goes on from its checkpoint."""
    torch.manual_seed(settings["seed"])
    (images, names), arm = data, settings["arm"]
    classifier = ImageClassifier.from_autoencoder(
        vae,
        copy_weights=arm != "from scratch",
        num_classes=int(images.labels.max()) + 1 if names is None else len(names),
        pool_size=settings["pool_size"],
    )
    total = settings["steps"] * settings["batch_size"]
    training = TrainingConfig(
        output_dir=str(folder),
        seed=settings["seed"],
        num_images=total,
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        warmup_images=total // 20,
        ema_half_life_images=total / 20,
        snapshot_fractions=(),
        checkpoint_every_images=0,
        validate_every_images=0,
        log_every_images=max(1, total // 10),
    )
    objective = cl.ObjectiveConfig(num_labels=settings["labels"], linear_probe=arm == "linear probe")
    validation = cl.ValidationConfig()
    train(cl.ClassifierTask(classifier, images, held_out[0], objective, validation, training), training)


def summary(points: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Mean and standard deviation of the accuracy over seeds, by arm and number of labels."""
    for labels in dict.fromkeys(point["labels"] for point in points):
        for arm in ARMS:
            values = [p["accuracy"] for p in points if (p["labels"], p["arm"]) == (labels, arm)]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            figures = {"mean": statistics.fmean(values), "deviation": deviation, "seeds": len(values)}
            yield {"arm": arm, "labels": labels, **figures}


if __name__ == "__main__":
    main()
