"""Every training script killed outright (SIGKILL) at random moments ends bit-equal to one that never stopped.

Four kills a script, ten of the autoencoder's, twenty of a streamed one's and of one whose networks are split
over two processes: a random time after the start, then at random steps, and while a checkpoint is being
written.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from trained_scripts import BATCH, EVERY, STEPS, Run, records, start, weights

from guided_diffusers.training.engine.checkpoint import TEMPORARY, latest_checkpoint, load_checkpoint

KILLS = {"autoencoder": 10, "text-to-image": 4, "unconditional": 4, "classifier-noise-aware": 4, "clip": 4}
SPLIT = "unconditional, split"
KILLS[SPLIT] = 20
KILLS |= {"streamed": 20}
pytestmark = pytest.mark.slow


def newest(folder: Path) -> int:
    """The position of the newest checkpoint, all of which can be read; 0 without one."""
    path = latest_checkpoint(folder / "checkpoints")
    if path is None:
        return 0
    tensors, state = load_checkpoint(path)
    assert state["images_seen"] == int(path.name) and state["images_seen"] % EVERY == 0
    assert {name.split("/")[0] for name in tensors} == {"modules", "averaged", "optimizers", "meter"}
    return state["images_seen"]


def written_at(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def halves(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{TEMPORARY}*"))


def begin(name: str, folder: Path, shared: Path) -> Run:
    """A run of one process, or of two with a half each."""
    if name == SPLIT:
        return start("unconditional", folder, shared, processes=2, sharding="parameters")
    return start(name, folder, shared)


class Chain:
    """A run that is killed and resumed, in one folder."""

    def __init__(self, name: str, folder: Path, shared: Path) -> None:
        self.folder = folder
        self.start = partial(begin, name, folder, shared)
        self.lost: list[int] = []
        self.resumed: list[int] = []

    def kill(self, moment: Callable[[], bool] | None, delay: float) -> None:
        """Start, wait for a moment of the training and so much longer, kill; check what is left."""
        before, log = newest(self.folder), self.folder / "log.jsonl"
        opened = written_at(log)
        run = self.start()
        run.until(lambda: written_at(log) != opened)  # written when a run begins or goes on
        if moment is not None:
            run.until(moment)
        time.sleep(delay)
        run.kill()
        self.resumed_at(run, before)
        seen = max((record["images"] for record in records(self.folder)), default=0)
        self.lost.append(seen - newest(self.folder))
        assert 0 <= self.lost[-1] <= 2 * EVERY  # one checkpoint may have been on its way
        assert not (self.folder / "final").exists()

    def finish(self) -> None:
        """The last resume."""
        before = newest(self.folder)
        run = self.start()
        run.finish()
        self.resumed_at(run, before)

    def resumed_at(self, run: Run, newest_before: int) -> None:
        """The run went on from the newest complete checkpoint, and from no other."""
        found = re.search(r"resuming after (\d+) images", run.said())
        assert (int(found[1]) if found else 0) == newest_before
        self.resumed.append(newest_before)


def comparable(folder: Path) -> list[dict]:
    """The log without what a clock says."""
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}
        for record in records(folder)
    ]


@pytest.mark.parametrize(("name", "kills"), KILLS.items())
def test_killed_and_bit_equal(name, kills, unbroken, shared, tmp_path):
    if name == SPLIT:
        whole = tmp_path / "whole"
        begin(name, whole, shared).finish()
    else:
        whole = unbroken(name)
    chance = random.Random(name)
    step = records(whole)[-1]["seconds"] / STEPS
    folder = tmp_path / "killed"
    chain = Chain(name, folder, shared)

    def past(images: int) -> Callable[[], bool]:
        return lambda: any(record["images"] >= images for record in records(folder))

    def writing() -> bool:
        return bool(halves(folder / "checkpoints"))

    chain.kill(None, chance.uniform(0, STEPS * step / kills))
    for part in range(2, kills):
        first, last = (part - 1) * STEPS // kills, part * STEPS // kills
        chain.kill(past(BATCH * chance.randrange(first, last)), 0.0)
    for _ in range(5):
        chain.kill(writing, chance.uniform(0, 0.002))
        if half := halves(folder):
            break
    chain.finish()
    print(f"\n{name}: resumed at {chain.resumed}, lost {chain.lost} images of at most {2 * EVERY}")
    assert half, "no kill fell into the writing of a checkpoint"
    assert not halves(folder)
    one, other = weights(whole), weights(folder)
    assert one.keys() == other.keys() and len(one) > 100
    assert not [key for key in one if not torch.equal(one[key], other[key])]
    assert comparable(whole) == comparable(folder)
