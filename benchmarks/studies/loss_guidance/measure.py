r"""Measures LossGuidance on the shipped checkpoint: inverse problems, and a classifier that knows no noise.

    python benchmarks/studies/loss_guidance/measure.py --classifier runs/fashion_vit --data data/fashion \
        --judge cache/judge.safetensors --pictures docs/images \
        --output model_cards/fashion-32-loss-guidance.json

The denoiser is told the empty prompt: it is unconditional. Inverse problems are those of test images, none of
which the denoiser has seen: their left half is known, or their averages over 4 x 4 pixels. PSNR is of images
in [-1, 1] (a peak of 2), the mean over images in dB. A class is drawn by the vision transformer of
classifier.py, image i of class i modulo 10, and judged by another network of another seed. Image i has the
noise of (seed, i) at every point. What was stopped goes on at the next point.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from figures import draw
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from guided_diffusers import Condition, ModelDenoiser, TextToImagePipeline, pretrained, sampling_loop
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation import agreement, judge_images, load_judge, read_images
from guided_diffusers.evaluation.bootstrap import mean_estimate
from guided_diffusers.evaluation.features import fingerprint_of
from guided_diffusers.evaluation.runs import machine, write_json
from guided_diffusers.guidance import LossGuidance
from guided_diffusers.models.latents import encode
from guided_diffusers.steering import ClassLoss, Measurement, decoder, downsampled, masked

KEPT = 10
"""Images a point whose pictures are kept."""
MAX_NORM = 0.5
"""Of a step, in units of what is still unknown."""
INVERSE: tuple[dict[str, Any], ...] = (
    {"through": "x0", "deviation": 0.2, "max_norm": None},
    {"through": "x0", "deviation": 0.2, "max_norm": MAX_NORM},
    {"through": "x0", "deviation": 0.05, "max_norm": None},
    {"through": "x0", "deviation": 0.05, "max_norm": MAX_NORM},
    {"through": "denoised", "deviation": 0.2, "max_norm": MAX_NORM},
    {"through": "denoised", "deviation": 0.2, "max_norm": None},
)
"""What is tried on both problems, at scale 1."""


def left_half(images: Tensor) -> Tensor:
    """The left half of images; the other is 0."""
    mask = torch.zeros_like(images[:1, :1])
    mask[..., : mask.shape[-1] // 2] = 1.0
    return masked(mask)(images)


PROBLEMS = {"inpainting": left_half, "super-resolution": downsampled(4)}


@dataclass(frozen=True, kw_only=True)
class Study:
    """The checkpoint, and what measures it."""

    pipeline: TextToImagePipeline
    classifier: torch.nn.Module
    processor: Any
    judge: torch.nn.Module
    test: Tensor
    seed: int

    def images(self, guidance: LossGuidance, count: int, steps: int) -> Tensor:
        """Images in [-1, 1] of the noises of (seed, 0), (seed, 1), ..., told nothing but by guidance."""
        parts, device = self.pipeline, torch.device("cpu")
        embeds = parts.encode_prompt("", device, 1, False)[0].expand(count, -1, -1)
        denoiser = ModelDenoiser(parts.unet, parts.scheduler.config.prediction_type)
        generators = [generator_for(self.seed, row) for row in range(count)]
        side = parts.unet.config.sample_size
        shape = (parts.unet.config.in_channels, side, side)
        noise = torch.stack([torch.randn(shape, generator=each) for each in generators])
        condition = Condition({"encoder_hidden_states": embeds.detach()})
        sample = sampling_loop(
            guidance(denoiser), parts.scheduler, noise, condition, steps, generator=generators
        )
        with torch.no_grad():
            return decoder(parts.vae)(sample).clamp(-1, 1)

    def inverse(self, point: Mapping[str, Any], count: int, steps: int) -> tuple[dict[str, Any], Tensor]:
        """A problem's figures, and its images."""
        real, operator = self.test[:count].float() / 127.5 - 1, PROBLEMS[point["problem"]]
        measurement = Measurement(operator, operator(real), point["deviation"])
        options = {"through": point["through"], "max_norm": point["max_norm"]}
        guidance = LossGuidance(measurement, 1.0, decode=decoder(self.pipeline.vae), **options)
        images = self.images(guidance, count, steps)
        return compared(images, real, operator), images

    def of_a_class(self, point: Mapping[str, Any], count: int, steps: int) -> tuple[dict[str, Any], Tensor]:
        """What the judge says of images of classes, and the images."""
        labels = torch.arange(count) % self.classifier.config.num_labels
        loss = ClassLoss(self.classifier, self.processor, labels)
        options = {name: point[name] for name in ("through", "recurrence", "max_norm")}
        guidance = LossGuidance(loss, point["scale"], decode=decoder(self.pipeline.vae), **options)
        images = self.images(guidance, count, steps)
        said = judge_images(self.judge, images)
        with torch.no_grad():
            own = (loss(images) < 0.6931).double()  # a probability of above one half
        figures = {"agreement": agreement(said, labels).overall.to_dict()}
        return {**figures, "convinced": mean_estimate(own).to_dict()}, images

    def limit(self, count: int) -> dict[str, Any]:
        """What the autoencoder alone gets wrong, on each problem."""
        real = self.test[:count].float() / 127.5 - 1
        with torch.no_grad():
            images = decoder(self.pipeline.vae)(encode(self.pipeline.vae, real)[0]).clamp(-1, 1)
        return {name: compared(images, real, operator) for name, operator in PROBLEMS.items()}


