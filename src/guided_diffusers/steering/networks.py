"""Losses by networks that know clean images only: classifiers and CLIP of transformers, feature distances.

Each is given the predicted image and so needs no training on noise. What is a log-probability there is one
here, with the opposite sign: at scale 1 it is Bayes' rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from guided_diffusers.core.labels import class_ids
from guided_diffusers.core.prediction import at_least_float32
from guided_diffusers.evaluation.clip import ClipScorer, features_of
from guided_diffusers.evaluation.perceptual import MappedNetwork, feature_distance
from guided_diffusers.models.labels import class_names
from guided_diffusers.models.latents import decode
from guided_diffusers.steering.preprocessing import as_preprocessing


def decoder(vae: Any) -> Callable[[Tensor], Tensor]:
    """From standardised latents to images in [-1, 1], with a gradient: `LossGuidance(decode=decoder(vae))`.

    Args:
        vae: An autoencoder of `models.latents.IMAGE_AUTOENCODERS`.
    """
    return lambda latents: decode(vae, latents)


class ClassLoss:
    """-log p(label | image) of an image classifier of transformers.

    Args:
        model: What `AutoModelForImageClassification` gives, in evaluation mode.
        processor: Its image processor; or a function from images in [-1, 1] to pixel values.
        labels: The class of all images, or of each: indices, or names of the model's `id2label`.

    Raises:
        ValueError: A model in training mode, a label that it does not know, or a processor that does what is
            not known here.
    """

    def __init__(self, model: torch.nn.Module, processor: Any, labels: Any) -> None:
        _check_evaluating(model)
        self.ids = class_ids(labels, model.config.num_labels, class_names(model.config))
        self.model, self.pixels = model, as_preprocessing(processor)

    def __call__(self, images: Tensor) -> Tensor:
        """Nats, `(batch,)`, of images `(batch, 1 or 3, height, width)` in [-1, 1]."""
        pixels = self.pixels(images).to(next(self.model.parameters()).dtype)
        logits = at_least_float32(self.model(pixel_values=pixels).logits)
        return F.cross_entropy(logits, self.ids.to(logits.device).expand(len(logits)), reduction="none")


class TextLoss:
    """-tau cos(image, text) of a CLIPModel: -log p(text | image), up to a constant, as its training has it.

    Args:
        model: A `transformers.CLIPModel`, in evaluation mode.
        processor: Its `CLIPProcessor`.
        texts: One text for all images, or a list of one an image.

    Raises:
        ValueError: A model in training mode, or a processor that does what is not known here.
    """

    def __init__(self, model: torch.nn.Module, processor: Any, texts: str | list[str]) -> None:
        _check_evaluating(model)
        texts = [texts] if isinstance(texts, str) else texts
        self.directions = ClipScorer(model, processor).text_features(texts)
        self.model, self.pixels = model, as_preprocessing(processor)

    def __call__(self, images: Tensor) -> Tensor:
        """Nats, `(batch,)`, of images `(batch, 1 or 3, height, width)` in [-1, 1]."""
        pixels = self.pixels(images).to(next(self.model.parameters()).dtype)
        seen = F.normalize(
            at_least_float32(features_of(self.model.get_image_features(pixel_values=pixels))), dim=1
        )
        tau = self.model.logit_scale.exp().float()
        return -tau * (seen * self.directions.to(seen).expand_as(seen)).sum(1)


class FeatureLoss:
    """The distance of images to given ones in a network's features, as of `evaluation.perceptual`.

    Args:
        features: A network that shows its feature maps, such as
            `evaluation.features.feature_network("efficientnet-lite0")`.
        target: Images to be near to, `(batch or 1, 1 or 3, height, width)` in [-1, 1].
    """

    def __init__(self, features: MappedNetwork, target: Tensor) -> None:
        self.features = features
        with torch.no_grad():
            self.target = features.feature_maps(target.float())

    def __call__(self, images: Tensor) -> Tensor:
        """The distance, 0 to 4, `(batch,)`, of images of target's shape."""
        maps = self.features.feature_maps(images.float())
        own = [m.expand(len(images), -1, -1, -1).split(1) for m in self.target]
        pairs = zip(zip(*(m.split(1) for m in maps), strict=True), zip(*own, strict=True), strict=True)
        return torch.stack([feature_distance(one, other) for one, other in pairs])


def _check_evaluating(model: torch.nn.Module) -> None:
    if model.training:
        raise ValueError(f"the {type(model).__name__} is in training mode; allowed: model.eval()")
