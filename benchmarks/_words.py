"""Phrases of model cards: figures with intervals, runs and their commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def interval(estimate: dict[str, float], show: str = ".3f", unit: float = 1.0) -> str:
    """`value [low, high]`, times a unit."""
    value, low, high = (format(unit * estimate[key], show) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def run_name(run: dict[str, Any]) -> str:
    """The name of a training run's folder."""
    return Path(run["config"]["training"]["output_dir"]).name


def training_command(run: dict[str, Any], script: str = "train_autoencoder") -> str:
    """The command of a run, whose folder has its configuration's name."""
    return f"accelerate launch training/{script}.py --config training/configs/{run_name(run)}.yaml"
