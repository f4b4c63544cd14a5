"""Two runs in one folder: the second is refused in one line; a killed one leaves no lock behind."""

from __future__ import annotations

import os
import signal

import pytest

from guided_diffusers.store.files import DiskFullError
from guided_diffusers.training.engine.lock import FolderInUseError, folder_lock
from guided_diffusers.training.engine.script import run_main


def holder(folder) -> int:
    """A process that holds the folder until it is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with folder_lock(folder):
            os.write(writing, b"held")
            signal.pause()
    os.close(writing)
    assert os.read(reading, 4) == b"held"
    return child


def test_a_second_run_is_refused_and_a_killed_one_leaves_nothing(run, tmp_path):
    child = holder(tmp_path / "run")
    with pytest.raises(FolderInUseError, match=rf"run is in use by another run \(process {child}\): wait"):
        run("run", num_images=8)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    run("run", num_images=8)
    assert (tmp_path / "run" / "final").exists()


def test_a_run_that_fails_lets_go(run, tmp_path):
    with pytest.raises(RuntimeError, match="a crash"):
        run("run", num_images=16, crash_at=8)
    with folder_lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize("error", [FolderInUseError("run is\nin use"), DiskFullError("run", 28)])
def test_a_script_ends_with_one_line(error, capsys):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    told = capsys.readouterr().err
    assert ended.value.code == 1 and told.startswith("error: ") and told.count("\n") == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 / 0)
