"""Runs a training script unmodified and writes how long its steps took and on what.

    python benchmarks/speed/instrumented.py TIMINGS.jsonl SCRIPT.py [the script's own arguments]

Time in none of stopwatch.py's parts is what is left: the loop, its logging. torchvision from PyPI is built
against a CUDA torch and stops at two operators that are then missing beside a CPU one; they are declared
here, and its transforms, which need none, work.
"""

from __future__ import annotations

import contextlib
import runpy
import sys
from pathlib import Path

import torch
from stopwatch import Stopwatch

BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def main() -> None:
    """Wraps, and runs the script."""
    timings, script, *arguments = sys.argv[1:]
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # a torchvision of this torch has them
            operators.define(name + BOXES)
    stopwatch = Stopwatch(Path(timings))
    stopwatch.wrap_parts()
    instrumented = sys.modules["instrumented"] = sys.modules["__main__"]
    instrumented.stopwatch = stopwatch
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
