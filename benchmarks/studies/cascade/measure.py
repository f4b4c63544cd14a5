"""An upsampler on held-out pictures: PSNR and kernel distance, augmentation levels, tiles, and a picture.

    python benchmarks/studies/cascade/measure.py --data data/emoji-256 --upsampler runs/emoji_upsampler/final
        --arm regression=runs/emoji_regression/final --base runs/emoji_base/final
        --output model_cards/emoji-256.json --picture docs/images/emoji-256-upsampler.png

Held-out pictures are averaged to small ones and made large again: by bicubic and Lanczos filters, by the
upsampler, and by further arms, such as a regression network of the same size and training. Their kernel
distance is to other held-out pictures, and that of the held-out ones themselves stands beside it. PSNR asks
for the mean of what the picture may be, which a regression gives and is blurred; the distance asks for one
of them. With a base, what it draws for held-out captions is made large too, at every level of augmentation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from guided_diffusers import TextToImagePipeline, UpsamplePipeline
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation import Reference, extract_features, feature_network
from guided_diffusers.evaluation.bootstrap import kernel_estimate, mean_estimate
from guided_diffusers.evaluation.grid import labelled_grid, to_pictures
from guided_diffusers.evaluation.report import figure_names
from guided_diffusers.evaluation.runs import machine, parameters_millions, write_json
from guided_diffusers.models.super_resolution import area_averaged
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.tasks.autoencoder_measures import psnr

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def main() -> None:
    """Parses the command line, measures, writes JSON and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="pictures with captions, as of training")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=256, help="to be made large; as many others to compare")
    parser.add_argument("--upsampler", type=Path, required=True, help="folder of an UpsamplePipeline")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=FOLDER", help="another")
    parser.add_argument("--base", type=Path, default=None, help="a pipeline whose drawings are made large")
    parser.add_argument("--levels", type=int, nargs="+", default=[0, 25, 50, 100, 200, 350])
    parser.add_argument("--features", default="efficientnet-lite0", help="network of the kernel distance")
    parser.add_argument("--steps", type=int, default=None, help="of upsamplers; their own by default")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path, default=None, help="the JSON file; printed by default")
    parser.add_argument("--picture", type=Path, default=None, help="the PNG file")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    upsampler = load(arguments.upsampler)
    arms = {"upsampler": upsampler}
    arms |= {name: load(folder) for name, _, folder in (each.partition("=") for each in arguments.arm)}
    truth, others, captions = held_out(arguments, upsampler)
    small = area_averaged(truth, upsampler.config.scale)
    network = feature_network(arguments.features)
    reference = Reference(extract_features(network, eight_bit(others)))
    made = {name: filtered(small, truth.shape[2:], kind) for name, kind in FILTERS.items()}
    for name, arm in arms.items():
        made[name] = upsampled(arm, small, captions, arguments)

    def distance(images: Tensor) -> dict[str, float]:
        return kernel_estimate(reference, extract_features(network, eight_bit(images))).to_dict()

    results: dict[str, Any] = {
        "machine": machine(),
        "figure": figure_names(network.name)[1],
        "images": len(truth),
        "parameters_millions": {name: parameters_millions(arm.unet) for name, arm in arms.items()},
        "real": {"distance": distance(truth)},
        "arms": {
            name: {"psnr": mean_estimate(psnr(images, truth)).to_dict(), "distance": distance(images)}
            for name, images in made.items()
        },
        "levels": levels(upsampler, small, captions, arguments, distance),
        "tiles": tiles(upsampler, small[:4]),
    }
    write_json(arguments.output, results)
    if arguments.picture is not None:
        columns = [to_pictures(images[:6]) for images in (*made.values(), truth)]
        grid = labelled_grid(list(map(list, zip(*columns, strict=True))), captions[:6], 128, [*made, "real"])
        grid.save(arguments.picture, optimize=True)


