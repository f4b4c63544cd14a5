"""The scripts of training/ as modules, and their runs in this process."""

from __future__ import annotations

import importlib.util
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from guided_diffusers.training.engine.config import parse_config
from guided_diffusers.training.engine.script import run_task

TRAINING = Path(__file__).parents[2] / "training"


def load(name: str) -> ModuleType:
    """A script as a module, such as train_clip, imported and not run."""
    path = TRAINING / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def config_class(script: ModuleType) -> type:
    return typing.get_type_hints(script.make_task)["config"]


def read(script: ModuleType, *words: Any) -> Any:
    """Its configuration, as a command line says."""
    return parse_config(config_class(script), [str(word) for word in words])


def train(script: ModuleType, *words: Any) -> None:
    """What its command line does."""
    run_task(config_class(script), script.make_task, [str(word) for word in words])


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, by file and name."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{path.relative_to(folder)}/{k}": v for path in files for k, v in load_file(path).items()}
