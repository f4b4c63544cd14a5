"""Contrastive training of images and texts as a task of the engine: CLIP of clean images, or of noised ones.

Clean, the network is transformers' CLIPModel; noise-aware, a NoiseAwareCLIP, whose images are q(x_t | x_0) at
levels of any distribution, in pixels or in the latents of a given autoencoder. Every image of a batch has a
level of its own: nothing in a text says which, so the levels cancel and the similarity tends to
log p(x_t | c, t) / p(x_t | t) (models/noise_aware_clip.py).

A training sample at position p has randomness of (seed, p) alone: which of its captions, its level, its
noise, its draw from the latents' posterior.

Validation is retrieval, R@1: the fraction of held-out images whose first caption, among the different first
captions of all of them, is the most similar; noise-aware, at each range of noise. With it come the
calibration and the gradient's length of log p(c | x_t), the softmax over these captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor, nn
from torch.nn.functional import normalize

from guided_diffusers.core.condition import tokenize
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.core.process import Process
from guided_diffusers.core.randomness import Stream, seed_for
from guided_diffusers.evaluation.classification import ClassifierReport, classifier_report, reports_by_noise
from guided_diffusers.evaluation.clip import features_of
from guided_diffusers.losses import LEVEL_DISTRIBUTIONS, LevelDistribution, add_noise
from guided_diffusers.models.noise_aware_clip import NoiseAwareCLIP
from guided_diffusers.models.parts import check_channels
from guided_diffusers.training.data.images import Images
from guided_diffusers.training.engine.config import TrainingConfig, option
from guided_diffusers.training.engine.log import ByBin
from guided_diffusers.training.engine.parallel import gathered, own_rows
from guided_diffusers.training.engine.task import Metrics
from guided_diffusers.training.engine.trainer import make_optimizer
from guided_diffusers.training.tasks.classifier import (
    ValidationConfig,
    noisy_logits,
    report_metrics,
    write_reports,
)
from guided_diffusers.training.tasks.contrastive import contrastive_loss, limit_temperature
from guided_diffusers.training.tasks.encoded_text import JointText
from guided_diffusers.training.tasks.kept import keep_tokenizer


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """At which noise levels a noise-aware CLIP learns."""

    levels: LevelDistribution = option("uniform", "noise-aware: of the noise level")
    levels_arguments: dict[str, Any] = field(default_factory=dict, metadata={"help": "log_normal: mean, std"})


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionedImages(Images):
    """Pixels or latents by row, and their captions.

    Attributes:
        captions: (rows, positions) -> one caption a row.
    """

    captions: Callable[[list[int], list[int]], list[str]]


class ClipTask:
    """Trains `clip`.

    Args:
        clip: a CLIPModel; a NoiseAwareCLIP with a process.
        tokenizer: of its texts.
        data: what to learn from.
        vocabulary: every caption of the data; of a stream some.
        held_out: what to measure on.
        held_out_captions: a caption of each row of it.
        noise: levels to learn at.
        validation: what to measure.
        training: the engine's configuration.
        process: the noise levels; None: clean images.

    Raises:
        ValueError: a network of the other kind, or held-out captions that are all the same.
    """

    averaged = ("clip",)
    allows_bfloat16 = True

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Any,
        data: CaptionedImages,
        vocabulary: Sequence[str],
        held_out: Images,
        held_out_captions: Sequence[str],
        noise: NoiseConfig,
        validation: ValidationConfig,
        training: TrainingConfig,
        process: Process | None = None,
    ) -> None:
        if isinstance(clip, NoiseAwareCLIP) != (process is not None):
            raise ValueError(f"clip is a {type(clip).__name__}: a process goes with NoiseAwareCLIP alone")
        vision = clip.config.vision_config if process is None else clip.image_encoder.config
        seen = vision.num_channels if process is None else vision.in_channels
        of = "the autoencoder's latent" if data.latent else "the image"
        check_channels("clip", seen, of, data.shape[0])
        places = {text: number for number, text in enumerate(dict.fromkeys(held_out_captions))}
        if len(places) < 2:
            raise ValueError(
                f"held-out captions are all {held_out_captions[0]!r}: retrieval needs two or more"
            )
        self.tokenizer, self.data, self.held_out = tokenizer, data, held_out
        self.text = JointText(tokenizer, vocabulary if data.source is None else None)
        self.candidates = tokenize(tokenizer, list(places))[0]
        self.labels = torch.tensor([places[text] for text in held_out_captions])
        self.validation, self.seed = validation, training.seed
        self.num_samples, self.source = data.num_samples, data.source
        self.levels = None
        if process is not None:
            self.levels = LEVEL_DISTRIBUTIONS[noise.levels](process, **noise.levels_arguments)
        self.modules: dict[str, nn.Module] = {"clip": clip}
        others = [parameter for parameter in clip.parameters() if parameter is not clip.logit_scale]
        groups = [{"params": others}, {"params": [clip.logit_scale], "weight_decay": 0.0}]
        self.optimizers = {"clip": make_optimizer(training, groups)}

    def begin(self, folder: Path) -> None:
        """Write the run's tokenizer."""
        keep_tokenizer(folder, self.tokenizer)

    def batch(self, indices: list[int], positions: list[int]) -> dict[str, Any]:
        """Images and the tokens of their captions; noise-aware, eps and noise levels."""
        text = self.text.rows(self.data.captions(indices, positions))
        return {"text": text, **self.data.drawn(indices, positions, self.seed, self.levels)}

    def losses(self, batch: dict[str, Any]) -> Iterator[tuple[str, Tensor, Metrics]]:
        """One loss: the mean over the samples of all processes of the contrastive loss."""
        clip, level, sample = self.modules["clip"], batch.get("level"), self.data.seen(batch["images"])
        limit_temperature(clip.logit_scale)
        if level is not None:
            sample = add_noise(sample, batch["noise"], level)
        images = gathered(image_directions(clip, sample, level))
        texts, own = different_texts(clip, batch["text"])
        each = contrastive_loss(images, texts, own, clip.logit_scale.exp())
        mine = own_rows(len(sample))
        found = (images.detach()[mine] @ texts.detach().T).argmax(dim=1)
        right = (found == own[mine]).float()
        metrics: dict[str, Any] = {"retrieval": right, "temperature": clip.logit_scale.detach().exp()}
        if level is not None:
            metrics["loss_by_noise"] = ByBin(each.detach()[mine], batch["bins"])
            metrics["retrieval_by_noise"] = ByBin(right, batch["bins"])
        yield "clip", each.mean(), metrics

    def reports(self, clip: nn.Module, count: int | None) -> list[ClassifierReport]:
        """The figures on held-out images: one report, or, noise-aware, one for each range of noise."""
        device = clip.logit_scale.device
        with torch.no_grad():
            candidates = clip.logit_scale.exp() * text_directions(clip, self.candidates.to(device))
        images, labels = self.held_out.first(count).to(device), self.labels[:count].to(device)

        def similarities(sample: Tensor, level: NoiseLevel | None) -> Tensor:
            return image_directions(clip, sample, level) @ candidates.T

        if self.levels is None:
            with torch.no_grad():
                logits = torch.cat([similarities(part, None) for part in images.split(250)])
            return [classifier_report(logits.cpu(), labels.cpu())]
        bins, seed = self.validation.noise_bins, seed_for(self.seed, Stream.MEASURED)
        return reports_by_noise(similarities, images, labels, self.levels, bins=bins, seed=seed)

    def validate(self, images_seen: int, modules: Mapping[str, nn.Module], folder: Path) -> Metrics:
        """Measure; <images seen>.json and, noise-aware, <images seen>.png, and the means to the log."""
        reports = self.reports(modules["clip"], self.validation.images)
        title = f"R@1 of {len(self.candidates)} captions, {images_seen:,} images seen"
        write_reports(reports, folder / f"{images_seen:012d}", title)
        return report_metrics(reports, accuracy="retrieval")

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        """Write the model, its tokenizer (of three channels, a CLIPProcessor), and metrics.json and .png."""
        clip = modules["clip"]
        write_reports(self.reports(clip, self.validation.final_images), folder / "metrics")
        clip.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.levels is None and self.data.shape[0] == 3:
            from transformers import CLIPImageProcessor, CLIPProcessor  # says what it lacks when imported

            side = self.data.shape[-1]
            mean_and_std = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
            images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side, **mean_and_std)
            CLIPProcessor(images, self.tokenizer).save_pretrained(folder)


