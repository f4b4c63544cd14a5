"""Images a second of training: our scripts against those of others on the same model, data and batch.

    python training/data/fashion_mnist.py --output data/fashion
    python benchmarks/speed/training_speed.py diffusers --checkout CHECKOUT --data data/fashion
    python benchmarks/speed/training_speed.py ddp --packages FOLDER --data data/fashion
    python benchmarks/speed/training_speed.py dit --checkout CHECKOUT --packages FOLDER --data data/fashion

`diffusers`: examples/text_to_image/train_text_to_image.py of a checkout, a UNet with a frozen text encoder
and a frozen autoencoder. `ddp`: the Trainer of denoising_diffusion_pytorch, its Unet in pixels. `dit`:
train.py of a checkout of facebookresearch/DiT, its DiT-S/2 by class in the latents of a frozen autoencoder.
Of the latter two their network is trained by ours, under its dotted path in their_networks.py. What theirs
need besides is looked for in FOLDER (`pip install --no-deps --target FOLDER denoising-diffusion-pytorch
einops ema-pytorch pytorch-fid timm torchvision`). Further options are our script's, such as
`--training.compile true`.

Each runs in processes of its own (instrumented.py) with an average of its weights, in float32 on so many
threads, and they work in turns (turns.py). With --defaults each is begun as its own README says: theirs by
`accelerate launch`, python or torchrun with what that chooses, ours by `guided-diffusers train`, which
chooses allocator, threads, precision and layout.

Ours encodes images and captions once, before training, and reads them from its cache; `diffusers` and `dit`
encode them at every step. The seconds that filling the cache takes are given too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from diffusers import StableDiffusionPipeline
from models import SIZES, random_components
from pairs import line
from their_networks import CLASSES, DDP_SIZE, DIT_SIZE
from turns import Script, in_turns, step_pairs, whole_steps

from guided_diffusers.cli.train import launch_command
from guided_diffusers.evaluation.runs import machine, write_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOAL, GOAL_OF_DEFAULTS = 1.25, 3.0
Options = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sides:
    """A comparison: our script with its options, and theirs.

    Attributes:
        script: ours, of training/.
        ours: its options.
        theirs: script and options.
        launcher: modules and options that run theirs as its README does.
    """

    script: str
    ours: Options
    theirs: list[str]
    launcher: tuple[str, ...] = ()


def main() -> None:
    """Parses the command line, runs both in turns, prints and writes."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sides = WHOSE[arguments.whose](arguments, folder)
        commands = {"ours": our_command, arguments.whose: their_command}
        scripts: list[Script] = []
        with in_turns(scripts):
            for name, command in commands.items():
                scripts.append(begun(arguments, folder, name, *command(arguments, sides, folder)))
                scripts[-1].begin(arguments.warmup_steps)
            for index in range(arguments.turns):
                for script in scripts if index % 2 == 0 else reversed(scripts):
                    script.work(arguments.turn_seconds)
        results = measured(arguments, *scripts)
    for script in scripts:
        one = results[script.name]
        print(f"{script.name}: {one['images_per_second']} images/s; ms a step: {one['step_ms']}")
    print(line(f"{arguments.whose}' step / ours", results["speed"]))
    write_json(arguments.output, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("whose", choices=list(WHOSE))
    parser.add_argument("--checkout", type=Path, default=None, help="of diffusers' repository, or DiT's")
    parser.add_argument("--packages", type=Path, default=None, help="a folder of further packages")
    parser.add_argument("--data", type=Path, required=True, help="folder of training/data/fashion_mnist.py")
    parser.add_argument("--size", choices=list(SIZES), default="4M", help="of diffusers' model")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--warmup-steps", type=int, default=10, help="so many do not count")
    parser.add_argument("--turns", type=int, default=20, help="of each")
    parser.add_argument("--turn-seconds", type=float, default=3.0)
    parser.add_argument("--rows", type=int, default=2000, help="rows of the training data that are used")
    parser.add_argument("--threads", type=int, default=None, help="default: 2; with --defaults their own")
    parser.add_argument("--defaults", action="store_true", help="as the READMEs begin them")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed where absent")
    arguments, arguments.ours = parser.parse_known_args()
    arguments.threads = arguments.threads or (None if arguments.defaults else 2)
    return arguments


def measured(arguments: argparse.Namespace, ours: Script, theirs: Script) -> dict[str, Any]:
    """What is written."""
    speed = step_pairs(theirs, ours)
    goal = GOAL_OF_DEFAULTS if arguments.defaults else GOAL
    return {
        "against": arguments.whose,
        "defaults": arguments.defaults,
        "options": arguments.ours,
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
        "machine": machine(),
        "cache_seconds": round(ours.steps()[0]["parts"].get("caches", 0), 2),
        **{script.name: summary(script, arguments.batch_size) for script in (ours, theirs)},
        "speed": speed.report() | {"goal": goal, "reached": speed.ratio().low >= goal},
    }


def summary(script: Script, batch_size: int) -> dict[str, Any]:
    """Images a second, and milliseconds a step by part; what is in no part is "the rest"."""
    steps = script.steps()
    turns = [whole_steps(steps, turn) for turn in script.turns]
    seconds = [value for values, _ in turns for value in values]
    each = [parts for _, parts in turns for parts in parts]
    parts = {
        part: 1e3 * sum(step.get(part, 0) for step in each) / len(each)
        for part in dict.fromkeys(part for step in each for part in step)
    }
    mean = 1e3 * sum(seconds) / len(seconds)
    waited = sum(value for part, value in parts.items() if not part.endswith("(beside)"))
    return {
        "images_per_second": round(1e3 * batch_size / mean, 1),
        "step_ms": {name: round(value, 2) for name, value in {**parts, "the rest": mean - waited}.items()},
    }


def against_diffusers(arguments: argparse.Namespace, folder: Path) -> Sides:
    """Text-to-image with a frozen text encoder."""
    size = replace(SIZES[arguments.size], image_channels=3)  # diffusers' script reads every image as RGB
    components, model = random_components(size), folder / "model"
    StableDiffusionPipeline(**components, requires_safety_checker=False).save_pretrained(model)
    side = size.latent_size * 2 ** (len(size.vae_widths) - 1)
    theirs = {
        "pretrained_model_name_or_path": model,
        "dataset_name": arguments.data,
        "cache_dir": folder / "datasets",
        "image_column": "image",
        "caption_column": "text",
        "resolution": side,
        "max_train_samples": arguments.rows,
        "seed": 0,
        "train_batch_size": arguments.batch_size,
        "max_train_steps": 10**9,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "prediction_type": "v_prediction",
        "checkpointing_steps": 10**9,
        "output_dir": folder / "theirs",
    }
    script = arguments.checkout / "examples" / "text_to_image" / "train_text_to_image.py"
    return Sides(
        script="train_text_to_image.py",
        ours={
            "data.channels": 3,
            "data.resolution": side,
            "autoencoder": model / "vae",
            "text.encoder": "frozen",
            "text.pretrained": model,
            "unet_pretrained": model / "unet",
            "scheduler": "DDIMScheduler",
            "scheduler_arguments.prediction_type": "v_prediction",
            "denoising.weighting": "uniform",
            "denoising.caption_dropout": 0,
        },
        theirs=[str(script), *words(theirs), "--use_ema"],
        launcher=("accelerate.commands.launch",),
    )


def against_ddp(arguments: argparse.Namespace, folder: Path) -> Sides:
    """Unconditional pixels."""
    options = pictures(arguments, folder) | {"resolution": 32}
    return Sides(
        script="train_unconditional.py",
        ours={
            "data.caption_column": "null",
            "data.channels": 1,
            "data.resolution": 32,
            "data.mirror": "true",
            "denoiser.class": "their_networks.DenoisingDiffusionUnet",
            **{f"denoiser.arguments.{name}": value for name, value in DDP_SIZE.items()},
            "scheduler.prediction_type": "v_prediction",
            "scheduler.beta_schedule": "squaredcos_cap_v2",
        },
        theirs=[str(HERE / "their_trainers.py"), "ddp", *words(options)],
    )


def against_dit(arguments: argparse.Namespace, folder: Path) -> Sides:
    """Latents by class, with learned variances."""
    size = replace(SIZES["27M-256"], latent_size=8)
    random_components(size)["vae"].save_pretrained(folder / "vae")
    options = pictures(arguments, folder) | {"resolution": 64, "autoencoder": folder / "vae"}
    return Sides(
        script="train_unconditional.py",
        ours={
            "data.caption_column": "null",
            "data.channels": 3,
            "data.resolution": 64,
            "data.mirror": "true",
            "label_column": "label",
            "autoencoder": folder / "vae",
            "denoiser.class": "their_networks.Dit",
            "denoiser.arguments.size": DIT_SIZE,
            "scheduler.variance_type": "learned_range",
            "scheduler.clip_sample": "false",
            "objective.loss": "hybrid",
            "weight_decay": 0,
        },
        theirs=[str(HERE / "their_trainers.py"), "dit", *words(options)],
        launcher=("torch.distributed.run", "--nnodes=1", "--nproc_per_node=1"),
    )


WHOSE: dict[str, Callable[[argparse.Namespace, Path], Sides]] = {
    "diffusers": against_diffusers,
    "ddp": against_ddp,
    "dit": against_dit,
}


def pictures(arguments: argparse.Namespace, folder: Path) -> Options:
    """The options of their_trainers.py; the data's first rows are written as PNG files, a folder a class."""
    rows = datasets.Dataset.from_parquet(str(arguments.data / "train.parquet"))
    rows = rows.select(range(arguments.rows)).cast_column("image", datasets.Image(decode=False))
    for name in range(CLASSES):
        (folder / "images" / str(name)).mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        path = folder / "images" / str(row["label"]) / f"{number}.png"
        path.write_bytes(row["image"]["bytes"])
    return {
        "images": folder / "images",
        "output": folder / "theirs",
        "batch-size": arguments.batch_size,
    }


def words(options: Options) -> list[str]:
    """Options as a command line's words."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def our_command(arguments: argparse.Namespace, sides: Sides, folder: Path) -> tuple[list[str], Options]:
    """Our script, instrumented, and its environment."""
    options = {
        "data.path": arguments.data,
        "data.split": f"train[:{arguments.rows}]",
        "output_dir": folder / "ours",
        "num_images": 10**9,
        "batch_size": arguments.batch_size,
        "learning_rate_schedule": "constant",
        "checkpoint_every_images": 0,
        "validate_every_images": 0,
        "snapshot_fractions": "[]",
    }
    options |= {} if arguments.defaults else {"mixed_precision": "no"}
    script = [str(folder / "ours.jsonl"), str(ROOT / "training" / sides.script)]
    script += [*words(options | sides.ours), *arguments.ours]
    if arguments.defaults:
        return launch_command(HERE / "instrumented.py", script, None, False)
    return [sys.executable, str(HERE / "instrumented.py"), *script], dict(os.environ)


def their_command(arguments: argparse.Namespace, sides: Sides, folder: Path) -> tuple[list[str], Options]:
    """Their script, instrumented, and its environment."""
    script = [str(HERE / "instrumented.py"), str(folder / f"{arguments.whose}.jsonl"), *sides.theirs]
    launcher = ["-m", *sides.launcher] if arguments.defaults and sides.launcher else []
    return [sys.executable, *launcher, *script], dict(os.environ)


def begun(
    arguments: argparse.Namespace, folder: Path, name: str, command: list[str], environment: Options
) -> Script:
    """The script, begun: offline, with the packages of both sides."""
    places = [ROOT / "src", HERE, arguments.packages, os.environ.get("PYTHONPATH")]
    environment = {
        **environment,
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(str(place) for place in places if place),
        "DIT_CHECKOUT": str(arguments.checkout),
    }
    threads = {} if arguments.threads is None else {"OMP_NUM_THREADS": str(arguments.threads)}
    environment.pop("OMP_NUM_THREADS", None)
    return Script(name, command, environment | threads, folder / f"{name}.jsonl")


if __name__ == "__main__":
    main()
