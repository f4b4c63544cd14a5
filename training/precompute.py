"""Computes latents and embeddings into shards: guided-diffusers precompute OUT --config FILE [--key value].

FILE is the configuration of a training: of its keys `data`, `autoencoder` and `text` count. The training then
reads the shards with `--data.path OUT --data.stream true`. Running the same command again goes on.
"""

from __future__ import annotations

import logging
import sys

from guided_diffusers.training.engine.config import TrainingConfig, parse_config
from guided_diffusers.training.engine.script import run_main
from guided_diffusers.training.engine.trainer import make_accelerator
from guided_diffusers.training.tasks.precompute import PrecomputeConfig, precompute


def main() -> None:
    """Parse the command line, compute, say what was done."""
    config = parse_config(PrecomputeConfig, sys.argv[1:], ignore_others=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    accelerator = make_accelerator(TrainingConfig(output_dir=config.output_dir))
    done = precompute(config, accelerator.device)
    logging.info("%s: %s", config.output_dir, ", ".join(f"{count} {what}" for what, count in done.items()))
    accelerator.end_training()


if __name__ == "__main__":
    run_main(main)
