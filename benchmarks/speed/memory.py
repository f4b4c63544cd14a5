"""Peak memory of TextToImagePipeline, or of StableDiffusionPipeline under `guide`, over the latter's own.

    python benchmarks/speed/memory.py --output memory.json
    python benchmarks/speed/memory.py --size 27M --pixels 64
    python benchmarks/speed/memory.py --whose guided
    python benchmarks/speed/memory.py --whose sequential

Each call is made in a process of its own, over the same random weights, prompts, steps and guidance. Its peak
is what the process has resident at most, less what it had before the call; the median of `--runs`. A decoder
of 256 pixels holds several times what a denoiser of this size does on their latents, and ours gets the
images of a batch one by one. The ratio should be at most 0.8. Under `guide` calls end with the latents, so
that the denoiser is what is measured: at most 1.02, and below 1 where condition and null are asked one by
one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from inference_speed import pipelines
from models import PROMPTS, SIZES, random_components

from guided_diffusers import guide
from guided_diffusers.evaluation.runs import machine, write_json
from guided_diffusers.guidance import ClassifierFreeGuidance

BOUNDS = {"ours": 0.8, "guided": 1.02, "sequential": 1.0}


def main() -> None:
    """Parses the command line, measures, prints and writes; exits with 1 above the bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="27M-256", help="random weights of this size")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5, help="processes a pipeline")
    parser.add_argument("--whose", choices=list(BOUNDS), default="ours")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed where absent")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(peak_of_call(arguments))
        return
    whose, bound = arguments.whose, BOUNDS[arguments.whose]
    peaks = {each: [measured(each) for _ in range(arguments.runs)] for each in (whose, "theirs")}
    ours, theirs = (statistics.median(peaks[each]) for each in (whose, "theirs"))
    ratio = ours / theirs
    print(f"{whose} {ours:.0f} MiB, theirs {theirs:.0f} MiB: {ratio:.3f} (at most {bound})")
    given = {name: value for name, value in vars(arguments).items() if name not in ("output", "one")}
    write_json(arguments.output, {**given, "mebibytes": peaks, "ratio": ratio, "machine": machine("cpu")})
    sys.exit(ratio > bound)


def measured(whose: str) -> float:
    """The peak of a call in a process of its own, in MiB."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", whose]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_of_call(arguments: argparse.Namespace) -> float:
    """What the process has resident at most during a call, less what it had before, in MiB."""
    torch.set_num_threads(1)
    ours, theirs = pipelines(random_components(SIZES[arguments.size]))
    call: dict[str, Any] = {
        "prompt": [PROMPTS[index % len(PROMPTS)] for index in range(arguments.batch_size)],
        "num_inference_steps": arguments.steps,
        "guidance_scale": 4.0,
        "height": arguments.pixels,
        "width": arguments.pixels,
        "output_type": "pt" if arguments.whose == "ours" else "latent",
    }
    pipeline = ours if arguments.one == "ours" else theirs
    if arguments.one in ("guided", "sequential"):
        guide(theirs, ClassifierFreeGuidance(4.0), sequential=arguments.one == "sequential")
    pipeline(**{**call, "prompt": PROMPTS[0]}, generator=torch.Generator().manual_seed(0))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    pipeline(**call, generator=torch.Generator().manual_seed(0))
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """A figure of this process's memory, as Linux has it, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


if __name__ == "__main__":
    main()
