"""Figures of what a denoiser draws while it trains: a distance to held-out images, and agreement.

At every validation the same images are drawn, from the same noise, for the captions or classes of the same
held-out rows, and compared with these rows. So the figures of a run can be compared with one another; those
of a checkpoint, with intervals and more images, are what `guided-diffusers evaluate` is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from guided_diffusers.core.checks import check_that
from guided_diffusers.core.declared import Declared, Whole
from guided_diffusers.core.randomness import Stream, generator_for, seed_for
from guided_diffusers.evaluation import feature_network, kernel_distance, load_judge
from guided_diffusers.evaluation.agreement import agreement
from guided_diffusers.evaluation.clip import ClipScorer, clip_figures
from guided_diffusers.evaluation.features import extract_features
from guided_diffusers.evaluation.grid import to_bytes
from guided_diffusers.evaluation.judge import judge_images
from guided_diffusers.evaluation.report import figure_names
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.labels import class_labels
from guided_diffusers.training.data.stream import open_held_out
from guided_diffusers.training.engine.config import option
from guided_diffusers.training.engine.parallel import by_shares

TOGETHER = 32
"""Images drawn at once."""


@dataclass(frozen=True, kw_only=True)
class MeasuresConfig(Declared):
    """What is measured of drawn images at each validation."""

    images: Whole = option(0, "images to draw for it, of so many held-out rows; 0: nothing is measured")
    split: str = option("test", "where these rows are from")
    features: str = option("efficientnet-lite0", "of the kernel distance: see `guided-diffusers evaluate`")
    judge: str | None = option(None, "a classifier's file: its agreement with the rows' classes")
    label_column: str | None = option(None, "column of these classes")
    clip: str | None = option(None, "a CLIP model, folder or Hub id: the CLIP score of the rows' captions")


class Measures:
    """The held-out rows, and what measures images drawn for them.

    Args:
        config: what to measure.
        data: the training data's configuration, of which the split is another.
        seed: of the noise.

    Raises:
        ValueError: a judge without a column of classes, or CLIP without one of captions.
    """

    def __init__(self, config: MeasuresConfig, data: DataConfig, seed: int) -> None:
        need = "given, with measures.judge"
        check_that(config.judge is None or config.label_column, "measures.label_column", None, need)
        need = "given, with measures.clip"
        check_that(config.clip is None or data.caption_column, "data.caption_column", None, need)
        rows = open_held_out(replace(data, buckets=None), config.split, config.images)
        numbers = range(len(rows))
        self.seed, self.network = seed_for(seed, Stream.PROMPTS_DRAWN), feature_network(config.features)
        self.real = extract_features(self.network, to_bytes(rows.pixels(numbers)))
        self.captions = rows.captions(numbers, numbers, seed) if data.caption_column else None
        named = config.label_column
        self.labels = class_labels(rows, named)[0] if named is not None else None
        self.judge = None if config.judge is None else load_judge(config.judge)[0]
        self.clip = None if config.clip is None else ClipScorer.from_pretrained(config.clip)

    def draw(self, pipeline: DiffusionPipeline, arguments: Mapping[str, Any]) -> Tensor:
        """An image for each row, (rows, C, H, W) uint8; every process calls it, and draws a share.

        Args:
            pipeline: draws.
            arguments: of its call, as for validation's pictures; prompts or classes become the rows' own.
        """
        parts = self._parts()
        drawn = by_shares(
            len(parts), lambda chosen: [self._drawn(pipeline, arguments, parts[n]) for n in chosen]
        )
        return torch.cat(drawn)

    def figures(self, images: Tensor) -> dict[str, float]:
        """The figures, by name, of what `draw` gave."""
        name = figure_names(self.network.name)[1]
        figures = {name: kernel_distance(self.real, extract_features(self.network, images))}
        if self.judge is not None:
            figures["agreement"] = agreement(judge_images(self.judge, images), self.labels).overall.value
        if self.clip is not None:
            found = clip_figures(self.clip, images, self.captions, candidates=None, resamples=1)
            figures["clip_score"] = found.score.value
        return figures

    def _parts(self) -> list[range]:
        count = len(self.real)
        return [range(first, min(first + TOGETHER, count)) for first in range(0, count, TOGETHER)]

    def _drawn(self, pipeline: DiffusionPipeline, arguments: Mapping[str, Any], rows: range) -> Tensor:
        own: dict[str, Any] = {}
        if "prompt" in arguments:
            own |= {"prompt": [self.captions[row] for row in rows], "num_images_per_prompt": 1}
        if "negative_prompt" in arguments:
            own["negative_prompt"] = [""] * len(rows)
        if "class_labels" in arguments:
            own["class_labels"] = [int(self.labels[row]) for row in rows]
        if "batch_size" in arguments:
            own["batch_size"] = len(rows)
        generators = [generator_for(self.seed, row) for row in rows]
        drawn = pipeline(**{**arguments, **own, "output_type": "pil"}, generator=generators).images
        pixels = [np.asarray(image) for image in drawn]
        return torch.from_numpy(np.stack([p[None] if p.ndim == 2 else p.transpose(2, 0, 1) for p in pixels]))


def make_measures(
    config: MeasuresConfig, data: DataConfig, seed: int, label_column: str | None = None
) -> Measures | None:
    """What measures; None where nothing is to be. `label_column` is that of a denoiser by class."""
    if config.images == 0:
        return None
    return Measures(replace(config, label_column=config.label_column or label_column), data, seed)