def load(folder: str | Path) -> UpsamplePipeline:
    """An upsampler without a progress bar."""
    pipeline = UpsamplePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def held_out(
    arguments: argparse.Namespace, upsampler: UpsamplePipeline
) -> tuple[Tensor, Tensor, Sequence[str]]:
    """Pictures in [-1, 1] to be made large, as many others, and the captions of the former."""
    config = DataConfig(
        path=str(arguments.data),
        split=arguments.split,
        resolution=upsampler.config.image_size,
        channels=upsampler.channels.picture,
    )
    data, count = ImageTextDataset(config), arguments.images
    if len(data) < 2 * count:
        raise SystemExit(f"--images is {count}; allowed: at most {len(data) // 2}, half of the split")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    rows = order[: 2 * count]
    pixels = data.pixels(rows)
    return pixels[:count], pixels[count:], data.captions(rows[:count], rows[:count])


def filtered(small: Tensor, sides: Sequence[int], kind: Image.Resampling) -> Tensor:
    """Small pictures made large by a filter, in [-1, 1]."""
    size = (sides[1], sides[0])
    large = [torch.from_numpy(_array(image.resize(size, kind))) for image in to_pictures(small)]
    return torch.stack(large).float() / 127.5 - 1


def _array(image: Image.Image) -> Any:
    import numpy as np

    array = np.array(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def upsampled(
    pipeline: UpsamplePipeline,
    small: Tensor,
    captions: Sequence[str],
    arguments: argparse.Namespace,
    level: int | None = None,
) -> Tensor:
    """Small pictures in [-1, 1] made large by a pipeline; each with its own generator."""
    parts = []
    for start in range(0, len(small), arguments.batch_size):
        rows = range(start, min(start + arguments.batch_size, len(small)))
        images = pipeline(
            (small[start : rows.stop] + 1) / 2,
            prompt=[captions[row] for row in rows] if pipeline.takes_text else None,
            augmentation_level=level,
            num_inference_steps=arguments.steps,
            generator=[generator_for(0, row) for row in rows],
            output_type="pt",
        ).images
        parts.append(2 * images - 1)
    return torch.cat(parts)


def levels(
    upsampler: UpsamplePipeline,
    small: Tensor,
    captions: Sequence[str],
    arguments: argparse.Namespace,
    distance: Callable[[Tensor], dict[str, float]],
) -> dict[str, Any]:
    """The distance by the level of augmentation, of real small pictures and of those that a base draws."""
    if upsampler.augmentation is None:
        return {}
    sources = {"real": small}
    if arguments.base is not None:
        base = TextToImagePipeline.from_pretrained(arguments.base)
        base.set_progress_bar_config(disable=True)
        parts = []
        for start in range(0, len(captions), arguments.batch_size):
            told = list(captions[start : start + arguments.batch_size])
            generators = [generator_for(1, start + row) for row in range(len(told))]
            parts.append(base(told, generator=generators, output_type="pt").images)
        sources["drawn"] = 2 * torch.cat(parts) - 1
    known = [level for level in arguments.levels if level <= upsampler.augmentation.most]
    return {
        "trained_to": upsampler.augmentation.most,
        **{
            name: {
                str(level): distance(upsampled(upsampler, pictures, captions, arguments, level))
                for level in known
            }
            for name, pictures in sources.items()
        },
    }


def tiles(upsampler: UpsamplePipeline, small: Tensor) -> dict[str, float]:
    """One picture of four, whole and in tiles: the largest steps at the tiles' borders and elsewhere."""
    size, told = upsampler.config.image_size, {"prompt": ""} if upsampler.takes_text else {}
    rows = torch.cat([torch.cat(list(small[row : row + 2]), dim=2) for row in (0, 2)], dim=1)[None]
    images = {}
    for name, options in (("whole", {}), ("tiles", {"tile_size": size, "tile_overlap": size // 2})):
        generator = torch.Generator().manual_seed(0)
        images[name] = upsampler(
            (rows + 1) / 2, generator=generator, output_type="pt", **told, **options
        ).images
    steps = {name: image.diff(dim=3).abs() for name, image in images.items()}
    borders = [place - 1 for place in range(size // 2, 2 * size, size // 2)]
    inside = [place for place in range(2 * size - 1) if place not in borders]
    return {
        **{f"{name}_at_borders": each[..., borders].max().item() for name, each in steps.items()},
        **{f"{name}_elsewhere": each[..., inside].max().item() for name, each in steps.items()},
        "mean_difference": (images["tiles"] - images["whole"]).abs().mean().item(),
    }


def eight_bit(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


if __name__ == "__main__":
    main()
