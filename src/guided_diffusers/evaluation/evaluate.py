"""One set of images, from whatever model, measured against real ones: every figure that its data allow."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

from guided_diffusers.evaluation.agreement import agreement
from guided_diffusers.evaluation.clip import ClipScorer, clip_figures
from guided_diffusers.evaluation.diversity import prompt_diversity
from guided_diffusers.evaluation.features import FeatureNetwork, extract_features
from guided_diffusers.evaluation.images import ImageSet
from guided_diffusers.evaluation.judge import Judge, judge_images
from guided_diffusers.evaluation.nearest import closest_pairs, memorisation
from guided_diffusers.evaluation.reference import Reference, reference_features
from guided_diffusers.evaluation.report import distance_report


def evaluate_images(
    generated: ImageSet,
    real: ImageSet,
    network: FeatureNetwork,
    *,
    judge: Judge | None = None,
    clip: ClipScorer | None = None,
    training: ImageSet | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], Image.Image | None]:
    """All figures of a set of generated images.

    Args:
        generated: The images; with labels for `judge`, with captions for `clip` and for diversity.
        real: Real images; the model should not have been trained on them.
        network: The feature network of the distances.
        judge: A classifier for agreement with the labels; None for none.
        clip: A CLIP model for agreement with the captions; None for none.
        training: The images that the model was trained on, to look for copies of them; None for none.
        resamples: Bootstrap resamples of the intervals.
        seed: Of the resampling.

    Returns:
        The figures as JSON values by name, each with its interval; and with `training` the picture of the
        closest pairs, else None.

    Raises:
        ValueError: A judge without labels, a CLIP model without captions, or images that do not fit.
    """
    asked = "needs the {} that each image was asked for: {} in metadata.jsonl"
    if judge is not None:
        generated.need("labels", "agreement " + asked.format("class", "label"))
    if clip is not None:
        generated.need("captions", "the CLIP score " + asked.format("text", "text"))
    features = extract_features(network, generated.images)
    report = distance_report(
        Reference(reference_features(real.images, network)),
        features,
        network.name,
        resamples=resamples,
        seed=seed,
    )
    figures: dict[str, Any] = {name: estimate.to_dict() for name, estimate in report.items()}
    if judge is not None:
        figures["agreement"] = agreement(
            judge_images(judge, generated.images), generated.labels
        ).overall.to_dict()
    if clip is not None:
        figures |= _clip(clip, generated, resamples, seed)
    if (prompts := _prompts(generated)) is not None:
        diverse = prompt_diversity(features, prompts, resamples=resamples, seed=seed)
        figures[f"diversity-{network.name}"] = diverse.overall.to_dict()
    picture = None
    if training is not None:
        found, picture = _copies(generated.images, real.images, training.images, resamples, seed)
        figures |= found
    return figures, picture


def _clip(clip: ClipScorer, generated: ImageSet, resamples: int, seed: int) -> dict[str, Any]:
    texts = [captions[0] for captions in generated.captions]
    candidates = min(100, len(set(texts)))
    figures = clip_figures(
        clip,
        generated.images,
        texts,
        candidates=candidates if candidates > 1 else None,
        resamples=resamples,
        seed=seed,
    )
    values = {"clip_score": figures.score.to_dict()}
    if figures.retrieval is not None:
        values[f"clip_R@1_of_{figures.candidates}"] = figures.retrieval.to_dict()
    return values


def _prompts(generated: ImageSet) -> list[Any] | None:
    """What images share: their text, else their class; None where no two share anything."""
    shared = []
    if generated.captions is not None:
        shared.append([captions[0] for captions in generated.captions])
    if generated.labels is not None:
        shared.append(generated.labels.tolist())
    return next((values for values in shared if len(set(values)) < len(values)), None)


def _copies(
    generated: Tensor, real: Tensor, training: Tensor, resamples: int, seed: int
) -> tuple[dict[str, Any], Image.Image]:
    """Distances to the training images in pixels, beside those of the real ones."""
    if not generated.shape[1:] == real.shape[1:] == training.shape[1:]:
        shapes = ", ".join(str(tuple(images.shape[1:])) for images in (generated, real, training))
        raise ValueError(
            f"generated, real and training images have shapes {shapes}: copies are sought in "
            "pixels, so bring them to one size"
        )
    found = memorisation(generated, training, real, resamples=resamples, seed=seed)
    picture = closest_pairs(generated, training, found.generated)
    return {
        "nearest_training_image_ratio": found.ratio.to_dict(),
        "copies_of_training_images": found.copies.to_dict(),
    }, picture


def with_prompts(images: Tensor, texts: list[str] | None, labels: Tensor | None) -> ImageSet:
    """Generated images with what each was asked for."""
    return ImageSet(images=images, labels=labels, captions=texts and [[text] for text in texts])
