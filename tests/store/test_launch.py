"""With how many threads a process computes where a launcher has set one for it, and what memory it keeps."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from guided_diffusers.store import launch
from guided_diffusers.store.launch import keep_freed_memory, set_by_launcher, share_cores

ONE = {"OMP_NUM_THREADS": "1"}
ACCELERATE = ["python", "/bin/accelerate", "launch", "train.py"]
TORCHRUN = ["python", "-m", "torch.distributed.run", "--nproc_per_node", "2", "train.py"]


@pytest.mark.parametrize(
    ("own", "parents", "words", "theirs"),
    [
        (ONE, {}, ACCELERATE, True),
        (ONE, {}, TORCHRUN, True),
        (ONE, ONE, ACCELERATE, False),
        ({}, {}, TORCHRUN, False),
        (ONE, {}, [*ACCELERATE[:3], "--num_cpu_threads_per_process=1", "train.py"], False),
        (ONE, {}, ["bash", "accelerate.sh"], False),
    ],
)
def test_whose_choice_the_threads_are(own, parents, words, theirs):
    assert set_by_launcher(own, parents, words) == theirs


def test_a_process_computes_with_its_share_of_the_cores_that_a_container_gives(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(launch, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)), raising=False)
    before = torch.get_num_threads()
    try:
        for quota, threads in (("max 100000", 4), ("750000 100000", 2), ("50000 100000", 1)):
            (tmp_path / "cpu.max").write_text(quota)
            torch.set_num_threads(16)
            share_cores()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_accelerate_does_not_leave_a_process_with_one_thread(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script = tmp_path / "script.py"
    script.write_text(
        "import torch; from guided_diffusers.store.launch import _cores, processes\n"
        "processes('cpu'); assert torch.get_num_threads() == _cores()\n"
    )
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet", str(script)]
    subprocess.run(command, check=True, timeout=300)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set is glibc's")
@pytest.mark.skipif(bool(os.environ.get("LD_PRELOAD")), reason="another allocator has its own ways")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """The pages of a tensor of 16 MB, 4,096 of 4 KB, are asked for at the start and not every time."""
    keep_freed_memory()
    asked = [
        resource.getrusage(resource.RUSAGE_SELF).ru_minflt for _ in range(16) if len(torch.ones(4 << 20))
    ]
    assert asked[-1] - asked[7] < 4096
