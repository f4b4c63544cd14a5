"""Training on a stream over training in memory: images a second in pairs, and the peak memory by rows.

    python benchmarks/speed/streaming.py --output streaming.json

Tars of generated pictures of 64 pixels, a JPEG, a caption and a class a row, 250 rows each. A denoiser by
class is trained on them as `training/train_unconditional.py` does, in pixels. Speed: in one process both
ways train the same network by turns, so many steps each; the ratio of each pair, of wall and of processor
seconds. Memory: what a process that trains on 1,000, 10,000 and 100,000 rows has resident at most. Exits with
1 where either is off by more than 5%.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import io
import itertools
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from memory import resident
from pairs import PairedTimes, line
from PIL import Image

from guided_diffusers.evaluation.runs import machine, parameters_millions, write_json
from guided_diffusers.training.engine.batches import Batches
from guided_diffusers.training.engine.config import build_config
from guided_diffusers.training.engine.trainer import make_accelerator

BOUND = 1.05
SIDE, EACH, DRAWN = 64, 250, 1000


def main() -> None:
    """Parses the command line, measures, prints and writes; exits with 1 above the bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=None, help="of the tars, which stay there")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 96], help="of its levels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12, help="of each turn")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--memory-images", type=int, default=2_000, help="trained on for memory")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed where absent")
    parser.add_argument("--one", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one is not None:
        print(json.dumps(peak(options, options.one)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        for rows in options.rows:
            write_tars(options.folder / str(rows), rows)
        peaks = {rows: measured(options, rows) for rows in options.rows}
        print(", ".join(f"{rows:,} rows: {found['mebibytes']:.0f} MiB" for rows, found in peaks.items()))
        speeds = speed(options, min(options.rows))
    spread = max(each["mebibytes"] for each in peaks.values()) / min(
        each["mebibytes"] for each in peaks.values()
    )
    for name in ("wall", "processor"):
        print(line(f"{name} seconds of a step, streamed / in memory", speeds[name]))
    print(f"peak memory, most / least: {spread:.3f}, bound {BOUND}")
    given = {name: value for name, value in vars(options).items() if name not in ("output", "one", "folder")}
    figures = {**given, "peaks": peaks, "spread": spread, **speeds, "machine": machine("cpu")}
    write_json(options.output, figures)
    sys.exit(spread > BOUND or speeds["processor"]["ratio"]["value"] > BOUND)


def write_tars(folder: Path, rows: int) -> None:
    """Tars of so many rows, once; of a thousand pictures, which return."""
    if (folder / "whole").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (DRAWN, 8, 8, 3), dtype=np.uint8)
    pictures = [jpeg(each) for each in noise[: min(rows, DRAWN)]]
    for first in range(0, rows, EACH):
        with tarfile.open(folder / f"train-{first // EACH:05d}.tar", "w") as tar:
            for row in range(first, min(first + EACH, rows)):
                cells = {"jpg": pictures[row % DRAWN], "txt": f"picture {row}".encode()}
                for column, data in {**cells, "cls": str(row % 10).encode()}.items():
                    member = tarfile.TarInfo(f"{row:07d}.{column}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / "whole").touch()


def jpeg(pixels: np.ndarray) -> bytes:
    """A smooth picture."""
    buffer = io.BytesIO()
    large = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    large.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def training_script() -> ModuleType:
    """train_unconditional.py as a module."""
    path = Path(__file__).resolve().parents[2] / "training" / "train_unconditional.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def task_of(options: argparse.Namespace, rows: int, folder: Path, stream: bool) -> tuple[Any, Any]:
    """The task and its batches, streamed or in memory."""
    levels = len(options.channels)
    tree = {
        "training": {"output_dir": str(folder / "run"), "batch_size": options.batch_size},
        "data": {
            "path": f"{options.folder / str(rows)}/train-*.tar",
            "image_column": "jpg",
            "caption_column": None,
            "resolution": SIDE,
            "num_classes": 10,
            "stream": stream,
            "cache_dir": str(folder / "cache"),
        },
        "label_column": "cls",
        "unet": {
            "block_out_channels": options.channels,
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D"] * levels,
            "up_block_types": ["UpBlock2D"] * levels,
            "num_class_embeds": 10,
        },
    }
    script = training_script()
    config = build_config(script.UnconditionalConfig, tree)
    accelerator = make_accelerator(config.training)
    task = script.make_task(config, accelerator.device)
    return task, Batches(task, config.training, accelerator)


def steps(task: Any, batches: Any, stop: int) -> Any:
    """Trains, a step at each turn."""
    optimizer = task.optimizers["denoiser"]
    for (part,) in batches.between(0, stop):
        _, loss, _ = next(iter(task.losses(part)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def measured(options: argparse.Namespace, rows: int) -> dict[str, float]:
    """`peak` in a process of its own."""
    words = [word for word in sys.argv[1:] if not word.startswith("--folder=")]
    command = [sys.executable, __file__, *words, "--folder", str(options.folder), "--one", str(rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak(options: argparse.Namespace, rows: int) -> dict[str, float]:
    """What the process has resident at most while it trains, in MiB, and a tenth of the way before."""
    with tempfile.TemporaryDirectory() as folder:
        task, batches = task_of(options, rows, Path(folder), stream=True)
        stop = options.memory_images // options.batch_size * options.batch_size
        early = 0.0
        for step, _ in enumerate(steps(task, batches, stop), 1):
            if step * options.batch_size >= stop // 10 and not early:
                early = resident("VmHWM")
        return {"mebibytes": resident("VmHWM"), "early_mebibytes": early}


def speed(options: argparse.Namespace, rows: int) -> dict[str, Any]:
    """Seconds of a step, streamed and in memory, in pairs."""
    with tempfile.TemporaryDirectory() as folder:
        made = [task_of(options, rows, Path(folder), stream) for stream in (True, False)]
        ways = [steps(*each, stop=10**9 * options.batch_size) for each in made]
        for way in ways:
            list(itertools.islice(way, 4))
        times: dict[str, tuple[list[float], list[float]]] = {"wall": ([], []), "processor": ([], [])}
        gc.collect()
        for index in range(options.pairs):
            for which in (0, 1) if index % 2 == 0 else (1, 0):
                wall, processor = time.perf_counter(), time.process_time()
                list(itertools.islice(ways[which], options.steps))
                times["wall"][which].append((time.perf_counter() - wall) / options.steps)
                times["processor"][which].append((time.process_time() - processor) / options.steps)
        paired = {name: PairedTimes(first_s=each[0], second_s=each[1]) for name, each in times.items()}
        per_second = [options.batch_size / statistics.median(each) for each in times["wall"]]
        return {
            **{name: each.report() for name, each in paired.items()},
            "images_per_second": dict(zip(("streamed", "in_memory"), per_second, strict=True)),
            "parameters_millions": parameters_millions(made[0][0].unet),
        }


if __name__ == "__main__":
    main()
