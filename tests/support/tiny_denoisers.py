"""Denoising tasks of tiny networks, with text and by class, on latents without a file."""

import torch
from tiny import shallow_unet

from guided_diffusers import GuidedDDIMScheduler, GuidedDDPMScheduler
from guided_diffusers.training.data.images import Images
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.tasks.conditioning import (
    Captions,
    ClassObjectiveConfig,
    DrawingConfig,
    Labels,
    TextDenoisingConfig,
    ValidationConfig,
)
from guided_diffusers.training.tasks.denoiser import DenoisingTask
from guided_diffusers.training.tasks.encoded_text import JointText
from guided_diffusers.training.tasks.objective import DenoisingConfig, Objective, ObjectiveConfig

SEED = 3


class Moments:
    """Latents without a file, of means that say the row, and deviations 1."""

    def __len__(self):
        return 50

    def sample(self, indices, noise):
        return torch.tensor(indices).view(-1, 1, 1, 1) + noise


def text_task(pipeline, captions=("abc", "xyz"), scheduler=None, objective=None, **denoising):
    denoising = TextDenoisingConfig(**denoising)
    scheduler = scheduler or GuidedDDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    condition = Captions(
        components={name: pipeline.components[name] for name in ("vae", "text_encoder", "tokenizer")},
        captions=lambda indices, positions: [captions[index % len(captions)] for index in indices],
        text=JointText(pipeline.tokenizer, ["", *captions]),
        dropout=denoising.caption_dropout,
        drawing=DrawingConfig(),
        joint=True,
    )
    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    images = Images(images=Moments(), shape=(channels, size, size), latent=True)
    objective = Objective(objective or ObjectiveConfig(), denoising, scheduler)
    training = TrainingConfig(output_dir="unused", seed=SEED)
    return DenoisingTask(pipeline.unet, images, condition, objective, training)


def image_task(out_channels=2, variance="learned_range", labels=None, classes=None, latent=False, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = shallow_unet(outputs=out_channels, num_class_embeds=classes)
    names = ("levels", "levels_arguments", "weighting", "min_snr_gamma")
    denoising = DenoisingConfig(**{name: options.pop(name) for name in names if name in options})
    objective = ClassObjectiveConfig(**{"loss": "hybrid", **options})
    scheduler = GuidedDDPMScheduler(num_train_timesteps=50, variance_type=variance)
    condition = Labels(
        labels=labels,
        num_class_embeds=classes,
        dropout=objective.class_dropout,
        validation=ValidationConfig(),
    )
    images = Images(images=Moments(), shape=(1, 8, 8), latent=latent)
    training = TrainingConfig(output_dir="unused", seed=SEED)
    return DenoisingTask(unet, images, condition, Objective(objective, denoising, scheduler), training)
