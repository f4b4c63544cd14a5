"""Whatever step of a save fails, or is the last the process lives to see: the next start has all or nothing.

The faults are at the boundary to the system: each rename, flush, removal and file write of a save, in turn,
is not reached (the process dies before it), fails with an error, or is the last thing done (the process dies
after it); of a written file, half is. A process that dies is a real one, a fork.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from training_scripts import same, weights

from guided_diffusers.store.files import REPLACED, TEMPORARY, atomic_folder, recover, write_atomically
from guided_diffusers.training.engine import checkpoint
from guided_diffusers.training.engine.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint

MOMENTS = ("before", "during", "after")
BOUNDARY = ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir")
DIED = 137


class Faults:
    """Counts the calls at the boundary, and strikes at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, moment: str = "", number: int = -1) -> None:
        self.calls: list[str] = []
        self.moment, self.number = moment, number
        for name in BOUNDARY:
            patch.setattr(os, name, self.watched(name, getattr(os, name)))
        saved = self.watched("save_file", safetensors.torch.save_file)
        patch.setattr(checkpoint, "save_file", saved)  # a name of ours for the library's function

    def watched(self, name: str, function: Callable) -> Callable:
        def call(*arguments, **options):
            self.calls.append(name)
            if len(self.calls) - 1 != self.number:
                return function(*arguments, **options)
            if self.moment == "during" and name != "save_file":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if self.moment != "before":
                with suppress(OSError):  # a folder that is there already, say
                    function(*arguments, **options)
            if self.moment == "during":
                os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
            os._exit(DIED)  # the process dies: no exception, no `finally`

        return call


def calls_of(deed: Callable[[], object]) -> list[str]:
    """What a deed that nothing disturbs asks of the system."""
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        deed()
    return faults.calls


def struck(deed: Callable[[], object], moment: str, number: int) -> int:
    """Do it in a process of its own, with a fault; its exit code."""
    child = os.fork()
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                Faults(patch, moment, number)
                deed()
        except OSError:
            os._exit(1)
        finally:  # not even pytest's own code runs in the child
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save(folder: Path, images: int, value: float, keep: int = 1) -> None:
    parts = {f"modules/{name}": {"w": torch.full((2000,), value)} for name in "ab"}
    save_checkpoint(folder, images, parts, {"value": value}, keep)


def value_of(path: Path) -> float:
    """The one number that all of a checkpoint holds; a mix of two has none."""
    tensors, state = load_checkpoint(path)
    assert sorted(tensors) == ["modules/a", "modules/b"]
    assert all(part["w"].eq(state["value"]).all() for part in tensors.values())
    return state["value"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("position", [200, 100], ids=["the next", "the same place"])
def test_a_checkpoint(tmp_path, moment, position):
    def saving(folder: Path) -> Callable[[], None]:
        return lambda: save(folder, position, 2.0)

    save(tmp_path / "old", 100, 1.0)
    shutil.copytree(tmp_path / "old", tmp_path / "counted")
    calls, found = calls_of(saving(tmp_path / "counted")), set()
    assert {"save_file", "fsync", "rename", "rmdir"} <= set(calls)
    for number in range(len(calls)):
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(number))
        code = struck(saving(folder), moment, number)
        assert code in ((0, 1, DIED) if moment == "during" else (DIED,)), calls[number]
        path = latest_checkpoint(folder)
        found.add(value_of(path))
        assert int(path.name) in (100, position)
        assert code != 0 or value_of(path) == 2.0
        save(folder, 300, 3.0)  # the next start trains on, and saves
        assert value_of(latest_checkpoint(folder)) == 3.0
        assert [path.name for path in folder.iterdir()] == [f"{300:012d}"]
    assert found == {1.0, 2.0}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_export(tmp_path, moment):
    def export(folder: Path, word: str) -> None:
        with atomic_folder(folder / "final") as temporary:
            for name in ("one", "part/other"):
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_text(word)

    def whole(folder: Path) -> set[str]:
        files = [path for path in (folder / "final").rglob("*") if path.is_file()]
        assert len(files) == 2
        return {path.read_text() for path in files}

    export(tmp_path / "old", "old")
    shutil.copytree(tmp_path / "old", tmp_path / "counted")
    calls, found = calls_of(lambda: export(tmp_path / "counted", "new")), set()
    assert calls.count("rename") == 2 and calls.count("fsync") == 5
    for number in range(len(calls)):
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(number))
        code = struck(lambda folder=folder: export(folder, "new"), moment, number)
        if code != DIED:  # an error, after which the process lives on
            assert (folder / "final").exists()
        recover(folder / "final")  # what the next start does
        words = whole(folder)
        assert words in ({"old"}, {"new"})
        found |= words
        export(folder, "newer")
        assert whole(folder) == {"newer"} and [path.name for path in folder.iterdir()] == ["final"]
    assert found == {"old", "new"}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_file(tmp_path, moment):
    file = tmp_path / "file"
    file.write_text("old")

    def write() -> None:
        write_atomically(file, lambda at: at.write_text("new"))

    calls, found = calls_of(write), set()
    assert calls == ["fsync", "replace", "unlink"] or calls == ["fsync", "rename", "unlink"]
    for number in range(len(calls)):
        file.write_text("old")
        struck(write, moment, number)
        found.add(file.read_text())
    assert found == {"old", "new"}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_goes_on_bit_equal_from_every_step_of_its_saves(run, tmp_path, moment):
    """The engine itself: checkpoints, a snapshot, exports, config and log; every third step, to be quick."""
    settings = {"num_images": 32, "checkpoint_every_images": 16, "export_every_images": 16}
    settings |= {"snapshot_fractions": (0.5,), "validate_every_images": 0, "log_every_images": 8}
    whole = weights(run("whole", prefetch_batches=0, **settings)[1])
    calls = calls_of(lambda: run("counted", prefetch_batches=0, **settings))
    for number in range(MOMENTS.index(moment), len(calls), 3):
        name = f"{number}"
        struck(lambda name=name: run(name, prefetch_batches=0, **settings), moment, number)
        folder = run(name, **settings)[1]
        assert same(weights(folder), whole), calls[number]
        assert not [path for path in folder.rglob("*") if path.name.startswith((TEMPORARY, REPLACED))]
        shutil.rmtree(folder)
