"""Images a second of training: our script against diffusers' on the same model, data and batch.

    python training/data/fashion_mnist.py --output data/fashion
    python benchmarks/speed/training_speed.py --diffusers CHECKOUT --data data/fashion --output training.json

Both scripts run unmodified, in turn, each in a process of its own (instrumented.py): a frozen text encoder,
a frozen autoencoder, a denoiser trained in float32 with an average of its weights. Ours encodes images and
captions once, before training, and reads them from its cache; diffusers' does so at every step. The seconds
that filling the cache takes are given too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from models import SIZES, random_components
from pairs import PairedTimes, line

from guided_diffusers.evaluation.runs import machine, parameters_millions, write_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OURS, THEIRS = "training/train_text_to_image.py", "examples/text_to_image/train_text_to_image.py"


def main() -> None:
    """Parses the command line, runs both scripts in turn, prints and writes."""
    arguments = _arguments()
    theirs = arguments.diffusers / THEIRS
    if not theirs.is_file():
        raise SystemExit(f"--diffusers {arguments.diffusers} has no {THEIRS}: give a checkout of diffusers")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = replace(SIZES[arguments.size], image_channels=3)  # diffusers' script reads every image as RGB
        components = random_components(size)
        StableDiffusionPipeline(**components, requires_safety_checker=False).save_pretrained(folder / "model")
        commands = {
            "ours": [str(ROOT / OURS), *our_arguments(arguments, folder)],
            "diffusers": [str(theirs), *their_arguments(arguments, folder)],
        }
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "diffusers": []}
        for index in range(arguments.rounds):
            for name in ("ours", "diffusers") if index % 2 == 0 else ("diffusers", "ours"):
                runs[name].append(run(commands[name], folder, f"{name}-{index}", arguments.threads))
    results = {
        "model": arguments.size,
        "unet_parameters_millions": parameters_millions(components["unet"]),
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
        "torchvision": "installed" if find_spec("torchvision") else "stand-in",
        "machine": machine(),
        "cache_seconds": round(sum(run["steps"][0].get("caches", 0) for run in runs["ours"][:1]), 2),
        **{name: summary(its, arguments) for name, its in runs.items()},
        "step_time": step_pairs(runs, arguments.warmup_steps).report(),
    }
    for name in runs:
        print(f"{name}: {results[name]['images_per_second']} images/s; ms a step: {results[name]['step_ms']}")
    print(line("our step / diffusers' step", results["step_time"]))
    write_json(arguments.output, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--diffusers", type=Path, required=True, help="a checkout of diffusers' repository")
    parser.add_argument("--data", type=Path, required=True, help="folder of training/data/fashion_mnist.py")
    parser.add_argument("--size", choices=list(SIZES), default="4M")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=120, help="optimisation steps of each run")
    parser.add_argument("--warmup-steps", type=int, default=20, help="of these, so many do not count")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each script")
    parser.add_argument("--rows", type=int, default=2000, help="rows of the training data that are used")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed where absent")
    return parser.parse_args()


def our_arguments(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The command line of our script; `{output}` is where a run writes."""
    options = {
        "data.path": arguments.data,
        "data.split": f"train[:{arguments.rows}]",
        "data.channels": 3,
        "data.resolution": resolution(arguments.size),
        "autoencoder": folder / "model" / "vae",
        "text.encoder": "frozen",
        "text.pretrained": folder / "model",
        "unet_pretrained": folder / "model" / "unet",
        "scheduler": "DDIMScheduler",
        "scheduler_arguments.prediction_type": "v_prediction",
        "denoising.weighting": "uniform",
        "denoising.caption_dropout": 0,
        "output_dir": "{output}",
        "num_images": arguments.steps * arguments.batch_size,
        "batch_size": arguments.batch_size,
        "learning_rate_schedule": "constant",
        "checkpoint_every_images": 0,
        "validate_every_images": 0,
        "snapshot_fractions": "[]",
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def their_arguments(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The command line of diffusers' script."""
    options = {
        "pretrained_model_name_or_path": folder / "model",
        "dataset_name": arguments.data,
        "cache_dir": folder / "datasets",
        "image_column": "image",
        "caption_column": "text",
        "resolution": resolution(arguments.size),
        "max_train_samples": arguments.rows,
        "seed": 0,
        "train_batch_size": arguments.batch_size,
        "max_train_steps": arguments.steps,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "prediction_type": "v_prediction",
        "checkpointing_steps": 10**9,
        "output_dir": "{output}",
    }
    listed = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [*listed, "--use_ema"]


def resolution(size: str) -> int:
    """Height and width of a size's images in pixels."""
    return SIZES[size].latent_size * 2 ** (len(SIZES[size].vae_widths) - 1)


def run(command: list[str], folder: Path, name: str, threads: int) -> dict[str, Any]:
    """Runs one script in a process of its own, offline; the ends and parts of its steps."""
    timings = folder / f"{name}.json"
    script, *options = [text.replace("{output}", str(folder / name)) for text in command]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    process = subprocess.run(
        [sys.executable, str(HERE / "instrumented.py"), str(timings), script, *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise SystemExit(f"{script} failed:\n{process.stderr[-4000:]}")
    return json.loads(timings.read_text())


def step_seconds(run: dict[str, Any], warmup: int) -> list[float]:
    """Seconds from the end of one step to that of the next, after the warm-up."""
    return [after - before for before, after in zip(run["ends"], run["ends"][1:], strict=False)][warmup:]


def summary(runs: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Images a second, and milliseconds a step by part; what is in no part is "the rest"."""
    seconds = [value for run in runs for value in step_seconds(run, arguments.warmup_steps)]
    steps = [step for run in runs for step in run["steps"][arguments.warmup_steps + 1 :]]
    parts = {
        part: 1e3 * sum(step.get(part, 0) for step in steps) / len(steps)
        for part in dict.fromkeys(part for step in steps for part in step)
    }
    mean = 1e3 * sum(seconds) / len(seconds)
    waited = sum(value for part, value in parts.items() if not part.endswith("(beside)"))
    return {
        "images_per_second": round(1e3 * arguments.batch_size / mean, 1),
        "step_ms": {name: round(value, 2) for name, value in {**parts, "the rest": mean - waited}.items()},
    }


def step_pairs(runs: dict[str, list[dict[str, Any]]], warmup: int) -> PairedTimes:
    """A pair a round: the median step of our run and of diffusers'."""
    medians = {
        name: [statistics.median(step_seconds(run, warmup)) for run in its] for name, its in runs.items()
    }
    return PairedTimes(first_s=medians["ours"], second_s=medians["diffusers"])


if __name__ == "__main__":
    main()
