"""Does a checkpoint of emoji draw what it is asked for, and is it more than memory?

    python benchmarks/studies/emoji_256/measure.py --checkpoint emoji-256 --judge runs/emoji_judge/final
        --data data/emoji-256 --scenes data/scenes-256 --drawn cache/emoji-256
        --output model_cards/emoji-256.json --picture docs/images/emoji-256.png
        --pairs docs/images/emoji-256-pairs.png

The judge is a CLIP of another architecture, trained apart on all splits. It sees pictures averaged to its own
side, and of each chooses among the captions of its group: R@1. Groups are (emoji, style) pairs that were
trained on, held-out pairs, held-out emoji, and scenes; the figures of real pictures of the same rows stand
beside. The style is right where the judge prefers the caption to the same with each other style; of scenes
the place, the count and the sizes are right where it prefers the caption to the same with others. Distances
are of features of the pictures as drawn. Pictures that are drawn stay in --drawn: a run goes on where it was.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.cli.drawing import load_pipeline, prompt_arguments
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation import Reference, extract_features, feature_network
from guided_diffusers.evaluation.bootstrap import kernel_estimate
from guided_diffusers.evaluation.clip import ClipScorer, clip_figures
from guided_diffusers.evaluation.distances import precision_recall
from guided_diffusers.evaluation.estimate import wilson_estimate
from guided_diffusers.evaluation.generation import chunks, generate_images, generated_images
from guided_diffusers.evaluation.grid import labelled_grid, to_pictures
from guided_diffusers.evaluation.nearest import closest_pairs, memorisation, nearest_images
from guided_diffusers.evaluation.report import figure_names
from guided_diffusers.evaluation.runs import machine, write_json
from guided_diffusers.models.super_resolution import area_averaged
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset

SPLITS = {"trained pairs": "train", "held-out pairs": "test_pairs", "held-out emoji": "test"}
OTHERS = {
    "place": ("to the left of", "to the right of", "above", "below"),
    "count": ("two", "three", "four"),
    "size": ("a big", "a small"),
}
"""What stands in a scene's caption, by the scene's kind; each for each other is another scene's caption."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of a split: their captions, real pictures in uint8, and the captions that differ in one matter.

    Attributes:
        name: Of the group.
        captions: One a row.
        real: `(rows, 3, side, side)`.
        matters: Of each matter the rows that have it, and each row's captions, the right one first.
    """

    name: str
    captions: list[str]
    real: Tensor
    matters: dict[str, dict[int, list[str]]]


def main() -> None:
    """Parses the command line, draws, measures, writes JSON and pictures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    pipeline = load_pipeline(arguments.checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    judge = ClipScorer.from_pretrained(arguments.judge)
    groups = emoji_groups(arguments)
    if arguments.scenes is not None:
        groups.append(scenes(arguments))
    drawn = {group.name: draw(pipeline, group, arguments) for group in groups}
    results = {
        "machine": machine(),
        "captions": arguments.captions,
        "images_per_caption": arguments.images_per_caption,
        "groups": {group.name: judged(judge, group, drawn[group.name], arguments) for group in groups},
    }
    memory, pairs = against_training(drawn, arguments)
    write_json(arguments.output, results | memory)
    if arguments.pairs is not None:
        pairs.save(arguments.pairs, optimize=True)
    if arguments.picture is not None:
        picture(groups, drawn, arguments).save(arguments.picture, optimize=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="a folder or a shipped checkpoint's name")
    parser.add_argument("--judge", required=True, help="folder of a CLIP model")
    parser.add_argument("--data", required=True, help="what training/data/emoji.py wrote")
    parser.add_argument("--scenes", default=None, help="scenes of the same side")
    parser.add_argument("--drawn", type=Path, required=True, help="folder in which the pictures are kept")
    parser.add_argument("--output", type=Path, default=None, help="the JSON file; printed by default")
    parser.add_argument("--picture", type=Path, default=None, help="PNG: real and drawn pictures")
    parser.add_argument("--pairs", type=Path, default=None, help="PNG: the closest pairs")
    parser.add_argument("--resolution", type=int, default=256, help="of the pictures")
    parser.add_argument("--captions", type=int, default=100, help="of each group, to choose among")
    parser.add_argument("--images-per-caption", type=int, default=2)
    parser.add_argument("--steps", type=int, default=None, help="the checkpoint's own by default")
    parser.add_argument("--features", default="efficientnet-lite1", help="network of the distances")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def emoji_groups(arguments: argparse.Namespace) -> list[Group]:
    """Captions with the style, drawn from each split by the seed."""
    tables = {name: opened(arguments.data, split, arguments) for name, split in SPLITS.items()}
    phrases = style_phrases(tables["trained pairs"])
    groups = []
    for name, data in tables.items():
        rows = chosen(len(data), arguments)
        captions, styles = data.first_captions(), data.column("style")
        choices = {}
        for place, row in enumerate(rows):
            own = phrases[styles[row]]
            head = captions[row].removesuffix(own)
            choices[place] = [captions[row], *(head + each for each in phrases.values() if each != own)]
        told, real = [captions[row] for row in rows], eight_bit(data.pixels(rows))
        groups.append(Group(name=name, captions=told, real=real, matters={"style": choices}))
    return groups


def scenes(arguments: argparse.Namespace) -> Group:
    """Held-out combinations of two or three emoji."""
    data = opened(arguments.scenes, "test", arguments)
    rows = chosen(len(data), arguments)
    captions, kinds = data.first_captions(), data.column("kind")
    matters: dict[str, dict[int, list[str]]] = {kind: {} for kind in OTHERS}
    for place, row in enumerate(rows):
        if kinds[row] in OTHERS and (choices := exchanged(captions[row], OTHERS[kinds[row]])):
            matters[kinds[row]][place] = choices
    return Group(
        name="scenes",
        captions=[captions[row] for row in rows],
        real=eight_bit(data.pixels(rows)),
        matters={kind: choices for kind, choices in matters.items() if choices},
    )


def exchanged(caption: str, words: Sequence[str]) -> list[str]:
    """A caption, and it with its first of these words exchanged for each other; without one of them none."""
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b")
    found = pattern.search(caption)
    if found is None:
        return []
    others = [word for word in words if word != found[1]]
    return [caption, *(caption[: found.start()] + word + caption[found.end() :] for word in others)]


def opened(path: str, split: str, arguments: argparse.Namespace) -> ImageTextDataset:
    """A split, in colour."""
    return ImageTextDataset(DataConfig(path=path, split=split, resolution=arguments.resolution))


def chosen(count: int, arguments: argparse.Namespace) -> list[int]:
    """As many rows as captions are asked for, by the seed."""
    if count < arguments.captions:
        raise SystemExit(f"--captions is {arguments.captions}; allowed: at most {count}, the rows of a split")
    order = torch.randperm(count, generator=generator_for(arguments.seed, 0))
    return order[: arguments.captions].tolist()


def style_phrases(data: ImageTextDataset) -> dict[str, str]:
    """How each style is called at the end of a caption: "a grinning face, noto emoji"."""
    phrases: dict[str, str] = {}
    for caption, style in zip(data.first_captions(), data.column("style"), strict=True):
        phrases.setdefault(style, caption.rpartition(", ")[2])
    return phrases


def draw(pipeline: Any, group: Group, arguments: argparse.Namespace) -> Tensor:
    """Pictures `(captions x images, 3, side, side)` in uint8, those of a caption together."""
    each, steps = arguments.images_per_caption, {}
    if arguments.steps is not None:
        steps = {"num_inference_steps": arguments.steps}

    def made(indices: Sequence[int]) -> Tensor:
        told = prompt_arguments(pipeline, [group.captions[index // each] for index in indices], None)
        generators = [generator_for(arguments.seed, index) for index in indices]
        images = pipeline(**told, **steps, generator=generators, output_type="pt").images
        return (images * 255).round().to(torch.uint8)

    count, folder = len(group.captions) * each, arguments.drawn / group.name.replace(" ", "-")
    made_of = {"checkpoint": str(arguments.checkpoint), "captions": group.captions, "each": each}
    made_of |= {"seed": arguments.seed, "steps": arguments.steps}
    generate_images(made, count, folder, settings=made_of, batch_size=arguments.batch_size)
    return generated_images(folder, count)


def judged(
    judge: ClipScorer, group: Group, drawn: Tensor, arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """What the judge says of drawn pictures, and of the real ones of the same rows."""
    side = judge.model.config.vision_config.image_size
    figures = {}
    for name, images, each in (("drawn", drawn, arguments.images_per_caption), ("real", group.real, 1)):
        small = averaged(images, side)
        texts = [text for text in group.captions for _ in range(each)]
        found = clip_figures(judge, small, texts, candidates=len(set(texts)), seed=arguments.seed)
        figures[name] = {"retrieval": found.retrieval.to_dict(), "score": found.score.to_dict()}
        for matter, choices in group.matters.items():
            hits = preferred(judge, small, choices, each)
            figures[name][matter] = wilson_estimate(int(hits.sum()), len(hits)).to_dict()
    return figures


def preferred(judge: ClipScorer, images: Tensor, choices: dict[int, list[str]], each: int) -> Tensor:
    """Whether each picture of the rows with choices is nearest to the first of them, `(pictures,)` bool."""
    hits = []
    for place, texts in choices.items():
        of_images = judge.image_features(images[place * each : (place + 1) * each])
        hits.append((of_images @ judge.text_features(texts).T).argmax(1) == 0)
    return torch.cat(hits)


def against_training(drawn: dict[str, Tensor], arguments: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Distance and recall against held-out pictures, and how near the drawn ones lie to training ones."""
    network = feature_network(arguments.features)
    training = pixels_of("train", arguments)
    held_out = torch.cat([pixels_of(split, arguments) for split in ("test", "test_pairs")])
    of_training, of_held_out = extract_features(network, training), extract_features(network, held_out)
    reference, figures = Reference(of_held_out), {}
    found = {name: extract_features(network, drawn[name]) for name in SPLITS}
    for name in SPLITS:
        compared = memorisation(found[name], of_training, of_held_out)
        figures[name] = {
            "distance": kernel_estimate(reference, found[name]).to_dict(),
            "recall": precision_recall(of_held_out, found[name])[1],
            "ratio": compared.ratio.to_dict(),
            "copies": compared.copies.to_dict(),
        }
    nearest = nearest_images(torch.cat(list(found.values())), of_training)
    pairs = closest_pairs(torch.cat([drawn[name] for name in SPLITS]), training, nearest)
    return {"figure": figure_names(network.name)[1], "pictures": figures}, pairs


def pixels_of(split: str, arguments: argparse.Namespace) -> Tensor:
    """All pictures of a split in uint8."""
    data = opened(arguments.data, split, arguments)
    return torch.cat([eight_bit(data.pixels(rows)) for rows in chunks(len(data), 256)])


def eight_bit(images: Tensor) -> Tensor:
    """Of [-1, 1]."""
    return ((images + 1) * 127.5).round().to(torch.uint8)


def averaged(images: Tensor, side: int) -> Tensor:
    """Pictures in uint8 of another side, by area."""
    return area_averaged(images.float(), images.shape[-1] // side).round().to(torch.uint8)


def picture(groups: Sequence[Group], drawn: dict[str, Tensor], arguments: argparse.Namespace) -> Any:
    """Of each group six captions: a real picture of the row, then drawn ones."""
    each, rows, labels = arguments.images_per_caption, [], []
    for group in groups:
        for place in range(6):
            shown = [group.real[place : place + 1], drawn[group.name][place * each : (place + 1) * each]]
            rows.append(to_pictures(torch.cat(shown)))
            labels.append(group.captions[place])
    return labelled_grid(rows, labels, 128, ["real", *["drawn"] * each])


if __name__ == "__main__":
    main()
