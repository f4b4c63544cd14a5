"""Agreement of images with their texts by a CLIP model: the CLIP score, and retrieval of the right caption.

    score(image, text) = max(0, 100 cos(image, text))

Retrieval asks for each image which of 100 captions, its own and 99 others, lies nearest: R@1 is the fraction
of images whose own does. Captions that say the same in other words count as wrong, so on a data set of few
classes even real images stay well below 1: report theirs beside a model's.

References:
    Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning" (arXiv:2104.08718).
    Xu et al., "AttnGAN" (arXiv:1711.10485), section 4.1: R-precision, one caption among 100.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_same_shape, check_that
from guided_diffusers.core.condition import cut_texts
from guided_diffusers.core.randomness import generator_for
from guided_diffusers.evaluation.bootstrap import mean_estimate
from guided_diffusers.evaluation.estimate import Estimate, wilson_estimate
from guided_diffusers.evaluation.images import check_pixels
from guided_diffusers.models.transformers_models import check_vocabulary, load_fitting

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClipFigures:
    """What a CLIP model says of images and their texts.

    Attributes:
        score: Mean CLIP score, in [0, 100].
        retrieval: R@1, the fraction of images whose own caption is the nearest; None where it was not asked
            for.
        candidates: Captions to choose from, the own one included.
    """

    score: Estimate
    retrieval: Estimate | None
    candidates: int


class ClipScorer:
    """A CLIP model that embeds images and texts.

    Args:
        model: A `transformers.CLIPModel`, or one with its `get_image_features` and `get_text_features`.
        processor: Its `CLIPProcessor`: anything with `image_processor` and `tokenizer`.
    """

    def __init__(self, model: torch.nn.Module, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def from_pretrained(cls, name: str | Path) -> ClipScorer:
        """A model with its processor from a folder or a Hub repository; OSError where it is no CLIPModel."""
        from transformers import AutoProcessor, CLIPModel

        model, processor = load_fitting(CLIPModel, name), AutoProcessor.from_pretrained(name)
        check_vocabulary(processor.tokenizer, str(name))
        return cls(model, processor)

    @torch.no_grad()
    def image_features(self, images: Tensor, batch_size: int = 100) -> Tensor:
        """Directions of images.

        Args:
            images: `(count, 1 or 3, height, width)` uint8.
            batch_size: How many at a time; it changes nothing but rounding.

        Returns:
            `(count, d)` float32 of length 1, on the CPU.

        Raises:
            ValueError: Images that are not 8-bit, or of another shape.
        """
        check_pixels("images", images, (1, 3))
        parts = []
        for part in images.split(batch_size):
            coloured = list(part.cpu().expand(-1, 3, -1, -1).numpy())
            pixels = self.processor.image_processor(
                images=coloured, return_tensors="pt", input_data_format="channels_first"
            ).pixel_values
            parts.append(_direction(self.model.get_image_features(pixel_values=self._placed(pixels))))
        return torch.cat(parts)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str], batch_size: int = 100) -> Tensor:
        """Directions of texts, `(len(texts), d)` float32 of length 1, on the CPU; one cut short is told."""
        parts, length = [], self.model.config.text_config.max_position_embeddings
        if told := cut_texts(self.processor.tokenizer, texts, length):
            logger.warning(told)
        for first in range(0, len(texts), batch_size):
            tokens = self.processor.tokenizer(
                list(texts[first : first + batch_size]),
                padding="max_length",  # so that a text's direction does not depend on its batch
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )
            parts.append(
                _direction(
                    self.model.get_text_features(
                        input_ids=tokens.input_ids.to(self._device),
                        attention_mask=tokens.attention_mask.to(self._device),
                    )
                )
            )
        return torch.cat(parts)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _placed(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._device, next(self.model.parameters()).dtype)


def clip_scores(image_features: Tensor, text_features: Tensor) -> Tensor:
    """The CLIP score of each image with its text, `(count,)` in [0, 100].

    Args:
        image_features: `(count, d)` of length 1.
        text_features: `(count, d)` of length 1, the text of each image.

    Raises:
        ValueError: Shapes that differ.
    """
    check_same_shape("text_features", text_features, "image_features", image_features)
    return 100 * (image_features * text_features).sum(1).clamp(min=0)


def retrieved(
    image_features: Tensor,
    text_features: Tensor,
    texts: Sequence[str],
    *,
    candidates: int = 100,
    seed: int = 0,
) -> Tensor:
    """Whether each image's own text lies nearer to it than all others of its candidates.

    The others are drawn without repetition from the different texts of all images, by one generator an image:
    they depend neither on batches nor on what a model drew. A tie with another text is a miss.

    Args:
        image_features: `(count, d)` of length 1.
        text_features: `(count, d)` of length 1, the text of each image.
        texts: The text of each image; equal ones are one candidate.
        candidates: How many texts there are to choose from, the own one included.
        seed: Of the drawing of the others.

    Returns:
        `(count,)` bool.

    Raises:
        ValueError: Fewer different texts than candidates, or lengths that differ.
    """
    check_same_shape("text_features", text_features, "image_features", image_features)
    check_that(len(texts) == len(image_features), "texts", texts, f"{len(image_features)}, one an image")
    places: dict[str, int] = {}
    for index, text in enumerate(texts):
        places.setdefault(text, index)
    most = f"from 2 to {len(places)}, the different texts: lower it, or use more captions"
    check_that(2 <= candidates <= len(places), "candidates", candidates, most)
    numbers = {text: number for number, text in enumerate(places)}
    own = torch.tensor([numbers[text] for text in texts])
    different = text_features[torch.tensor(list(places.values()))]
    hits = []
    for index, image in enumerate(image_features):
        drawn = torch.randperm(len(places) - 1, generator=generator_for(seed, index))[: candidates - 1]
        others = drawn + (drawn >= own[index])  # all but the own one
        hits.append(bool(different[own[index]] @ image > (different[others] @ image).max()))
    return torch.tensor(hits)


def clip_figures(
    scorer: ClipScorer,
    images: Tensor,
    texts: Sequence[str],
    *,
    candidates: int | None = 100,
    batch_size: int = 100,
    resamples: int = 1000,
    seed: int = 0,
) -> ClipFigures:
    """The mean CLIP score (bootstrap interval) and R@1 (Wilson's) of images with their texts.

    Args:
        scorer: The CLIP model.
        images: `(count, 1 or 3, height, width)` uint8.
        texts: One an image.
        candidates: Captions to retrieve from; None leaves retrieval out.
        batch_size: Images or texts at a time.
        resamples: Bootstrap resamples of the score.
        seed: Of the resampling and of the other captions.

    Raises:
        ValueError: As `clip_scores` and `retrieved`.
    """
    check_that(len(texts) == len(images), "texts", texts, f"{len(images)}, one an image")
    of_images = scorer.image_features(images, batch_size)
    different = list(dict.fromkeys(texts))
    once = dict(zip(different, scorer.text_features(different, batch_size), strict=True))
    of_texts = torch.stack([once[text] for text in texts])
    retrieval = None
    if candidates is not None:
        hits = retrieved(of_images, of_texts, texts, candidates=candidates, seed=seed)
        retrieval = wilson_estimate(int(hits.sum()), len(hits))
    return ClipFigures(
        score=mean_estimate(clip_scores(of_images, of_texts), resamples=resamples, seed=seed),
        retrieval=retrieval,
        candidates=0 if candidates is None else candidates,
    )


def features_of(output: Any) -> Tensor:
    """The embeddings `(count, d)` in what a CLIPModel's `get_..._features` gives, in any transformers."""
    return output if isinstance(output, Tensor) else output.pooler_output  # a tensor before 5


def _direction(output: Any) -> Tensor:
    return torch.nn.functional.normalize(features_of(output).float(), dim=1).cpu()
