"""What tests share: no network, and a text-to-image pipeline that is real and tiny."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

# Frozen when huggingface_hub is first imported, so before that.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _pipeline(**arguments: Any) -> Any:
    from tiny import tiny_components

    from guided_diffusers import TextToImagePipeline

    pipeline = TextToImagePipeline(**tiny_components(), requires_safety_checker=False, **arguments)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def tiny_pipeline() -> Any:
    """A TextToImagePipeline of the tiny components, its own in each test; guidance 2 by default."""
    return _pipeline(default_guidance=2.0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny pipeline was saved; read it only."""
    folder = tmp_path_factory.mktemp("tiny")
    _pipeline(default_guidance=2.0).save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process, see `command_line.Run`."""
    from command_line import runner

    return runner(monkeypatch, capsys)


@pytest.fixture
def load_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of a study, of benchmarks/speed or of docs/lecture, as in a process of its own.

    `load("studies/likelihood/card")`: the folder's other modules are imported by their bare names, which
    other folders have too, so those are forgotten first. Scripts set torch's number of threads.
    """
    import torch

    def load(place: str) -> ModuleType:
        path = ROOT / (place if place.startswith("docs/") else f"benchmarks/{place}")
        for name, module in list(sys.modules.items()):
            file = Path(getattr(module, "__file__", None) or "/")
            script = any(file.is_relative_to(ROOT / folder) for folder in ("benchmarks", "docs"))
            if script and file.parent != path.parent:
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(str(path.parent))
        return importlib.import_module(path.name)

    threads = torch.get_num_threads()
    yield load
    torch.set_num_threads(threads)


@pytest.fixture
def run_script(load_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs such a module's `main`, `run("studies/likelihood/card", "--output", path)`; gives the module."""

    def run(place: str, *options: object) -> ModuleType:
        monkeypatch.setattr(sys, "argv", [place, *map(str, options)])
        script = load_script(place)
        script.main()
        return script

    return run


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what runs of the training scripts have in common: caches of the data, a judge."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def unbroken(shared: Path) -> Callable[[str], Path]:
    """The folder of a training script's run in one process that nothing disturbed; each is run once."""
    from trained_scripts import start

    def folder_of(name: str) -> Path:
        folder = shared / name
        if not folder.exists():
            start(name, folder, shared).finish()
        return folder

    return folder_of
