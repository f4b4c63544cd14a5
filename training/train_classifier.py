"""Trains a classifier: accelerate launch training/train_classifier.py --config FILE.yaml [--key value].

Of clean images, from scratch, from an autoencoder's encoder or as a linear probe of it; or, with
`noise_aware`, of noised pixels or latents, for classifier guidance. The folder `final/` of the run holds the
model with averaged weights and its figures on held-out images. Running the same command again resumes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from guided_diffusers.models import ImageClassifier, NoiseAwareClassifier
from guided_diffusers.schedulers import describe_process, process_of
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.images import image_arguments, load_autoencoder
from guided_diffusers.training.data.labels import class_labels
from guided_diffusers.training.data.stream import open_data, open_held_out
from guided_diffusers.training.engine.config import TrainingConfig, arguments, option
from guided_diffusers.training.engine.script import run_script
from guided_diffusers.training.engine.setup import make_scheduler
from guided_diffusers.training.tasks import classifier as cl
from guided_diffusers.training.tasks.encoder_start import start_from_encoder
from guided_diffusers.training.tasks.kept import Classes, run_labels


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Train a classifier of images, clean or noised."""

    training: TrainingConfig
    data: DataConfig
    label_column: str = option("label", "column of class numbers or names")
    noise_aware: bool = option(False, "a NoiseAwareClassifier of q(x_t); else an ImageClassifier")
    autoencoder: str | None = option(None, "its latents: a folder, fashion-32 or Hub id; null: pixels")
    init_from_autoencoder: str | None = option(None, "an autoencoder whose encoder is the start, named so")
    copy_weights: bool = option(True, "false: of that encoder the architecture alone (ImageClassifier)")
    classifier: dict[str, Any] = arguments("the model's arguments", ImageClassifier, NoiseAwareClassifier)
    scheduler: str = option("GuidedDDPMScheduler", "class of ours or of diffusers: the noise process")
    scheduler_arguments: dict[str, Any] = field(default_factory=dict, metadata={"help": "its arguments"})
    objective: cl.ObjectiveConfig = field(default_factory=cl.ObjectiveConfig)
    validation: cl.ValidationConfig = field(default_factory=cl.ValidationConfig)


def make_data(config: ClassifierConfig, vae: Any, classes: Classes | None = None) -> tuple[Any, Classes]:
    """Images or latents with classes; those are the run's, which the held-out split is read by."""
    if classes is None:
        data = open_data(config.data, config.training.seed)
        labels, classes = run_labels(data, config.label_column, config.training.output_dir)
    else:
        data = open_held_out(config.data, config.validation.split)
        labels, _ = class_labels(data, config.label_column, classes.names)
    sources = None if config.data.stream else data.sources
    return cl.LabelledImages(labels=labels, sources=sources, **image_arguments(data, vae)), classes


def make_classifier(config: ClassifierConfig, shape: tuple[int, ...], sizes: dict[str, Any]) -> Any:
    """The network; sizes that the rest of the configuration fixes need not be given."""
    sizes = {"in_channels": shape[0], **sizes, **config.classifier}
    seen = config.data.channels if config.autoencoder is None else None
    start = load_autoencoder(config.init_from_autoencoder, seen)
    if config.noise_aware:
        process = describe_process(make_scheduler(config.scheduler, config.scheduler_arguments))
        classifier = NoiseAwareClassifier(**{"sample_size": shape[-1], "process": process, **sizes})
        if start is not None:
            copied = start_from_encoder(classifier, start.encoder)
            logging.info("copied from %s: %s", config.init_from_autoencoder, copied)
        return classifier
    if start is None:
        return ImageClassifier(**sizes)
    own = {name: sizes[name] for name in ("num_classes", "id2label", *config.classifier)}
    return ImageClassifier.from_autoencoder(start, config.copy_weights, **own)


def make_task(config: ClassifierConfig, device: torch.device) -> cl.ClassifierTask:
    """Data, network, and the task."""
    torch.manual_seed(config.training.seed)
    vae = load_autoencoder(config.autoencoder, config.data.channels)
    vae = None if vae is None else vae.to(device)
    data, classes = make_data(config, vae)
    held_out, _ = make_data(config, vae, classes)
    names = classes.names
    sizes = {"num_classes": classes.count, "id2label": None if names is None else dict(enumerate(names))}
    process = None
    if config.noise_aware:
        process = process_of(make_scheduler(config.scheduler, config.scheduler_arguments))
    return cl.ClassifierTask(
        make_classifier(config, data.shape, sizes).to(device),
        data,
        held_out,
        config.objective,
        config.validation,
        config.training,
        process,
    )


if __name__ == "__main__":
    run_script(ClassifierConfig, make_task)
