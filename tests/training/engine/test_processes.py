"""Two processes train every script as one does at the same batch: each with whole networks, or with halves.

The curves are equal to 1e-4. Of the weights the mean difference is bounded: Adam divides a gradient by its
own size, so rounding moves those weights whose gradient is rounding alone by as much as the learning rate.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from tiny_data import sliced_tars
from trained_scripts import CASES, STEPS, Run, command, records, start

from guided_diffusers.training.engine.checkpoint import latest_checkpoint, load_checkpoint

ACCELERATE = Path(sys.executable).with_name("accelerate")
pytestmark = pytest.mark.slow


def launch(words: list[str], processes: int = 2) -> str:
    """The output of a command under accelerate."""
    launcher = [str(ACCELERATE), "launch", "--num_processes", str(processes), "--cpu"]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("sharding", ["none", "parameters"])
@pytest.mark.parametrize("name", CASES)
def test_two_processes_follow_the_loss_curve_of_one(name, sharding, unbroken, shared, tmp_path):
    whole, folder = unbroken(name), tmp_path / "two"
    words = command(name, folder, shared, sharding=sharding)
    if sharding == "none":
        assert "torch's launcher starts 2" in launch(words)
    else:
        Run(words, tmp_path / "said", processes=2, smallest=1000).finish()
    one, two = records(whole), records(folder)
    losses = sorted(one[-1]["learning_rate"])
    worst = max(abs(a[loss] - b[loss]) for a, b in zip(one, two, strict=True) for loss in losses if loss in a)
    theirs = load_checkpoint(latest_checkpoint(folder / "checkpoints"))[0]
    difference = torch.cat(
        [
            (value - theirs[part][name]).abs().flatten()
            for part, values in load_checkpoint(latest_checkpoint(whole / "checkpoints"))[0].items()
            for name, value in values.items()
            if part.startswith("modules/") and value.is_floating_point()
        ]
    )
    print(f"\n{name}: losses to {worst:.1e}, weights {difference.mean():.1e}, at most {difference.max():.1e}")
    assert len(one) == STEPS and worst < 1e-4
    assert difference.mean() < 1e-5
    files = [{file.relative_to(run) for file in (run / "final").rglob("*")} for run in (whole, folder)]
    assert files[0] == files[1]


@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
@pytest.mark.parametrize("sharding", ["none", "parameters"])
def test_when_a_process_is_gone_the_others_end_with_one_sentence(sharding, ends, shared, tmp_path):
    """And the same command goes on from the checkpoint that the sentence names."""
    folder, settings = tmp_path / "run", {"sharding": sharding, "timeout_minutes": 0.25}
    run = start("unconditional", folder, shared, processes=2, **settings)
    run.until(lambda: any((folder / "checkpoints").glob("[0-9]*")))
    second = psutil.Process(run.process.pid).children()[1]
    second.send_signal(ends)
    if ends == signal.SIGSTOP:
        run.until(lambda: "error: " in run.said())
        second.kill()
    run.process.join(120)
    assert run.process.exitcode not in (0, None)
    (line,) = [line for line in run.said().splitlines() if line.startswith("error: ")]
    assert re.search(
        r"another process of this run has ended or does not answer \(.*\); "
        rf"the checkpoint {folder}/checkpoints/\d{{12}} is whole: the same command goes on from it",
        line,
    )
    assert "Traceback" not in run.said()
    start("unconditional", folder, shared, processes=2, **settings).finish()
    assert records(folder)[-1]["images"] == STEPS * 8


@pytest.mark.parametrize("sharding", ["none", "parameters"])
def test_when_one_reads_a_tar_that_is_cut_short_all_end_with_a_sentence(sharding, tmp_path, monkeypatch):
    pattern = sliced_tars(tmp_path / "tars")
    monkeypatch.setitem(CASES["streamed"][1]["data"], "path", str(pattern))
    monkeypatch.setitem(CASES["streamed"][1]["data"], "on_corrupt", "raise")
    tar = pattern.with_name("train-02.tar")
    os.truncate(tar, tar.stat().st_size // 3)  # before its picture that is none
    run = start("streamed", tmp_path / "run", tmp_path, processes=2, sharding=sharding)
    run.process.join(120)
    lines = [line for line in run.said().splitlines() if line.startswith("error: ")]
    assert run.process.exitcode == 1 and "Traceback" not in run.said()
    assert len(lines) == 2 and any(f"{tar} breaks off" in line for line in lines), lines
