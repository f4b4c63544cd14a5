"""The processes that `accelerate launch --cpu --num_processes N` is asked for.

accelerate starts several processes on a CPU only under MPI (`--mpirun_hostfile`); without it, one, and says
nothing. `start_processes` notices, and starts N of the same command by torch's own launcher, over gloo. And
under that launcher accelerate takes each process for the only one, unless it is told that this is a CPU: then
each would do the whole work.
"""

from __future__ import annotations

import logging
import os
import sys

import torch
from accelerate import PartialState

logger = logging.getLogger(__name__)

_STARTED = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""What a launcher of several processes sets, one or another of it."""


def on_cpu(device: str | None = None) -> bool:
    """Whether the work is done on the CPU: asked for, or nothing else is there."""
    return device == "cpu" or (device is None and not torch.accelerator.is_available())


def processes(device: str | None = None) -> PartialState:
    """The processes that share the work of a command.

    Args:
        device: where it is done; None for what there is.
    """
    start_processes()
    return PartialState(cpu=on_cpu(device))


def start_processes() -> None:
    """Become the launcher of several processes, where `accelerate launch --cpu` was asked for several.

    Returns where there is nothing to do: one process, or one of several that a launcher has started. Call it
    before the process group is made.
    """
    count = _missing_processes()
    if count > 1:
        logger.warning("accelerate launch --cpu starts one process: torch's launcher starts %d", count)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, "--nproc_per_node", str(count), *sys.orig_argv[1:]]
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, command)


def _missing_processes() -> int:
    """How many processes accelerate was asked for on this CPU and did not start; 0 of none."""
    by_accelerate = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    several = "MASTER_ADDR" in os.environ and not any(name in os.environ for name in _STARTED)
    if not (by_accelerate and several):
        return 0
    import psutil  # as accelerate has it
    from accelerate.commands.launch import launch_command_parser

    words = psutil.Process().parent().cmdline()
    names = [os.path.basename(word) for word in words]
    if "launch" in names and "accelerate" in names[: names.index("launch")]:
        rest = words[names.index("launch") + 1 :]
    elif any(name in ("accelerate-launch", "launch.py") for name in names[:2]):
        rest = words[2:]
    else:
        return 0
    arguments = launch_command_parser().parse_args(rest)
    alone = arguments.mpirun_hostfile is None and (arguments.num_machines or 1) == 1
    return (arguments.num_processes or 0) if alone else 0