def different_texts(clip: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different texts of all processes as directions, and the one of each sample of all processes.

    Each process embeds those of its own samples, of equal ones one; of a text that several have, the first
    process's embedding counts.

    Args:
        clip: the model.
        rows: tokens of this process's samples, (batch, length).

    Returns:
        (texts, d) of length 1, and (processes x batch,) int64.
    """
    ids, inverse = torch.unique(rows, dim=0, return_inverse=True)
    directions = gathered(text_directions(clip, ids)[inverse])
    different, own = torch.unique(gather(rows), dim=0, return_inverse=True)
    places = torch.arange(len(own), device=own.device)
    first = own.new_full((len(different),), len(own)).scatter_reduce(0, own, places, "amin")
    return directions[first], own


def text_directions(clip: nn.Module, input_ids: Tensor) -> Tensor:
    """Texts of tokens (texts, length) as directions, (texts, d) of length 1, float32."""
    if isinstance(clip, NoiseAwareCLIP):
        return clip.encode_text(input_ids)
    return normalize(features_of(clip.get_text_features(input_ids=input_ids)).float(), dim=1)


def image_directions(clip: nn.Module, sample: Tensor, level: NoiseLevel | None) -> Tensor:
    """Images, or noised and unscaled x_t at a level, as directions, (batch, d) of length 1, float32."""
    if isinstance(clip, NoiseAwareCLIP):
        return normalize(noisy_logits(clip.image_encoder, sample, level).float(), dim=1)
    return normalize(features_of(clip.get_image_features(pixel_values=sample)).float(), dim=1)
