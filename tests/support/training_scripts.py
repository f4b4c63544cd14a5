"""The scripts of training/ as modules, and their runs in this process."""

from __future__ import annotations

import importlib.util
import json
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from guided_diffusers.training.engine.config import parse_config
from guided_diffusers.training.engine.script import run_task

TRAINING = Path(__file__).parents[2] / "training"
BRIEF = {
    "num_images": 48,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "warmup_images": 0,
    "ema_half_life_images": 8,
    "snapshot_fractions": [],
    "checkpoint_every_images": 16,
    "validate_every_images": 48,
    "log_every_images": 16,
}
"""The part `training` of a run of six steps."""
ENCODER = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
TEXT_MODEL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


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


def of_task(task: Any) -> dict[str, Tensor]:
    """Every tensor of a task's networks, by their names."""
    return {f"{name}.{key}": v for name, m in task.modules.items() for key, v in m.state_dict().items()}


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether there are tensors, of equal names and equal to the bit."""
    return one.keys() == other.keys() != set() and all(torch.equal(one[name], other[name]) for name in one)


def assert_goes_on_to_the_same_bits(run: Callable[..., Path], stop: int, *words: Any) -> tuple[Path, Path]:
    """A command that was stopped and is given again leaves what one leaves that was not; both folders.

    Args:
        run: `(name, *words) -> folder` of the run.
        stop: Images after which it stops.
        words: Of the command line.
    """
    whole = run("whole", *words)
    run("parts", *words, "--stop_at_images", str(stop))
    assert not (whole.parent / "parts" / "final").exists()
    parts = run("parts", *words)
    last = max((whole / "checkpoints").iterdir()).relative_to(whole)
    for part in ("final", last):
        assert same(weights(whole / part), weights(parts / part)), part
    return whole, parts
