"""What the scripts of model cards share: options, figures with intervals, training runs in words."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RECIPE = """\
**{name}** saw {images:,} images in {minutes:.0f} minutes{rate}: batches of {batch_size}, AdamW with peak learning rate
{learning_rate:g} ({learning_rate_schedule}), precision {precision}, average of the weights with a half-life of
{half_life:,.0f} images.{metrics}

<details><summary>Its whole configuration</summary>

```json
{config}
```
</details>
"""  # noqa: E501 (a card's lines)


def card_parser(about: str | None, measured_by: str) -> argparse.ArgumentParser:
    """The options of every such script.

    Args:
        about: The script's docstring.
        measured_by: The script that writes the results.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help=f"what {measured_by} wrote")
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


def percent(estimate: Mapping[str, float]) -> str:
    """A fraction in percent with its interval."""
    value, low, high = (f"{100 * estimate[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value}% [{low}, {high}]"


def run_name(run: dict[str, Any]) -> str:
    """The name of a training run's folder."""
    return Path(run["config"]["training"]["output_dir"]).name


def training_command(run: dict[str, Any], script: str = "train_autoencoder") -> str:
    """The command of a run, whose folder has its configuration's name."""
    return f"accelerate launch training/{script}.py --config training/configs/{run_name(run)}.yaml"


def scale_of(row: Mapping[str, Any]) -> float:
    """The scale of a row's one term."""
    return row["guidance"][0]["scale"]


def recipe(name: str, run: dict[str, Any]) -> str:
    """What one training run saw and how, with its whole configuration folded away."""
    training = run["config"]["training"]
    figures = run.get("metrics", {})
    by_level = isinstance(figures, list)  # what `by_noise` says
    metrics = ", ".join(
        f"{key.replace('_', ' ')} {value:.4g}" for key, value in ({} if by_level else figures).items()
    )
    return _RECIPE.format(
        name=name[0].upper() + name[1:],
        images=run["images_seen"],
        minutes=run["seconds"] / 60,
        rate=f", {run['images_seen'] / run['seconds']:.0f} a second" if run["seconds"] else "",
        batch_size=training["batch_size"],
        learning_rate=training["learning_rate"],
        learning_rate_schedule=training["learning_rate_schedule"],
        precision={"no": "float32"}.get(training["mixed_precision"], training["mixed_precision"]),
        half_life=training["ema_half_life_images"],
        metrics=f" On the test images: {metrics}." if metrics else "",
        config=json.dumps(run["config"], indent=2),
    )


def by_noise(run: Mapping[str, Any]) -> str:
    """The accuracy by noise level of a noise-aware network, in words."""
    levels = ", ".join(
        f"{100 * report['accuracy']['value']:.0f}% at {report['noise_to_signal']:.2g}"
        for report in run.get("metrics", [])
    )
    return f"On noised test images it is right, by σ/α: {levels}." if levels else ""
