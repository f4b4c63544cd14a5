"""The training scripts in their main modes, tiny, on the committed slice of real data, as processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from processes import forked
from tiny_data import SLICE, sliced_tars
from training_scripts import ENCODER, TEXT_MODEL
from training_scripts import weights as of_folder

from guided_diffusers import pretrained
from guided_diffusers.evaluation import Judge, JudgeConfig, save_judge
from guided_diffusers.training.engine import sharding

ROOT = Path(__file__).parents[2]
BATCH, STEPS, EVERY = 8, 40, 32
"""Images a step, steps, and images between checkpoints."""

LIBRARIES = ["datasets", "diffusers", "transformers", "guided_diffusers.training.engine.trainer"]

TRAINING = {
    "num_images": BATCH * STEPS,
    "batch_size": BATCH,
    "learning_rate": 2e-4,
    "warmup_images": 64,
    "ema_half_life_images": 40,
    "snapshot_fractions": [0.5],
    "checkpoint_every_images": EVERY,
    "validate_every_images": 0,
    "log_every_images": BATCH,  # every step: how far a run was when it was killed
}
DATA = {
    "path": str(SLICE),
    "resolution": 16,
    "channels": 1,
}
CONDITIONAL = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 2,
}
TEXT = {
    "vocabulary_size": 600,
    "context_length": 8,
    "model": TEXT_MODEL,
}
TEXT_TO_IMAGE = {
    "data": {"resolution": 32},
    "autoencoder": "fashion-32/vae",
    "unet": {**ENCODER, **CONDITIONAL},
    "scheduler_arguments": {"prediction_type": "v_prediction", "clip_sample": False},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder": (
        "train_autoencoder.py",
        {
            "autoencoder": {**ENCODER, "down_block_types": ["DownEncoderBlock2D"] * 2}
            | {"up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 2},
            "loss": {"perceptual_weight": 0.2, "perceptual_network": "JUDGE"}
            | {"adversarial_weight": 0.1, "discriminator_start": 0.0, "adversarial_start": 0.2}
            | {"discriminator_learning_rate": 2e-4},
            "discriminator": {"base_channels": 8},
            "export": {"validation_split": "train", "validation_rows": 8, "statistics_rows": 32},
            "data": {"caption_column": None},
        },
    ),
    "text-to-image": ("train_text_to_image.py", {**TEXT_TO_IMAGE, "text": TEXT}),
    "text-to-image-frozen": (
        "train_text_to_image.py",
        {
            **TEXT_TO_IMAGE,
            "text": {"encoder": "frozen", "pretrained": str(pretrained("fashion-32"))},
            "unet": {**TEXT_TO_IMAGE["unet"], "patch_size": 2},
        },
    ),
    "streamed": (
        "train_text_to_image.py",
        {
            **TEXT_TO_IMAGE,
            "text": TEXT,
            "data": {"path": "TARS", "stream": True, "image_column": "png", "caption_column": "txt"}
            | {"resolution": 32, "shuffle_buffer": 24},
        },
    ),
    "unconditional": (
        "train_unconditional.py",
        {
            "data": {"caption_column": None},
            "unet": {**ENCODER, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2},
            "scheduler": {"num_train_timesteps": 40, "variance_type": "learned_range"},
            "objective": {"loss": "hybrid"},
            "validation": {"images": 0},
        },
    ),
    "upsampler": (
        "train_upsampler.py",
        {
            "data": {"caption_column": None},
            "crop": 8,
            "unet": {**ENCODER, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
            | {"add_attention": False},
            "drawing": {"images": 0},
        },
    ),
    "classifier": (
        "train_classifier.py",
        {
            "classifier": {**ENCODER, "pool_size": 2},
            "objective": {"random_crop": 1, "label_smoothing": 0.1},
            "validation": {"split": "train", "final_images": 16},
        },
    ),
    "classifier-noise-aware": (
        "train_classifier.py",
        {
            "noise_aware": True,
            "classifier": {**ENCODER, "attention_head_dim": 4},
            "validation": {"split": "train", "final_images": 16, "noise_bins": 2},
        },
    ),
    "clip": (
        "train_clip.py",
        {
            "noise_aware": True,
            "projection_dim": 8,
            "text": TEXT,
            "image": {**ENCODER, "attention_head_dim": 4},
            "validation": {"split": "train", "final_images": 16, "noise_bins": 2},
        },
    ),
}
"""By name: the script, and what it is told besides TRAINING and DATA."""


def command(name: str, folder: Path, shared: Path, **training: Any) -> list[str]:
    """A script and its arguments, for a run in `folder`; `shared` keeps what runs have in common."""
    script, tree = CASES[name]
    own = json.dumps(tree).replace("JUDGE", str(_judge(shared)))
    if "TARS" in own:
        own = own.replace("TARS", str(sliced_tars(shared / "tars")))
    tree = json.loads(own)
    tree["data"] = {**DATA, "cache_dir": str(shared / "cache"), **tree.get("data", {})}
    tree["training"] = {**TRAINING, **training, "output_dir": str(folder)}
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    return [str(ROOT / "training" / script), "--config", str(file)]


def _judge(shared: Path) -> Path:
    """A classifier's file for the perceptual distance.

    A wide one: of few features all are near 0 somewhere, where their direction, and so the adaptive weight,
    magnifies rounding ten thousand times.
    """
    path = shared / "judge.safetensors"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            save_judge(Judge(JudgeConfig(image_size=16, width=32)).eval(), path)
    return path


class Run:
    """A training script, of one or several processes, as the leader of a process group of its own.

    Its process is forked from a server that has the libraries imported, which is most of a tiny run's time,
    and executes the script's file as `__main__`.
    """

    def __init__(self, words: list[str], said: Path, processes: int = 1, smallest: int = 1_000_000) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        self.process = context.Process(target=execute, args=(words, str(said), processes, smallest))
        self._said = said
        self.process.start()

    def until(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        """Wait for it while the run lasts."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), "the run ended: " + self.said()[-3000:]
            assert time.monotonic() < end, "it did not come to that"
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        assert self.process.is_alive(), "the run ended before it could be killed: " + self.said()[-3000:]
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join(60)
        assert self.process.exitcode == -signal.SIGKILL

    def finish(self, seconds: float = 600) -> None:
        """Wait for its end, which must be a good one."""
        self.process.join(seconds)
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.exitcode == 0, self.said()[-3000:]

    def said(self) -> str:
        """What it has written to its standard output and error."""
        return self._said.read_text()


def execute(words: list[str], said: str, processes: int, smallest: int) -> None:
    """Be a script, or several processes of it, which write their output and errors to a file."""
    sharding.SMALLEST = smallest  # parameters of a block of a network that is split
    os.setsid()
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = words
    if processes == 1:
        runpy.run_path(words[0], run_name="__main__")
    else:
        codes = forked(processes, lambda rank: runpy.run_path(words[0], run_name="__main__"))
        sys.exit(max(map(abs, codes)))


def start(name: str, folder: Path, shared: Path, processes: int = 1, **training: Any) -> Run:
    """A run in a folder; networks that are split have blocks, small as they are."""
    words = command(name, folder, shared, **training)
    return Run(words, folder.parent / f"{folder.name}.said", processes, smallest=1000)


def records(folder: Path) -> list[dict[str, Any]]:
    """The log's whole lines."""
    file = folder / "log.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint and in the exports, by file and name."""
    last = max((folder / "checkpoints").glob("[0-9]*"))
    parts = (last, folder / "final", folder / "snapshots")
    return {f"{part.name}/{name}": value for part in parts for name, value in of_folder(part).items()}
