"""Computes latents and embeddings into shards: guided-diffusers precompute OUT --config FILE [--key value].

FILE is the configuration of a training: of its keys `data`, `autoencoder` and `text` count. The training then
reads the shards with `--data.path OUT --data.stream true`. Running the same command again goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from guided_diffusers.store.reading import read_mapping
from guided_diffusers.training.engine.config import TrainingConfig, parse_config
from guided_diffusers.training.engine.script import run_main
from guided_diffusers.training.engine.trainer import make_accelerator
from guided_diffusers.training.tasks.precompute import PrecomputeConfig, precompute


def read(argv: list[str]) -> PrecomputeConfig:
    """The configuration, of a training's the keys that count."""
    known, words = {item.name for item in dataclasses.fields(PrecomputeConfig)}, list(argv)
    if "--config" not in words[:-1]:
        return parse_config(PrecomputeConfig, words)
    place = words.index("--config") + 1
    tree: dict[str, Any] = {key: part for key, part in read_mapping(words[place]).items() if key in known}
    with TemporaryDirectory() as folder:
        words[place] = str(Path(folder) / "config.yaml")
        Path(words[place]).write_text(yaml.safe_dump(tree))
        return parse_config(PrecomputeConfig, words)


def main() -> None:
    """Parse the command line, compute, say what was done."""
    config = read(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator = make_accelerator(TrainingConfig(output_dir=config.output_dir, mixed_precision="no"))
    done = precompute(config, accelerator.device)
    logging.info("%s: %s", config.output_dir, ", ".join(f"{count} {what}" for what, count in done.items()))
    accelerator.end_training()


if __name__ == "__main__":
    run_main(main)
