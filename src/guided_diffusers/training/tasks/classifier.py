"""Training of a classifier as a task of the engine: of clean images, or of noised ones.

Clean, the network is an ImageClassifier, all of it trained or, as a linear probe, its head alone: then the
features are computed once. Noise-aware, it sees q(x_t | x_0) at levels of any distribution and learns

    E_t E_{x_t} -log p(y | x_t),      x_t = alpha x_0 + sigma eps,

in pixels or in the latents of a given autoencoder. A training sample at position p has randomness of
(seed, p) alone: that of `images.py`, and its crop.

References:
    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), section 4.
    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (arXiv:1512.00567), section 7:
        label smoothing.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from guided_diffusers.core.declared import Declared, Whole, Within
from guided_diffusers.core.noise import NoiseLevel, broadcast
from guided_diffusers.core.process import Process
from guided_diffusers.core.randomness import Stream, seed_for
from guided_diffusers.evaluation.classification import (
    ClassifierReport,
    classifier_figure,
    classifier_report,
    reports_by_noise,
)
from guided_diffusers.losses import LEVEL_DISTRIBUTIONS, LevelDistribution, add_noise
from guided_diffusers.models.parts import check_channels
from guided_diffusers.training.data.images import Images
from guided_diffusers.training.data.labels import stratified_subset
from guided_diffusers.training.data.rows import StreamedLabels
from guided_diffusers.training.engine.config import TrainingConfig, option
from guided_diffusers.training.engine.log import ByBin
from guided_diffusers.training.engine.order import uniform_for
from guided_diffusers.training.engine.task import Metrics
from guided_diffusers.training.engine.trainer import make_optimizer
from guided_diffusers.training.tasks.kept import Classes, keep_classes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Declared):
    """What the classifier learns, and from how much."""

    label_smoothing: Annotated[float, Within(0, 1, "[)")] = option(
        0.0, "share of the target that is spread over all classes"
    )
    random_crop: Whole = option(0, "pad pixels by so many, edges repeated, and cut out a window; 0: do not")
    num_labels: int | None = option(None, "learn from so many rows, every class in its share; null: all")
    linear_probe: bool = option(False, "train the head alone, on features that are computed once")
    levels: LevelDistribution = option("uniform", "noise-aware: of the noise level")
    levels_arguments: dict[str, Any] = field(default_factory=dict, metadata={"help": "log_normal: mean, std"})

    def __post_init__(self) -> None:
        """Check the ranges, and that features stay what they are; ValueError names the field."""
        super().__post_init__()
        if self.linear_probe and self.random_crop:
            raise ValueError("linear_probe computes features once: random_crop must be 0")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is measured with the averaged weights."""

    split: str = option("test", "held-out split of the same data")
    images: int = option(500, "of it, so many while training: once in every bin, if noise-aware")
    final_images: int | None = option(None, "and so many at the end; null: all of them")
    noise_bins: int = option(10, "ranges of the noise level, equally likely in training")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages(Images):
    """Pixels or latents by row, and their classes.

    Attributes:
        labels: (rows,) int64, or a stream's.
        sources: how many of the rows are sources; the rest are their mirror images, in the same order.
    """

    labels: Tensor | StreamedLabels
    sources: int | None = None


