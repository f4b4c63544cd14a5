"""`accelerate launch --num_processes 2 --cpu` trains every script as one process does at the same batch.

The curves are equal to 1e-4. Of the weights the mean difference is bounded: Adam divides a gradient by its
own size, so rounding moves those weights whose gradient is rounding alone by as much as the learning rate.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trained_scripts import CASES, STEPS, command, records, weights

ACCELERATE = Path(sys.executable).with_name("accelerate")
pytestmark = pytest.mark.slow


def launch(words: list[str], processes: int = 2) -> str:
    """The output of a command under accelerate."""
    launcher = [str(ACCELERATE), "launch", "--num_processes", str(processes), "--cpu"]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", CASES)
def test_two_processes_follow_the_loss_curve_of_one(name, unbroken, shared, tmp_path):
    whole, folder = unbroken(name), tmp_path / "two"
    assert "torch's launcher starts 2" in launch(command(name, folder, shared))
    one, two = records(whole), records(folder)
    losses = sorted(one[-1]["learning_rate"])
    worst = max(abs(a[loss] - b[loss]) for a, b in zip(one, two, strict=True) for loss in losses if loss in a)
    difference = torch.cat(
        [
            (value - weights(folder)[key]).abs().flatten()
            for key, value in weights(whole).items()
            if "modules/" in key and value.is_floating_point()
        ]
    )
    print(f"\n{name}: losses to {worst:.1e}, weights {difference.mean():.1e}, at most {difference.max():.1e}")
    assert len(one) == STEPS and worst < 1e-4
    assert difference.mean() < 1e-5
