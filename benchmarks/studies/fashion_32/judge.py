"""Trains the judge of Fashion-MNIST images on the real ones and reports its accuracy on the test images.

    python training/data/fashion_mnist.py --output data/fashion
    python benchmarks/studies/fashion_32/judge.py --data data/fashion --output cache/judge.safetensors

About five minutes on one core of 2023. The same seed, settings and number of threads give the same judge.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch

from guided_diffusers.evaluation import (
    JudgeConfig,
    JudgeTraining,
    agreement,
    judge_images,
    read_images,
    save_judge,
    train_judge,
)


def main() -> None:
    """Parses the command line, trains, tests, saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--epochs", type=int, default=JudgeTraining().epochs)
    parser.add_argument("--batch-size", type=int, default=JudgeTraining().batch_size)
    parser.add_argument("--width", type=int, default=JudgeConfig().width)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    real, held_out = (read_images(arguments.data / f"{split}.parquet") for split in ("train", "test"))
    training = JudgeTraining(epochs=arguments.epochs, batch_size=arguments.batch_size, seed=arguments.seed)
    config = JudgeConfig(
        num_classes=len(real.names),
        in_channels=real.images.shape[1],
        image_size=real.images.shape[-1],
        width=arguments.width,
    )
    start = time.perf_counter()

    def report(epoch: int, loss: float) -> None:
        print(f"epoch {epoch}: loss {loss:.4f} after {time.perf_counter() - start:.0f} s", flush=True)

    judge = train_judge(real.images, real.labels, config, training, on_epoch=report)
    accuracy = agreement(judge_images(judge, held_out.images), held_out.labels)
    facts = {
        "test_accuracy": accuracy.overall.to_dict(),
        "test_accuracy_per_class": {held_out.names[c]: e.value for c, e in accuracy.per_class.items()},
        "training": asdict(training),
        "training_images": len(real.images),
        "parameters": sum(parameter.numel() for parameter in judge.parameters()),
    }
    save_judge(judge, arguments.output, **facts)
    overall = accuracy.overall
    print(f"{arguments.output}: test accuracy {overall.value:.4f} [{overall.low:.4f}, {overall.high:.4f}]")


if __name__ == "__main__":
    main()
