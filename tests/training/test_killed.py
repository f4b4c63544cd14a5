"""A training script killed outright (SIGKILL) at random moments ends bit-equal to one that never stopped."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from guided_diffusers.training.checkpoint import TEMPORARY, latest_checkpoint, load_checkpoint

ROOT = Path(__file__).parents[2]
KILLS, STEPS, BATCH, EVERY = 10, 320, 8, 16
OPTIONS = {
    "data.path": ROOT / "tests" / "data" / "fashion_slice.parquet",
    "export.validation_split": "train",  # the slice has one split
    "export.validation_rows": 16,
    "autoencoder.block_out_channels": [4, 4, 8],
    "autoencoder.norm_num_groups": 4,
    "training.num_images": STEPS * BATCH,
    "training.batch_size": BATCH,
    "training.warmup_images": 64,
    "training.checkpoint_every_images": EVERY,  # so that many moments fall into the writing of one
    "training.validate_every_images": 0,
    "training.log_every_images": 400,
}
pytestmark = pytest.mark.slow


def start(folder: Path, cache: Path) -> subprocess.Popen:
    options = {**OPTIONS, "data.cache_dir": cache, "training.output_dir": folder}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    script, config = ROOT / "training" / "train_autoencoder.py", "training/configs/fashion_vae_vector.yaml"
    command = [sys.executable, str(script), "--config", str(ROOT / config), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors


def written_at(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def kill(process: subprocess.Popen, folder: Path, seconds: float) -> str:
    """Kills it so many seconds after its training has begun; what it had said until then."""
    config = folder / "config.json"  # written when a run begins or goes on
    before = written_at(config)
    while written_at(config) == before:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    time.sleep(seconds)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGKILL
    return errors


def newest(folder: Path) -> int:
    """The position of the newest checkpoint, all of which can be read; 0 without one."""
    path = latest_checkpoint(folder / "checkpoints")
    if path is None:
        return 0
    tensors, state = load_checkpoint(path)
    assert state["images_seen"] == int(path.name) and state["images_seen"] % EVERY == 0
    assert {"modules/autoencoder", "averaged/autoencoder", "optimizers/autoencoder"} <= set(tensors)
    return state["images_seen"]


def test_killed_ten_times_and_bit_equal(tmp_path: Path):
    whole, killed, cache = tmp_path / "whole", tmp_path / "killed", tmp_path / "cache"
    finish(start(whole, cache))
    moments, halves, resumed_at = random.Random(0), 0, []
    for _ in range(KILLS):
        before = newest(killed)
        errors = kill(start(killed, cache), killed, moments.uniform(0.0, 1.2))
        found = re.search(r"resuming after (\d+) images", errors)
        assert (int(found[1]) if found else 0) == before  # the newest complete one, and no other
        resumed_at.append(before)
        halves += bool(list((killed / "checkpoints").glob(f"{TEMPORARY}*")))
        assert not (killed / "final").exists()
    finish(start(killed, cache))
    print(f"resumed at {resumed_at[1:]}; {halves} kills left half a checkpoint")
    assert len(set(resumed_at)) > KILLS // 2  # training went on in between
    assert not list((killed / "checkpoints").glob(f"{TEMPORARY}*"))
    end = f"checkpoints/{STEPS * BATCH:012d}"
    files = [f"{end}/{kind}/autoencoder.safetensors" for kind in ("modules", "averaged", "optimizers")]
    for file in (*files, "final/diffusion_pytorch_model.safetensors"):
        one, other = load_file(whole / file), load_file(killed / file)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), file