class ClassifierTask:
    """Trains `classifier`.

    Args:
        classifier: an ImageClassifier; a NoiseAwareClassifier with a process.
        data: what to learn from.
        held_out: what to measure on.
        objective: what to learn.
        validation: what to measure.
        training: the engine's configuration.
        process: the noise levels; None: clean images.

    Raises:
        ValueError: options that do not go together.
    """

    averaged = ("classifier",)
    allows_bfloat16 = True

    def __init__(
        self,
        classifier: nn.Module,
        data: LabelledImages,
        held_out: LabelledImages,
        objective: ObjectiveConfig,
        validation: ValidationConfig,
        training: TrainingConfig,
        process: Process | None = None,
    ) -> None:
        if objective.linear_probe and process is not None:
            raise ValueError("linear_probe is of a classifier of clean images: noise_aware must be false")
        if objective.random_crop and data.latent:
            raise ValueError("random_crop is of pixels: it must be 0 in an autoencoder's latents")
        of = "the autoencoder's latent" if data.latent else "the image"
        check_channels("classifier", classifier.config.in_channels, of, data.shape[0])
        classes = classifier.config.num_classes
        highest = max(int(data.labels.max()), int(held_out.labels.max()))
        if highest >= classes:
            raise ValueError(f"there are labels up to {highest}, and classifier.num_classes is {classes}")
        self.data, self.held_out, self.seed = data, held_out, training.seed
        self.objective, self.validation = objective, validation
        self.levels = None
        if process is not None:
            self.levels = LEVEL_DISTRIBUTIONS[objective.levels](process, **objective.levels_arguments)
        self.source = data.source
        self.rows = None if self.source else torch.arange(len(data.labels))
        for name in ("num_labels", "linear_probe"):
            if self.source and (given := getattr(objective, name)):
                raise ValueError(
                    f"objective.{name} is {given}, which needs rows by number; allowed with data.stream: "
                    f"{'null' if name == 'num_labels' else 'false'}"
                )
        if objective.num_labels is not None:
            seed = seed_for(self.seed, Stream.SUBSET)
            self.rows = stratified_subset(data.labels, objective.num_labels, seed, data.sources)
        self.num_samples = 0 if self.source else len(self.rows)
        self.modules: dict[str, nn.Module] = {"classifier": classifier}
        trained, self.features = classifier, None
        if objective.linear_probe:
            classifier.encoder.requires_grad_(False)
            trained, self.features = classifier.head, frozen_features(classifier, data, self.rows)
        self.optimizers = {"classifier": make_optimizer(training, trained.parameters())}

    def begin(self, folder: Path) -> None:
        """Write the run's classes."""
        config = self.modules["classifier"].config
        names = None if config.id2label is None else [config.id2label[key] for key in sorted(config.id2label)]
        keep_classes(folder, Classes(count=config.num_classes, names=names))

    def batch(self, indices: list[int], positions: list[int]) -> dict[str, Any]:
        """Images or features, labels; noise-aware, eps and noise levels, which stay on the CPU in float64."""
        rows = indices if self.source else self.rows[indices].tolist()
        batch: dict[str, Any] = {"labels": self.data.labels[rows]}
        if self.features is not None:
            return {**batch, "features": self.features[indices]}
        batch |= self.data.drawn(rows, positions, self.seed, self.levels)
        batch["images"] = self.cropped(batch["images"], positions)
        return batch

    def cropped(self, images: Tensor, positions: list[int]) -> Tensor:
        """A window of each padded image, (batch, channels, height, width), at a place of its position's."""
        margin = self.objective.random_crop
        if margin == 0:
            return images
        height, width = images.shape[2:]
        padded = functional.pad(images, (margin,) * 4, mode="replicate")
        top, left = (
            (uniform_for(seed_for(self.seed, stream), positions) * (2 * margin + 1)).long().tolist()
            for stream in (Stream.CROP_ROW, Stream.CROP_COLUMN)
        )
        windows = zip(padded, top, left, strict=True)
        return torch.stack([image[:, y : y + height, x : x + width] for image, y, x in windows])

    def losses(self, batch: dict[str, Any]) -> Iterator[tuple[str, Tensor, Metrics]]:
        """One loss: the mean over samples of the cross-entropy, with smoothed labels."""
        classifier, labels = self.modules["classifier"], batch["labels"]
        if "images" in batch:
            batch = {**batch, "images": self.data.seen(batch["images"])}
        if self.features is not None:
            logits = classifier.head(batch["features"])
        elif self.levels is None:
            logits = classifier(batch["images"])
        else:
            level = batch["level"]
            logits = noisy_logits(classifier, add_noise(batch["images"], batch["noise"], level), level)
        logits, smoothing = logits.float(), self.objective.label_smoothing
        each = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        right = (logits.detach().argmax(dim=1) == labels).float()
        metrics: dict[str, Any] = {"accuracy": right}
        if self.levels is not None:
            metrics["loss_by_noise"] = ByBin(each.detach(), batch["bins"])
            metrics["accuracy_by_noise"] = ByBin(right, batch["bins"])
        yield "classifier", each.mean(), metrics

    def reports(self, classifier: nn.Module, count: int | None) -> list[ClassifierReport]:
        """The figures on held-out images: one report, or, noise-aware, one for each range of noise."""
        device = next(classifier.parameters()).device
        images, labels = self.held_out.first(count), self.held_out.labels[:count]
        if self.levels is None:
            with torch.no_grad():
                logits = torch.cat([classifier(part.to(device)).cpu() for part in images.split(250)])
            return [classifier_report(logits, labels)]
        return reports_by_noise(
            lambda sample, level: noisy_logits(classifier, sample, level),
            images.to(device),
            labels.to(device),
            self.levels,
            bins=self.validation.noise_bins,
            seed=seed_for(self.seed, Stream.MEASURED),
        )

    def validate(self, images_seen: int, modules: Mapping[str, nn.Module], folder: Path) -> Metrics:
        """Measure; <images seen>.json and, noise-aware, <images seen>.png, and the means to the log."""
        reports = self.reports(modules["classifier"], self.validation.images)
        write_reports(reports, folder / f"{images_seen:012d}", f"{images_seen:,} images seen")
        return report_metrics(reports)

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Write the classifier, and metrics.json and metrics.png of held-out images."""
        classifier = modules["classifier"]
        write_reports(self.reports(classifier, self.validation.final_images), folder / "metrics")
        classifier.save_pretrained(folder)


def noisy_logits(classifier: nn.Module, sample: Tensor, level: NoiseLevel) -> Tensor:
    """What a noise-aware classifier says of x_t, (batch, ...), unscaled: (batch, classes)."""
    return classifier(broadcast(level.input_scale, sample) * sample, level.timestep)


@torch.no_grad()
def frozen_features(
    classifier: nn.Module, data: LabelledImages, rows: Tensor, batch_size: int = 250
) -> Tensor:
    """The features of some rows (of latents: of their means), in evaluation mode; (rows, features) on CPU."""
    was_training, device = classifier.training, next(classifier.parameters()).device
    classifier.eval()
    parts = []
    for part in rows.split(batch_size):
        images = data.images.sample(part.tolist(), torch.zeros(len(part), *data.shape))
        parts.append(classifier.features(images.to(device)).float().cpu())
    classifier.train(was_training)
    return torch.cat(parts)


def report_metrics(reports: Sequence[ClassifierReport], accuracy: str = "accuracy") -> Metrics:
    """The reports' means for the log and, of several, each figure `_by_noise`; `accuracy` by that name."""
    metrics: dict[str, Tensor | float | ByBin] = {}
    for name in ("accuracy", "calibration_error", "cross_entropy", "gradient_norm"):
        column = [getattr(report, name) for report in reports]
        if column[0] is None:
            continue
        values = torch.tensor([getattr(value, "value", value) for value in column])
        called = accuracy if name == "accuracy" else name
        metrics[called] = values.mean()
        if reports[0].noise_to_signal is not None:
            metrics[f"{called}_by_noise"] = ByBin(values, torch.arange(len(values)), len(values))
    return metrics


def write_reports(reports: Sequence[ClassifierReport], stem: Path, title: str = "") -> None:
    """Reports as <stem>.json; those by noise level as <stem>.png too, where matplotlib is there."""
    stem.with_suffix(".json").write_text(json.dumps([report.to_dict() for report in reports], indent=1))
    if reports[0].noise_to_signal is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no %s.png: drawing needs matplotlib, the extra `eval`", stem)
        return
    classifier_figure(reports, title).save(stem.with_suffix(".png"))
