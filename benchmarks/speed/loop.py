"""What a call costs beside its network: our calls before it, and a step over StableDiffusionPipeline's.

    python benchmarks/speed/loop.py --output loop.json

The network does nothing, so that a step is what the two pipelines do around it: the time from one of its
calls to the next. Of those the tenth percentile is compared, which other work on the machine hardly moves.
Before the first call of a warm pipeline it counts calls of this package's functions, comprehensions apart,
and how often they change from one file to another. Exits with 1 above a bound.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import guided_diffusers
from guided_diffusers import TextToImagePipeline, pretrained
from guided_diffusers.evaluation.runs import machine, write_json

BOUNDS = {"calls": 90, "changes": 35, "step": 1.5}
PROMPT = "a photo of a coat"
PACKAGE = str(Path(guided_diffusers.__file__).parent)


def main() -> None:
    """Parses the command line, counts, times, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, help="of a call")
    parser.add_argument("--pairs", type=int, default=15, help="calls of either pipeline, in turns")
    parser.add_argument("--output", type=Path, help="JSON to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours, theirs = pipelines()
    calls, changes = calls_before_the_network(ours)
    figures = {"calls": calls, "changes": changes, **times(ours, theirs, options.steps, options.pairs)}
    for name, value in figures.items():
        bound = f", at most {BOUNDS[name]}" if name in BOUNDS else ""
        print(f"{name}: {value:.3g}{bound}")
    if options.output is not None:
        write_json(options.output, {"machine": machine(), **figures})
    sys.exit(any(figures[name] > bound for name, bound in BOUNDS.items()))


def pipelines() -> tuple[TextToImagePipeline, StableDiffusionPipeline]:
    """Ours and diffusers', of the same parts."""
    ours = TextToImagePipeline.from_pretrained(pretrained("fashion-32"))
    ours.scheduler = DDIMScheduler.from_config(ours.scheduler.config, clip_sample=False, steps_offset=1)
    shared = {name: getattr(ours, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    theirs = StableDiffusionPipeline(
        **shared, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    return ours, theirs


class FirstCall(Exception):  # noqa: N818  (a signal)
    """The network was called."""


def calls_before_the_network(pipeline: TextToImagePipeline) -> tuple[int, int]:
    """Calls of our functions, and changes of file, from a warm pipeline's call to its network's."""
    files: list[str] = []

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE) and not frame.f_code.co_name.startswith("<"):
            files.append(name)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise FirstCall

    pipeline(PROMPT, num_inference_steps=4, guidance_scale=2.0)
    forward, pipeline.unet.forward = pipeline.unet.forward, stop
    sys.setprofile(seen)
    try:
        pipeline(PROMPT, num_inference_steps=4, guidance_scale=2.0)
    except FirstCall:
        pass
    finally:
        sys.setprofile(None)
        pipeline.unet.forward = forward
    return len(files), sum(one != other for one, other in itertools.pairwise(["", *files]))


def times(ours: Any, theirs: Any, steps: int, pairs: int) -> dict[str, float]:
    """Microseconds of a step of either, and their ratio."""
    stamps: list[float] = []
    answer = torch.zeros(2, 4, 8, 8)

    def nothing(sample: torch.Tensor, timestep: Any, **condition: Any) -> tuple[torch.Tensor]:
        stamps.append(time.perf_counter())
        return (answer[: len(sample)],)

    ours.unet.forward = nothing
    between: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(pairs):
        for name, pipeline in (("ours", ours), ("theirs", theirs)):
            stamps.clear()
            pipeline(PROMPT, num_inference_steps=steps, guidance_scale=2.0, output_type="latent")
            between[name] += [after - before for before, after in itertools.pairwise(stamps)]
    of = {name: 1e6 * sorted(each)[len(each) // 10] for name, each in between.items()}
    return {
        "step": of["ours"] / of["theirs"],
        "ours_microseconds": of["ours"],
        "theirs_microseconds": of["theirs"],
    }


if __name__ == "__main__":
    main()
