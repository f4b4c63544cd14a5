"""Training runs in results and cards: what a run's folder says of it, and that in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).with_name("fashion_card_recipe.template.md")


def training_run(folder: Path) -> dict[str, Any]:
    """A run's configuration, the last record of its log, and the figures that it wrote beside its weights."""
    records = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    run = {
        "config": _without_folders(json.loads((folder / "config.json").read_text())),
        "images_seen": records[-1]["images"],
        "seconds": records[-1]["seconds"],
    }
    metrics = folder / "final" / "metrics.json"
    return {**run, "metrics": json.loads(metrics.read_text())} if metrics.is_file() else run


def _without_folders(value: Any) -> Any:
    """The same JSON value with absolute paths cut to their last part: nobody else has those folders."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def recipe(name: str, run: dict[str, Any]) -> str:
    """What one training run saw and how, with its whole configuration folded away."""
    training = run["config"]["training"]
    figures = run.get("metrics", {})
    by_level = isinstance(figures, list)  # what `by_noise` says
    metrics = ", ".join(
        f"{key.replace('_', ' ')} {value:.4g}" for key, value in ({} if by_level else figures).items()
    )
    return RECIPE.read_text().format(
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
