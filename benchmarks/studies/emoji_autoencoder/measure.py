"""Reconstructions of held-out emoji by several autoencoders: PSNR, kernel distance, sharpness, a picture.

    python training/data/emoji.py --fetch --source emoji-packages --output data/emoji
    python benchmarks/studies/emoji_autoencoder/measure.py --data data/emoji
        --output model_cards/emoji-64-vae.json --picture docs/images/emoji-64-vae.png
        --arms l1=runs/emoji_autoencoder/final
        plain=runs/emoji_autoencoder_plain/final perceptual=runs/emoji_autoencoder_perceptual/final

All arms see the same images, decode the posterior's mean and are resampled alike; differences of PSNR are
taken image by image. The kernel distance compares each reconstruction with all originals but its own, which
is no independent draw: so it is 0 for perfect reconstructions, and unbiased. It is taken in the features of
two networks: the first is what the perceptual arm was trained on, so that arm has an advantage in it; the
second is not. Sharpness is the energy of fine detail over that of the originals: 1 is right.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import torch
from torch import Tensor

from guided_diffusers.core.randomness import seed_for
from guided_diffusers.evaluation import (
    Estimate,
    Reference,
    extract_features,
    feature_network,
    high_frequency_energy,
    ratio_of_means,
    read_images,
)
from guided_diffusers.evaluation.bootstrap import kernel_estimate, mean_estimate
from guided_diffusers.evaluation.distances import kernel_matrix
from guided_diffusers.evaluation.grid import labelled_grid, to_pictures
from guided_diffusers.evaluation.report import figure_names
from guided_diffusers.evaluation.runs import training_run
from guided_diffusers.models import VariationalAutoencoder
from guided_diffusers.training.tasks.autoencoder_measures import psnr


def main() -> None:
    """Parses the command line, measures, writes JSON and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", required=True, metavar="NAME=FOLDER", help="the autoencoders")
    parser.add_argument("--data", type=Path, required=True, help="folder of training/data/emoji.py")
    parser.add_argument("--split", default="test", help="test: held-out emoji; test_pairs: held-out pairs")
    networks = ["efficientnet-lite0", "efficientnet-lite1"]
    parser.add_argument("--features", nargs="+", default=networks, help="networks of the kernel distance")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the resampling and of the picture's choice")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--picture", type=Path, required=True, help="the PNG file")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arms = folders(arguments.arms)
    held_out = read_held_out(arguments.data / f"{arguments.split}.parquet")
    outputs = {name: reconstruct(folder, held_out.images) for name, folder in arms.items()}
    results = measure(outputs, held_out, arguments.features, arguments.resamples, arguments.seed)
    results |= {"split": arguments.split, "seed": arguments.seed, "resamples": arguments.resamples}
    results["training_images"] = parquet.read_metadata(arguments.data / "train.parquet").num_rows
    for name, folder in arms.items():
        results["arms"][name] |= about(folder)
    for path in (arguments.output, arguments.picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    draw(outputs, held_out, chosen(held_out.styles, arguments.seed)).save(arguments.picture, optimize=True)
    print(json.dumps(results, indent=2))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Images `(count, 3, 64, 64)` uint8, and the style and name of each."""

    images: Tensor
    styles: list[str]
    names: list[str]


def folders(arms: list[str]) -> dict[str, Path]:
    """The folder of each arm by its name.

    Raises:
        ValueError: one is not NAME=FOLDER, a name comes twice, or a folder is not there.
    """
    found: dict[str, Path] = {}
    for arm in arms:
        name, _, folder = arm.partition("=")
        if not name or name in found or not Path(folder).is_dir() or not folder:
            raise ValueError(
                f"--arms has {arm!r}; allowed: NAME=FOLDER, each name once and each folder there"
            )
        found[name] = Path(folder)
    return found


def read_held_out(path: Path) -> HeldOut:
    """A parquet file of the emoji script.

    Raises:
        FileNotFoundError: it is not there, with the command that makes it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no data at {path}; make it with: python training/data/emoji.py --fetch --source emoji-packages "
            f"--output {path.parent}"
        )
    columns = parquet.read_table(path, columns=["style", "name"]).to_pydict()
    return HeldOut(images=read_images(path).images, styles=columns["style"], names=columns["name"])


