"""Trains a small vision transformer on clean Fashion-MNIST images, as people have one that knows no noise.

    python benchmarks/studies/loss_guidance/classifier.py --data data/fashion --output runs/fashion_vit

A `ViTForImageClassification` of transformers with its image processor, for `AutoModelForImageClassification`.
About three minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from guided_diffusers.evaluation import ImageSet, read_images

MEAN = 0.5  # of the image processor, which takes [0, 1] to [-1, 1]


def main() -> None:
    """Parses the command line, trains, tests, saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1, help="another than the judge's")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    real, held_out = (read_images(arguments.data / f"{split}.parquet") for split in ("train", "test"))
    model = trained(real, arguments.epochs, arguments.batch_size, arguments.seed)
    model.config.test_accuracy = round(accuracy(model, held_out), 4)
    print(f"{arguments.output}: test accuracy {model.config.test_accuracy}")
    side = real.images.shape[-1]
    processor = ViTImageProcessor(size={"height": side, "width": side}, image_mean=[MEAN], image_std=[MEAN])
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)


def trained(real: ImageSet, epochs: int, batch_size: int, seed: int) -> ViTForImageClassification:
    """The network after some epochs: AdamW, a one-cycle learning rate, half of the images flipped."""
    torch.manual_seed(seed)
    names = dict(enumerate(real.names))
    config = ViTConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=real.images.shape[-1],
        patch_size=8,
        num_channels=real.images.shape[1],
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    model, start = ViTForImageClassification(config), time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = len(real.images) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    for epoch in range(epochs):
        for rows in torch.randperm(len(real.images))[: steps * batch_size].split(batch_size):
            images = real.images[rows] / 127.5 - 1
            flipped = torch.rand(batch_size) < 0.5
            images[flipped] = images[flipped].flip(3)
            logits = model(pixel_values=images).logits
            loss = F.cross_entropy(logits, real.labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}: loss {loss.item():.4f} after {seconds:.0f} s", flush=True)
    return model.eval()


@torch.no_grad()
def accuracy(model: ViTForImageClassification, held_out: ImageSet) -> float:
    """The fraction of test images whose class it says."""
    batches = zip(held_out.images.split(500), held_out.labels.split(500), strict=True)
    hits = [
        (model(pixel_values=images / 127.5 - 1).logits.argmax(1) == labels).sum()
        for images, labels in batches
    ]
    return int(sum(hits)) / len(held_out.images)


if __name__ == "__main__":
    main()
