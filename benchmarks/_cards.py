"""What the scripts of model cards share: options, the file, figures with intervals, commands of runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def card_parser(about: str | None, measured_by: str) -> argparse.ArgumentParser:
    """The options of every such script.

    Args:
        about: The script's docstring.
        measured_by: The benchmark that writes the results.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help=f"of benchmarks/{measured_by}.py")
    parser.add_argument("--pictures", default="../docs/images", help="their folder, as the card links it")
    parser.add_argument("--output", type=Path, required=True, help="the card to write")
    return parser


def write_card(path: Path, text: str) -> None:
    """Writes the card, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def interval(estimate: Mapping[str, float], show: str = ".3f", unit: float = 1.0) -> str:
    """`value [low, high]`, times a unit."""
    value, low, high = (format(unit * estimate[key], show) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def run_name(run: dict[str, Any]) -> str:
    """The name of a training run's folder."""
    return Path(run["config"]["training"]["output_dir"]).name


def training_command(run: dict[str, Any], script: str = "train_autoencoder") -> str:
    """The command of a run, whose folder has its configuration's name."""
    return f"accelerate launch training/{script}.py --config training/configs/{run_name(run)}.yaml"


def scale_of(row: Mapping[str, Any]) -> float:
    """The scale of a row's one term."""
    return row["guidance"][0]["scale"]