@torch.no_grad()
def reconstruct(folder: Path, images: Tensor, batch_size: int = 50) -> Tensor:
    """What the autoencoder of a folder makes of images, decoded from the posterior's mean, as uint8."""
    model = VariationalAutoencoder.from_pretrained(folder, torch_dtype=torch.float32).eval()
    parts = [model(part.float() / 127.5 - 1).sample for part in images.split(batch_size)]
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def about(folder: Path) -> dict[str, Any]:
    """Parameters, the size of the weights in the smallest variant there is, and how it was trained."""
    run = training_run(folder.parent) if (folder.parent / "log.jsonl").is_file() else None
    count = VariationalAutoencoder.from_pretrained(folder).num_parameters()
    size = min(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"parameters": count, "megabytes": size / 1e6, "training": run}


def measure(
    outputs: dict[str, Tensor], held_out: HeldOut, features: list[str], resamples: int, seed: int
) -> dict[str, Any]:
    """Every arm's figures with 95% intervals, and how much PSNR each two differ by, image by image."""
    networks = [feature_network(name) for name in features]
    real = [Reference(extract_features(network, held_out.images)) for network in networks]
    detail = high_frequency_energy(unit(held_out.images))
    by_image = {name: psnr(unit(output), unit(held_out.images)) for name, output in outputs.items()}

    def mean(values: Tensor) -> dict[str, Any]:
        return mean_estimate(values, resamples=resamples, seed=seed).to_dict()

    arms = {}
    for name, output in outputs.items():
        sharpness = ratio_of_means(
            high_frequency_energy(unit(output)), detail, resamples=resamples, seed=seed
        )
        arms[name] = {"psnr_db": mean(by_image[name]), "sharpness": sharpness.to_dict()}
        for network, originals in zip(networks, real, strict=True):
            distance = paired_kernel_estimate(originals, extract_features(network, output), resamples, seed)
            arms[name][figure_names(network.name)[1]] = distance.to_dict()
        arms[name] |= {
            "psnr_db_by_style": by_style(by_image[name], held_out.styles, mean),
        }
    differences = {
        f"{second} - {first}": mean(by_image[second] - by_image[first])
        for first, second in combinations(outputs, 2)
    }
    return {"images": len(held_out.images), "arms": arms, "psnr_db_differences": differences}


def paired_kernel_estimate(real: Reference, generated: Tensor, resamples: int, seed: int) -> Estimate:
    """The kernel distance of each row's reconstruction to the real rows, its own original left out."""
    count, d = generated.shape
    own = (1 + (real.features * generated.double()).sum(1) / d) ** 3
    kernels = kernel_matrix(real.features, generated.double(), 3, 1 / d)
    cross = (kernels.sum(0) - own) / (count - 1)
    return kernel_estimate(real, generated, cross, resamples=resamples, seed=seed)


def by_style(values: Tensor, styles: list[str], mean: Callable[[Tensor], Any]) -> dict[str, Any]:
    """The mean over the images of each style."""
    return {
        style: mean(values[[place for place, one in enumerate(styles) if one == style]])
        for style in sorted(set(styles))
    }


def chosen(styles: list[str], seed: int, count: int = 8) -> list[int]:
    """Rows for the picture by lot, the styles in turn."""
    order = sorted(range(len(styles)), key=lambda row: seed_for(seed, row))
    turns = [[row for row in order if styles[row] == style] for style in sorted(set(styles))]
    rounds = [turn[place] for place in range(count) for turn in turns if place < len(turn)]
    return rounds[:count]


def draw(outputs: dict[str, Tensor], held_out: HeldOut, rows: list[int]) -> Any:
    """The originals in the first row, each arm's reconstructions below."""
    images = {"original": held_out.images, **outputs}
    grid = [to_pictures(batch[rows]) for batch in images.values()]
    return labelled_grid(grid, list(images), 128)


def unit(images: Tensor) -> Tensor:
    """8-bit images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


if __name__ == "__main__":
    main()
