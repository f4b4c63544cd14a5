"""config.json of a run's folder: what it was started with, and what is told when that changes."""

from __future__ import annotations

import json
import logging
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from guided_diffusers.store.files import write_atomically
from guided_diffusers.training.engine.config import TrainingConfig, defaults, to_json
from guided_diffusers.training.engine.log import flatten

logger = logging.getLogger(__name__)

FILE = "config.json"


def recorded(folder: Path) -> dict[str, Any]:
    """What config.json says; an empty mapping where it is not there or cannot be read."""
    try:
        found = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        found = {}
    return found if isinstance(found, dict) else {}


def record_config(folder: Path, config: Any, resuming: bool) -> None:
    """Write config.json; a run that goes on with another configuration is told what changed."""
    if resuming and (earlier := recorded(folder)):
        _fill(earlier, type(config))
        before, now = flatten(earlier), flatten(json.loads(to_json(config)))
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                change = f"{before.get(name)} -> {now.get(name)}"
                logger.warning("resuming with another configuration: %s: %s", name, change)
    write_atomically(folder / FILE, lambda at: at.write_text(to_json(config)))


def _fill(tree: dict[str, Any], cls: type) -> None:
    """Give the keys that an older version did not have their defaults, which is what it did."""
    for name, default in defaults(cls).items():
        node, (*parents, last) = tree, name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node.setdefault(last, list(default) if isinstance(default, tuple) else default)


def with_training(config: Any, training: TrainingConfig) -> Any:
    """A script's configuration with another shared part; the shared part itself where that is all."""
    if is_dataclass(getattr(config, "training", None)):
        return replace(config, training=training)
    return training
