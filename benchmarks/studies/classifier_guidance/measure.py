r"""Measures classifier guidance on Fashion-MNIST: both forms over scales and steps; with classifier-free.

    python benchmarks/studies/classifier_guidance/measure.py \
        --unconditional runs/fashion_latent_unconditional --conditional runs/fashion_latent_class \
        --classifier runs/fashion_noise_aware_classifier \
        --data data/fashion --judge cache/judge.safetensors --pictures docs/images \
        --save runs/fashion-32-classifier-guided --output model_cards/fashion-32-classifier-guided.json

Of each point: accuracy by a held-out classifier (another architecture, another seed), distances and recall to
the test images, and what an image costs in forwards and backwards. Image i is of class i modulo 10 and of
the noise of (seed, i), the same at every point. All points are under GuidedDDPMScheduler with the denoisers'
process: the mean-shift form is for ancestral schedulers only, and the forms are to be compared under one.
Three points, chosen by the rule that the JSON names, are finals with more images.

The points are two sweeps, one a denoiser, in the folder `--sweep`: what was stopped goes on, at the chunk of
images where it was, and `torchrun` or `accelerate launch` share the points among processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from figures import draw
from points import (
    DENOISERS,
    MIN_ACCURACY,
    RULE,
    UNCONDITIONAL,
    Values,
    best_guided,
    chosen_finals,
    first_round,
    point_of,
)

from guided_diffusers import (
    ClassifierGuidedPipeline,
    GuidedDDPMScheduler,
    ImagePipeline,
    NoiseAwareClassifier,
    noise_level,
)
from guided_diffusers.evaluation import Prompts, Reference, feature_network, load_judge, read_images
from guided_diffusers.evaluation.features import fingerprint_of
from guided_diffusers.evaluation.metrics import Metrics
from guided_diffusers.evaluation.reference import reference_features
from guided_diffusers.evaluation.runs import machine, parameters_millions, training_run, write_json
from guided_diffusers.evaluation.sweep import PipelineSampler, Sweep
from guided_diffusers.store.files import write_json_atomically
from guided_diffusers.store.launch import processes


def main() -> None:
    """Parses the command line, measures, writes JSON, pictures and the pipeline."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    study = Study(arguments)
    results = study.results()
    if not study.processes.is_main_process:
        return
    write_json(arguments.output, results)
    if arguments.pictures is not None:
        names = study.classifier.config.id2label
        names = [names[key] for key in sorted(names, key=int)]
        draw(results, study.images_of, names, arguments.pictures / results["name"])
    if arguments.save is not None:
        parts, best = study.pipelines[UNCONDITIONAL].components, best_guided(results)
        ClassifierGuidedPipeline(**parts, default_guidance=best["guidance"]).save_pretrained(arguments.save)


