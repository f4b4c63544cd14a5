"""Runs a training script unmodified and writes how long its steps took and on what.

    python benchmarks/speed/instrumented.py TIMINGS.json SCRIPT.py [the script's own arguments]

The methods in `PARTS` are wrapped before the script starts; a step ends when the optimizer has stepped. Time
in none of them is what is left: the loop, its logging and waiting for data. Where torchvision is not
installed, a script that imports its transforms gets those of torchvision_stand_in.py.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import runpy
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from transformers import CLIPTextModel
from transformers.utils import is_torchvision_available

from guided_diffusers.training.data import cache
from guided_diffusers.training.engine.ema import ExponentialMovingAverage
from guided_diffusers.training.tasks.denoiser import DenoisingTask

PARTS: list[tuple[str, Any, str]] = [
    ("caches", cache, "cached_latents"),
    ("caches", cache, "cached_embeddings"),
    ("data", datasets.Dataset, "__getitems__"),
    ("data", DenoisingTask, "batch"),
    ("autoencoder", AutoencoderKL, "encode"),
    ("text encoder", CLIPTextModel, "forward"),
    ("denoiser forward", UNet2DConditionModel, "forward"),
    ("backward", torch.Tensor, "backward"),
    ("gradient clipping", torch.nn.utils, "clip_grad_norm_"),
    ("optimizer", torch.optim.AdamW, "step"),
    ("average of weights", EMAModel, "step"),
    ("average of weights", ExponentialMovingAverage, "update"),
]


class Stopwatch:
    """Seconds by part for every step; parts in another thread are counted apart, for they cost no waiting."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.ends: list[float] = []
        self._current: dict[str, float] = defaultdict(float)

    def wrap(self, part: str, owner: Any, name: str) -> None:
        """Replaces a function by one that also adds its time to a part."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*positional: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*positional, **named)
            finally:
                beside = threading.current_thread() is not threading.main_thread()
                self._current[part + " (beside)" if beside else part] += time.perf_counter() - start
                if part == "optimizer":
                    self._end_step()

        setattr(owner, name, timed)

    def _end_step(self) -> None:
        self.ends.append(time.perf_counter())
        self.steps.append(dict(self._current))
        self._current.clear()


def main() -> None:
    """Wraps, runs the script, writes the seconds of each step and its parts."""
    timings, script, *arguments = sys.argv[1:]
    stopwatch = Stopwatch()
    for part, owner, name in PARTS:
        stopwatch.wrap(part, owner, name)
    if not is_torchvision_available() and importlib.util.find_spec("torchvision") is None:
        import torchvision_stand_in as stand_in

        sys.modules["torchvision"] = sys.modules["torchvision.transforms"] = stand_in
        stand_in.transforms = stand_in
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        Path(timings).write_text(json.dumps({"ends": stopwatch.ends, "steps": stopwatch.steps}))


if __name__ == "__main__":
    main()
