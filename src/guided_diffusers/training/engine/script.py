"""What a training script runs: its configuration is read, its task made and trained."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from guided_diffusers.store.files import full_disk
from guided_diffusers.training.engine.config import parse_config
from guided_diffusers.training.engine.lock import FolderInUseError
from guided_diffusers.training.engine.task import Task
from guided_diffusers.training.engine.trainer import make_accelerator, train

MENDABLE = (ValueError, OSError, ImportError, FloatingPointError, FolderInUseError)
MakeTask = Callable[[Any, torch.device], Task]


def run_script(config: type, make_task: MakeTask) -> None:
    """Be a script: train what the command line says, and end the process as `run_main` does.

    Args:
        config: the dataclass of the script's configuration, whose field `training` is a TrainingConfig.
        make_task: (configuration, device) -> what is trained; every process makes it, and has its share of
            what is computed once and kept on disk.
    """
    run_main(lambda: run_task(config, make_task, sys.argv[1:]))


def run_task(config: type, make_task: MakeTask, argv: Sequence[str]) -> None:
    """Train what a command line says; see `run_script`."""
    parsed = parse_config(config, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator = make_accelerator(parsed.training)
    task = make_task(parsed, accelerator.device)
    train(task, parsed.training, parsed, accelerator)


def run_main(main: Callable[[], None]) -> None:
    """End the process as `main` does: what its user can mend is one line and exit code 1, Ctrl-C is 130.

    Other errors have their traceback, and all have it with GUIDED_DIFFUSERS_DEBUG=1.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("stopped: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        told = isinstance(error, MENDABLE) or full_disk(error) is not None
        if not told or os.environ.get("GUIDED_DIFFUSERS_DEBUG", "0") not in ("", "0"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
