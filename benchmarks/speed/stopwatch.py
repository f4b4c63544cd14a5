"""How long the steps of a training script take and on what, a line of JSON a step."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

PARTS: list[tuple[str, str]] = [
    ("caches", "guided_diffusers.training.data.cache:cached_latents"),
    ("caches", "guided_diffusers.training.data.cache:cached_embeddings"),
    ("data", "datasets:Dataset.__getitems__"),
    ("data", "torch.utils.data.dataloader:_BaseDataLoaderIter.__next__"),
    ("data", "guided_diffusers.training.tasks.denoiser:DenoisingTask.batch"),
    ("autoencoder", "diffusers:AutoencoderKL.encode"),
    ("text encoder", "transformers:CLIPTextModel.forward"),
    ("denoiser forward", "diffusers:UNet2DConditionModel.forward"),
    ("denoiser forward", "denoising_diffusion_pytorch:GaussianDiffusion.forward"),
    ("denoiser forward", "torch.nn.parallel:DistributedDataParallel.forward"),
    ("denoiser forward", "guided_diffusers.core.networks:Network.__call__"),
    ("backward", "torch:Tensor.backward"),
    ("gradient clipping", "torch.nn.utils:clip_grad_norm_"),
    ("optimizer", "torch.optim:Adam.step"),  # AdamW's too
    ("average of weights", "diffusers.training_utils:EMAModel.step"),
    ("average of weights", "ema_pytorch:EMA.update"),
    ("average of weights", "guided_diffusers.training.engine.ema:ExponentialMovingAverage.update"),
]
"""What is timed, as part and function; of packages that are not there nothing."""


class Stopwatch:
    """Seconds by part for every step, written as they come; a part inside the same part counts once.

    Parts in another thread are counted apart, for they cost no waiting. A step ends when its optimizer has
    stepped: what follows (an average, say) is of the next.

    Args:
        path: the file of lines `{"end": seconds, "parts": {part: seconds}}`; of one clock on a machine.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)
        self._current: dict[str, float] = defaultdict(float)
        self._inside: Counter[tuple[int, str]] = Counter()

    def timed(self, part: str, function: Any) -> Any:
        """The function, which also adds its time to a part."""

        @functools.wraps(function)
        def timed(*positional: Any, **named: Any) -> Any:
            here = (threading.get_ident(), part)
            self._inside[here] += 1
            start = time.monotonic()
            try:
                return function(*positional, **named)
            finally:
                self._inside[here] -= 1
                if self._inside[here] == 0:
                    beside = threading.current_thread() is not threading.main_thread()
                    self._current[part + " (beside)" if beside else part] += time.monotonic() - start
                    if part == "optimizer":
                        self._end_step()

        return timed

    def wrap_parts(self) -> None:
        """Time all that `PARTS` names, where it is."""
        for part, place in PARTS:
            module, _, name = place.partition(":")
            if importlib.util.find_spec(module.partition(".")[0]) is None:
                continue
            owner, (*inside, last) = importlib.import_module(module), name.split(".")
            for each in inside:
                owner = getattr(owner, each)
            setattr(owner, last, self.timed(part, getattr(owner, last)))

    def _end_step(self) -> None:
        parts, self._current = self._current, defaultdict(float)
        self._file.write(json.dumps({"end": time.monotonic(), "parts": parts}) + "\n")
