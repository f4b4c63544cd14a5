"""The processes that `accelerate launch --cpu --num_processes N` is asked for.

accelerate starts several processes on a CPU only under MPI (`--mpirun_hostfile`); without it, one, and says
nothing. `start_processes` notices, and starts N of the same command by torch's own launcher, over gloo. And
under that launcher accelerate takes each process for the only one, unless it is told that this is a CPU: then
each would do the whole work.

Both launchers give a process one thread where nobody said how many, whatever the cores: see `share_cores`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # as accelerate has it
import torch

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger(__name__)

_STARTED = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""What a launcher of several processes sets, one or another of it."""

_LAUNCHERS = {
    "accelerate",
    "accelerate-launch",
    "accelerate.commands.launch",
    "torchrun",
    "torch.distributed.run",
}
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def on_cpu(device: str | None = None) -> bool:
    """Whether the work is done on the CPU: asked for, or nothing else is there."""
    return device == "cpu" or (device is None and not torch.accelerator.is_available())


def processes(device: str | None = None) -> PartialState:
    """The processes that share the work of a command.

    Args:
        device: where it is done; None for what there is.
    """
    from accelerate import PartialState

    start_processes()
    if on_cpu(device):
        share_cores()
    return PartialState(cpu=on_cpu(device))


def start_processes() -> None:
    """Become the launcher of several processes, where `accelerate launch --cpu` was asked for several.

    Returns where there is nothing to do: one process, or one of several that a launcher has started. Call it
    before the process group is made.
    """
    count = _missing_processes()
    if count > 1:
        logger.warning("accelerate launch --cpu starts one process: torch's launcher starts %d", count)
        if _threads_are_the_launchers():
            del os.environ["OMP_NUM_THREADS"]
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [*launcher(count), *sys.orig_argv[1:]])


def launcher(count: int) -> list[str]:
    """The command that starts so many processes of the script behind it on this machine's CPUs."""
    module = "guided_diffusers.store.launch"  # `main`
    return [sys.executable, "-m", module, "--standalone", "--nproc_per_node", str(count)]


def main() -> None:
    """torch's launcher; where a process fails it has that one's exit code, and the processes say why."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as run

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's would warn that it does; see `share_cores`
    try:
        run()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else 128 - code)


def _missing_processes() -> int:
    """How many processes accelerate was asked for on this CPU and did not start; 0 of none."""
    by_accelerate = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    several = "MASTER_ADDR" in os.environ and not any(name in os.environ for name in _STARTED)
    if not (by_accelerate and several):
        return 0
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


def share_cores() -> None:
    """Compute with a thread a core of this process's share, where the user has not said how many.

    `OMP_NUM_THREADS` and accelerate's `--num_cpu_threads_per_process` say it. Never more than the process may
    use: torch counts the machine's cores, and more threads than cores take them from one another.
    """
    before = torch.get_num_threads()
    share = max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if _threads_are_the_launchers():
        torch.set_num_threads(share)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(before, share))
    now = torch.get_num_threads()
    if now != before:
        logger.info("computing with %d threads, not %d (OMP_NUM_THREADS sets it)", now, before)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step, of tensors up to 32 MB.

    Else it gives it back to the system, and the pages that are asked for anew cost up to a tenth of a step on
    a CPU. Another allocator (LD_PRELOAD) is not concerned, nor what the user has set (MALLOC_...).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        for option, value in _MALLOPT.values():
            mallopt(option, value)


_MALLOPT = {"M_MMAP_THRESHOLD": (-3, 32 << 20), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}
"""Options of glibc's malloc.h, by their names there, and what they are set to: the largest that it takes."""


def _threads_are_the_launchers() -> bool:
    parent = psutil.Process().parent()
    try:
        return parent is not None and set_by_launcher(os.environ, parent.environ(), parent.cmdline())
    except psutil.Error:
        return False


def set_by_launcher(own: Mapping[str, str], parents: Mapping[str, str], words: Sequence[str]) -> bool:
    """Whether the number of threads in a process's environment is its launcher's choice, and not the user's.

    Args:
        own: the process's environment.
        parents: that in which its parent was started.
        words: the parent's command line.
    """
    names = {os.path.basename(word) for word in words[:3]}
    said = any(word.startswith("--num_cpu_threads_per_process") for word in words)
    return "OMP_NUM_THREADS" in own.keys() - parents.keys() and bool(names & _LAUNCHERS) and not said


def _cores() -> int:
    """Physical cores that this process may use: of the machine, by its affinity and a container's quota."""
    counts = [psutil.cpu_count(logical=False) or os.cpu_count() or 1]  # not every system tells physical ones
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    quota = _QUOTA.read_text().split() if _QUOTA.is_file() else ["max"]
    if quota[0] != "max":
        counts.append(max(1, int(quota[0]) // int(quota[1])))
    return min(counts)


if __name__ == "__main__":
    main()
