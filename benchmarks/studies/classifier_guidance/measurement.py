"""Draws and measures the points of classifier guidance, keeping what is done."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from points import (
    DENOISERS,
    MIN_ACCURACY,
    RULE,
    UNCONDITIONAL,
    GuidedPoint,
    best_guided,
    chosen_finals,
    first_round,
    point_of,
)
from torch import Tensor

from guided_diffusers import (
    ClassifierGuidedPipeline,
    GuidedDDPMScheduler,
    ImagePipeline,
    NoiseAwareClassifier,
    noise_level,
)
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation import Reference, feature_network, load_judge
from guided_diffusers.evaluation.compute import count_compute, networks_of
from guided_diffusers.evaluation.features import fingerprint_of
from guided_diffusers.evaluation.generation import generate_images, generated_images
from guided_diffusers.evaluation.kept import KeptValues
from guided_diffusers.evaluation.labelled import load_split
from guided_diffusers.evaluation.reference import reference_features
from guided_diffusers.evaluation.runs import machine, parameters_millions, training_run
from guided_diffusers.evaluation.sweep import Ruler

FINALS = "finals"


class Measurement:
    """The networks, the ruler, and the figures of every point."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.kept = arguments, KeptValues(arguments.kept / "points")
        self.runs = {name: getattr(arguments, name) for name in (*DENOISERS, "classifier")}
        interval = tuple(arguments.interval)
        self.groups = first_round(arguments.steps, arguments.long_steps, arguments.num_images, interval)
        candidates = {"grid", *(f"steps-{count}" for count in arguments.steps)}
        self.candidates = [name for name in self.groups if name in candidates]
        order = [*self.candidates, FINALS, *(name for name in self.groups if name not in candidates)]
        if unknown := sorted(set(arguments.only or []) - set(order)):
            raise ValueError(f"--only has {unknown[0]!r}; allowed: {', '.join(order)}")
        self.asked = [name for name in order if name in (arguments.only or order)]
        self.records: dict[str, dict[str, Any]] = {}
        self.judge, self.judged = load_judge(arguments.judge)
        check_held_out(self.judged, self.runs["classifier"])

    @cached_property
    def pipelines(self) -> dict[str, ClassifierGuidedPipeline]:
        """A pipeline a denoiser, with the one classifier, under the denoiser's own process, ancestral."""
        classifier = NoiseAwareClassifier.from_pretrained(self.runs["classifier"] / "final").eval()
        made = {}
        for name in DENOISERS:
            images = ImagePipeline.from_pretrained(self.runs[name] / "final")
            scheduler = GuidedDDPMScheduler.from_config(images.scheduler.config)
            made[name] = ClassifierGuidedPipeline(images.unet, scheduler, classifier, images.vae)
            made[name].set_progress_bar_config(disable=True)
            made[name].to(self.arguments.device)
        return made

    @cached_property
    def models(self) -> dict[str, torch.nn.Module]:
        """What was trained."""
        denoisers = {name: pipeline.unet for name, pipeline in self.pipelines.items()}
        return {**denoisers, "classifier": self.pipelines[UNCONDITIONAL].classifier}

    @cached_property
    def ruler(self) -> Ruler:
        """The feature network, all test images' features, and the judge."""
        network, test = feature_network(self.arguments.features), load_split(self._parquet("test"))
        reference = Reference(reference_features(test.images, network))
        return Ruler(network=network, reference=reference, judge=self.judge)

    @cached_property
    def measured_by(self) -> dict[str, Any]:
        """What every figure depends on beside its images."""
        test = load_split(self._parquet("test")).images
        network = self.ruler.network
        return {
            "features": [network.name, getattr(network, "fingerprint", "")],
            "judge": fingerprint_of(self.judge),
            "test": hashlib.sha256(test.numpy().tobytes()).hexdigest()[:16],
        }

    @cached_property
    def weights(self) -> dict[str, str]:
        """A hash of each network's weights; the autoencoder's is among them."""
        vaes = {f"{name}.vae": pipeline.vae for name, pipeline in self.pipelines.items()}
        return {name: fingerprint_of(network) for name, network in (self.models | vaes).items()}

    def results(self) -> dict[str, Any] | None:
        """Everything that the card says; None where points are another process's and not there yet."""
        index, count = self.arguments.split
        for name in self.asked:
            for point in self.points(name)[index::count]:
                self.record(point)
        missing = [name for name in self.asked if not self.is_complete(name)]
        if missing:
            print(f"not there yet: points of {', '.join(missing)}", flush=True)
            return None
        firsts = [self.record(p) for name in self.asked if name != FINALS for p in self.points(name)]
        finals = [self.record(p) for p in (self.points(FINALS) if FINALS in self.asked else [])]
        counts = sorted({record["point"]["images"] for record in [*firsts, *finals]})
        return {
            "name": self.arguments.output.stem,
            "settings": self.settings(),
            "features": self.ruler.network.name,
            "distance": self.ruler.distance("kernel"),
            "rule": RULE,
            "min_accuracy": MIN_ACCURACY,
            "judge": {**self.judged, "class": type(self.judge).__name__, **self.measured_by},
            "models": {name: self.model(name) for name in self.runs},
            "real": {str(count): self.real(count) for count in counts},
            "points": firsts,
            "finals": finals,
            "run": {
                "minutes": round(self.kept.seconds / 60, 1),
                "device": self.arguments.device,
                "machine": machine(),
            },
        }

    def points(self, group: str) -> list[GuidedPoint]:
        """The points of a group; of the finals none while one of their candidates is not there."""
        if group != FINALS:
            return self.groups[group]
        if not all(self.is_complete(name) for name in self.candidates):
            return []
        records = [self.record(point) for name in self.candidates for point in self.groups[name]]
        return chosen_finals(records, self.ruler.distance("kernel"), self.arguments.final_images)

    def is_complete(self, group: str) -> bool:
        """Whether every point of a group has been measured."""
        points = self.points(group)
        return bool(points) and all(self.kept.is_there(p.name, self.made_of(p)) for p in points)

    def record(self, point: GuidedPoint) -> dict[str, Any]:
        """A point's figures, measured where they are not there."""
        if point.name not in self.records:
            make = partial(self.measured, point)
            self.records[point.name] = self.kept.value(point.name, self.made_of(point), make)
        return self.records[point.name]

    def measured(self, point: GuidedPoint) -> dict[str, Any]:
        """Draw a point's images where they are not there, and measure them."""
        generate_images(
            partial(self.drawn, point),
            point.images,
            self.folder(point),
            settings=self.drawn_by(point),
            batch_size=self.arguments.batch_size,
        )
        images, pipeline = self.images_of(point.to_dict()), self.pipelines[point.denoiser]
        cost = count_compute(networks_of(pipeline.components), lambda: self.drawn(point, [0]), images=1)
        return {
            "point": point.to_dict(),
            "guidance": point.guidance(pipeline.log_prob).to_config(),
            "figures": self.ruler.measure(images, self.labels(range(point.images))),
            "compute": cost.to_dict(),
        }

    def drawn(self, point: GuidedPoint, indices: Sequence[int]) -> Tensor:
        """Images of global indices, each from its own generator, uint8."""
        pipeline = self.pipelines[point.denoiser]
        images = pipeline(
            self.labels(indices),
            guidance=point.guidance(pipeline.log_prob),
            num_inference_steps=point.steps,
            generator=[generator_for(self.arguments.seed, index) for index in indices],
            output_type="pt",
        ).images
        return (images * 255).round().to(torch.uint8).cpu()

    def labels(self, indices: Sequence[int]) -> Tensor:
        """The class of each image."""
        return torch.tensor(list(indices)) % self.models["classifier"].config.num_classes

    def images_of(self, point: Mapping[str, Any]) -> Tensor:
        """A point's images that have been drawn."""
        return generated_images(self.folder(point_of(point)), point["images"])

    def drawn_by(self, point: GuidedPoint) -> dict[str, Any]:
        """What a point's images depend on."""
        names = (point.denoiser, f"{point.denoiser}.vae", "classifier")
        weights = {name: self.weights[name] for name in names}
        return {"point": point.to_dict(), "weights": weights, "seed": self.arguments.seed}

    def made_of(self, point: GuidedPoint) -> dict[str, Any]:
        """What a point's figures depend on."""
        return {**self.drawn_by(point), **self.measured_by}

    def folder(self, point: GuidedPoint) -> Path:
        """Of a point's images: another one for other weights."""
        digest = hashlib.sha256(json.dumps(self.drawn_by(point)).encode()).hexdigest()[:8]
        return self.arguments.kept / "images" / f"{point.name}-{digest}"

    def real(self, count: int) -> dict[str, Any]:
        """The figures of as many training images, evenly spaced: how near one can expect to come."""
        images = load_split(self._parquet("train")).images
        images = images[:: max(1, len(images) // count)][:count]
        of = {**self.measured_by, "images": hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]}
        return self.kept.value(f"real-{count}", of, lambda: self.ruler.measure(images, None))

    def settings(self) -> dict[str, Any]:
        """What the points have in common."""
        names = ("steps", "long_steps", "num_images", "final_images", "interval", "seed", "batch_size")
        config = self.pipelines[UNCONDITIONAL].scheduler.config
        process = ("prediction_type", "beta_schedule", "num_train_timesteps", "timestep_spacing")
        return {
            **{name: getattr(self.arguments, name) for name in names},
            "scheduler": type(self.pipelines[UNCONDITIONAL].scheduler).__name__,
            **{name: config[name] for name in (*process, "variance_type")},
            "first_levels": {
                str(count): self.first_level(count)
                for count in [*self.arguments.steps, self.arguments.long_steps]
            },
            "groups": self.asked,
        }

    def first_level(self, steps: int) -> float:
        """Sigma / alpha at which a run starts."""
        scheduler = self.pipelines[UNCONDITIONAL].scheduler
        scheduler.set_timesteps(steps)
        return round(noise_level(scheduler, scheduler.timesteps[0]).noise_to_signal.item(), 3)

    def model(self, name: str) -> dict[str, Any]:
        """What a trained network is, and how it came about."""
        network = self.models[name]
        return {
            "class": type(network).__name__,
            "parameters_millions": parameters_millions(network),
            "megabytes_float16": round(sum(p.numel() for p in network.parameters()) * 2 / 1e6, 2),
            "weights": self.weights[name],
            "training": training_run(self.runs[name]),
        }

    def save(self, results: Mapping[str, Any], folder: Path) -> None:
        """Write the unconditional denoiser's pipeline, its default guidance that of its best final."""
        pipeline = self.pipelines[UNCONDITIONAL]
        best = best_guided(results)
        guided = ClassifierGuidedPipeline(**pipeline.components, default_guidance=best["guidance"])
        guided.save_pretrained(folder)

    def _parquet(self, split: str) -> Path:
        return self.arguments.data / f"{split}.parquet"


def check_held_out(judge: Mapping[str, Any], run: Path) -> None:
    """Refuse a judge of the seed that the guiding classifier was trained with.

    Raises:
        ValueError: They have the same.
    """
    seed = json.loads((run / "config.json").read_text())["training"]["seed"]
    if judge.get("training", {}).get("seed") == seed:
        raise ValueError(
            f"the judge and the classifier of {run} were both trained with seed {seed}: train the judge with "
            "another (benchmarks/studies/fashion_32/judge.py --seed)"
        )