class Study:
    """The networks, the metrics, and a sweep a denoiser."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.processes = arguments, processes(arguments.device)
        self.runs = {name: getattr(arguments, name) for name in (*DENOISERS, "classifier")}
        self.judge, self.judged = load_judge(arguments.judge)
        check_held_out(self.judged, self.runs["classifier"])
        self.classifier = NoiseAwareClassifier.from_pretrained(self.runs["classifier"] / "final").eval()
        self.pipelines = {name: self.pipeline(name) for name in DENOISERS}
        self.models = {name: pipeline.unet for name, pipeline in self.pipelines.items()}
        self.models["classifier"] = self.classifier

        test = read_images(arguments.data / "test.parquet").images
        network = feature_network(arguments.features)
        reference = Reference(reference_features(test, network))
        self.metrics = Metrics(network=network, reference=reference, judge=self.judge)
        self.measured_by = {
            "features": [network.name, getattr(network, "fingerprint", "")],
            "judge": fingerprint_of(self.judge),
            "test": hashlib.sha256(test.numpy().tobytes()).hexdigest()[:16],
        }
        self.sweeps = {name: self.sweep(name) for name in DENOISERS}
        took = arguments.sweep / "seconds.json"
        self.seconds = json.loads(took.read_text()) if took.is_file() else 0.0
        self.then = time.perf_counter()

    def pipeline(self, name: str) -> ClassifierGuidedPipeline:
        """A denoiser with the one classifier, under the denoiser's own process, ancestral."""
        images = ImagePipeline.from_pretrained(self.runs[name] / "final")
        scheduler = GuidedDDPMScheduler.from_config(images.scheduler.config)
        pipeline = ClassifierGuidedPipeline(images.unet, scheduler, self.classifier, images.vae)
        return pipeline.to(self.arguments.device)

    def sweep(self, name: str) -> Sweep:
        """The points of a denoiser."""
        sampler = PipelineSampler(self.pipelines[name])
        return Sweep(
            sampler=sampler,
            metrics=self.metrics,
            prompts=self.classes,
            folder=self.arguments.sweep / name,
            made_of={**sampler.identity(), **self.measured_by},
            batch_size=self.arguments.batch_size,
            processes=self.processes,
            on_point=partial(self.on_point, name),
        )

    def on_point(self, name: str, record: Mapping[str, Any], number: int, count: int) -> None:
        """Say what is done, and keep the seconds that all runs on this folder took."""
        now = time.perf_counter()
        self.seconds, self.then = self.seconds + now - self.then, now
        print(f"{name} {number}/{count}: {record['point']['arm']}, {self.seconds:.0f} s", flush=True)
        if self.processes.is_main_process:
            write_json_atomically(self.arguments.sweep / "seconds.json", self.seconds)

    def classes(self, count: int) -> Prompts:
        """Image i is of class i modulo their number."""
        return Prompts(labels=torch.arange(count) % self.classifier.config.num_classes)

    def records(self, points: Sequence[Values]) -> list[dict[str, Any]]:
        """The figures of points, drawn and measured where they are not there."""
        found = {}
        for name, sweep in self.sweeps.items():
            own = [values for values in points if values["denoiser"] == name]
            records = sweep.measure([point_of(values, self.arguments.seed) for values in own])
            found |= {json.dumps(values): record for values, record in zip(own, records, strict=True)}
        return [self.record(values, found[json.dumps(values)]) for values in points]

    def record(self, values: Values, record: Mapping[str, Any]) -> dict[str, Any]:
        """A sweep's record as the JSON has it."""
        guidance = self.pipelines[values["denoiser"]].guidance_from_config(record["point"]["guidance"])
        return {**record, "point": values, "guidance": guidance.to_config()}

    def images_of(self, values: Values) -> torch.Tensor:
        """A point's images."""
        return self.sweeps[values["denoiser"]].images(point_of(values, self.arguments.seed))

    def results(self) -> dict[str, Any]:
        """Everything that the card says."""
        options, distance = self.arguments, self.metrics.distance("kernel")
        candidates, others = first_round(
            options.steps, options.long_steps, options.num_images, options.interval
        )
        records = self.records(candidates)
        finals = self.records(chosen_finals(records, distance, options.final_images))
        records += self.records(others)
        return {
            "name": options.output.stem,
            "settings": self.settings(),
            "features": self.metrics.network.name,
            "distance": distance,
            "rule": RULE,
            "min_accuracy": MIN_ACCURACY,
            "judge": {**self.judged, "class": type(self.judge).__name__, **self.measured_by},
            "models": {name: self.model(name) for name in self.runs},
            "real": {str(count): self.real(count) for count in (options.num_images, options.final_images)},
            "points": records,
            "finals": finals,
            "run": {
                "minutes": round(self.seconds / 60, 1),
                "device": options.device,
                "machine": machine(),
            },
        }

    def real(self, count: int) -> dict[str, Any]:
        """The figures of as many training images, evenly spaced: how near one can expect to come."""
        images = read_images(self.arguments.data / "train.parquet").images
        return self.metrics.measure(images[:: max(1, len(images) // count)][:count], None)

    def settings(self) -> dict[str, Any]:
        """What the points have in common."""
        names = ("steps", "long_steps", "num_images", "final_images", "interval", "seed", "batch_size")
        scheduler = self.pipelines[UNCONDITIONAL].scheduler
        process = ("prediction_type", "beta_schedule", "num_train_timesteps", "timestep_spacing")
        counts = [*self.arguments.steps, self.arguments.long_steps]
        return {
            **{name: getattr(self.arguments, name) for name in names},
            "scheduler": type(scheduler).__name__,
            **{name: scheduler.config[name] for name in (*process, "variance_type")},
            "first_levels": {str(count): self.first_level(count) for count in counts},
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
            "weights": fingerprint_of(network),
            "training": training_run(self.runs[name]),
        }


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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("unconditional", "conditional", "classifier"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--data", type=Path, required=True, help="folder of train.parquet and test.parquet")
    parser.add_argument("--judge", type=Path, required=True, help="what fashion_32/judge.py wrote")
    parser.add_argument("--features", default="efficientnet-lite0", help="of distances and recall")
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50], help="with every scale")
    parser.add_argument("--long-steps", type=int, default=250, help="with scales 0 and 2")
    parser.add_argument("--num-images", type=int, default=500, help="images a point")
    parser.add_argument("--final-images", type=int, default=5000, help="images a final")
    parser.add_argument("--interval", type=float, nargs=2, default=[0.0, 100.0],
                        help="where the classifier guides, sigma / alpha; the card says why")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="cpu", help="of denoisers and classifier")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sweep", type=Path, default=Path("runs/classifier_guidance"), help="see above")
    parser.add_argument("--pictures", type=Path, default=None, help="folder of the pictures")
    parser.add_argument("--save", type=Path, default=None,
                        help="folder for the unconditional pipeline, its default the best final")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="JSON; it names the pictures too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