def compared(images: Tensor, real: Tensor, operator: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """PSNR of what was known, and of whole images."""
    known = operator(torch.ones_like(real[:1])).ne(0)
    error = (operator(images) - operator(real)).square().flatten(1).sum(1) / known.sum()
    whole = (images - real).square().flatten(1).mean(1)
    return {
        name: mean_estimate(10 * (4 / each.double()).log10()).to_dict()
        for name, each in (("known", error), ("whole", whole))
    }


def points_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All points."""
    scales, recurrences = arguments.scales, arguments.recurrences
    tried = [("denoised", s, r, MAX_NORM) for s in scales for r in recurrences]
    tried += [("x0", s, 1, MAX_NORM) for s in scales[:2]]
    tried += [("denoised", scales[0], r, None) for r in recurrences] + [("denoised", 0.0, 1, None)]
    names = ("through", "scale", "recurrence", "max_norm")
    classes = [dict(zip(names, values, strict=True)) for values in tried]
    inverse = [{"problem": name, **options} for options in INVERSE for name in PROBLEMS]
    return inverse + [{"problem": "class", **point} for point in classes]


def main() -> None:
    """Parses the command line, measures what is not there yet, writes JSON and pictures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    study, judged = _study(arguments)
    results = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {"points": []}
    names = ("images", "steps", "class_images", "class_steps", "seed")
    settings = {name: getattr(arguments, name) for name in names}
    if results.setdefault("settings", settings) != settings:
        raise ValueError(f"{arguments.output} was measured with {results['settings']}; allowed: the same")
    results |= {"name": arguments.output.stem, "machine": machine(), "judge": judged}
    results["classifier"] = {
        "class": type(study.classifier).__name__,
        "parameters_millions": round(sum(p.numel() for p in study.classifier.parameters()) / 1e6, 3),
        "test_accuracy": study.classifier.config.test_accuracy,
        "weights": fingerprint_of(study.classifier),
    }
    results["autoencoder"] = study.limit(arguments.images)
    folder = arguments.cache
    folder.mkdir(parents=True, exist_ok=True)
    for point in points_of(arguments):
        if any(record["point"] == point for record in results["points"]):
            continue
        of_class, then = point["problem"] == "class", time.process_time()
        count = arguments.class_images if of_class else arguments.images
        steps = arguments.class_steps if of_class else arguments.steps
        figures, images = (study.of_a_class if of_class else study.inverse)(point, count, steps)
        seconds = round((time.process_time() - then) / count, 3)
        torch.save(images[:KEPT], folder / f"{len(results['points'])}.pt")
        results["points"].append({"point": point, "figures": figures, "seconds_an_image": seconds})
        write_json(arguments.output, results)
        print(point, {name: value["value"] for name, value in figures.items()}, seconds, flush=True)
    if arguments.pictures is not None:
        kept = [torch.load(folder / f"{row}.pt") for row in range(len(results["points"]))]
        draw(results, kept, study.test[:KEPT].float() / 127.5 - 1, arguments.pictures / results["name"])


def _study(arguments: argparse.Namespace) -> tuple[Study, dict[str, Any]]:
    judge, judged = load_judge(arguments.judge)
    pipeline = TextToImagePipeline.from_pretrained(pretrained("fashion-32"))
    study = Study(
        pipeline=pipeline,
        classifier=AutoModelForImageClassification.from_pretrained(arguments.classifier).eval(),
        processor=AutoImageProcessor.from_pretrained(arguments.classifier),
        judge=judge,
        test=read_images(arguments.data / "test.parquet").images[: arguments.images],
        seed=arguments.seed,
    )
    return study, {"class": type(judge).__name__, "test_accuracy": judged["test_accuracy"]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", type=Path, required=True, help="what classifier.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder of test.parquet")
    parser.add_argument("--judge", type=Path, required=True, help="what fashion_32/judge.py wrote")
    parser.add_argument("--images", type=int, default=48, help="of each inverse problem")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--class-images", type=int, default=100)
    parser.add_argument("--class-steps", type=int, default=15)
    parser.add_argument("--scales", type=float, nargs="+", default=[3.0, 10.0, 30.0])
    parser.add_argument("--recurrences", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/loss_guidance"), help="folder of images")
    parser.add_argument("--pictures", type=Path, default=None, help="folder of the pictures")
    parser.add_argument("--output", type=Path, required=True, help="JSON; it names the pictures too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
