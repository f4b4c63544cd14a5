"""Processes of one group on this machine's CPU, forked from this one."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file


def forked(count: int, deed: Callable[[int], object]) -> list[int]:
    """The exit codes of processes that each do a deed, of which they are told their number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "RANK": rank}
                where |= {"LOCAL_RANK": rank, "ACCELERATE_USE_CPU": 1}
                os.environ.update({name: str(value) for name, value in where.items()})
                AcceleratorState._reset_state(reset_partial_state=True)  # this session's
                torch.set_num_threads(1)
                deed(rank)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def by_two(deed: Callable[[int], dict[str, torch.Tensor]], folder: Path) -> list[dict[str, torch.Tensor]]:
    """What a deed gives in each of two processes that share a group."""

    def kept(rank: int) -> None:
        assert PartialState(cpu=True).num_processes == 2
        save_file(deed(rank), folder / f"{rank}.safetensors")

    assert forked(2, kept) == [0, 0]
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]
