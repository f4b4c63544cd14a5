"""A classifier of clean images that is to judge x_t is told; so is one of another noise process."""

from __future__ import annotations

import pytest
from diffusers import DDIMScheduler
from tiny_classifier import tiny_image_unet, tiny_noise_aware_classifier
from transformers import ViTConfig, ViTForImageClassification

from guided_diffusers import ClassifierGuidedPipeline, GuidedDDIMScheduler, ImageClassifier
from guided_diffusers.guidance import ClassifierFreeGuidance, ClassifierGuidance
from guided_diffusers.stock.output import check_process_of

CONFIG = {"num_classes": 3, "in_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4}
CLEAN = ImageClassifier(**CONFIG)
VIT = ViTForImageClassification(
    ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8)
)


@pytest.mark.parametrize(
    ("log_prob", "message"),
    [
        (CLEAN.log_prob, "of an ImageClassifier, which knows clean images only; allowed: through='denoised'"),
        (VIT, "of a ViTForImageClassification, which knows clean images only"),
        (lambda images: images.sum(1), "does not take three arguments; .* a loss of LossGuidance"),
    ],
)
def test_what_knows_clean_images_only_is_refused_on_noisy_ones(log_prob, message):
    with pytest.raises(ValueError, match=message):
        ClassifierGuidance(log_prob, 1.0)


def test_through_the_predicted_image_it_is_welcome():
    assert ClassifierGuidance(CLEAN.log_prob, 1.0, through="denoised").log_prob == CLEAN.log_prob


def test_a_pipeline_says_so_at_the_call():
    pipeline = ClassifierGuidedPipeline(tiny_image_unet(), GuidedDDIMScheduler(clip_sample=False), CLEAN)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="which knows clean images only"):
        pipeline(1, num_inference_steps=2)
    assert len(pipeline(1, num_inference_steps=2, through="denoised").images) == 1


def test_a_noise_process_is_compared_wherever_the_scheduler_is_known():
    own, other = DDIMScheduler(), DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    guidance = ClassifierFreeGuidance(2.0) + ClassifierGuidance(
        tiny_noise_aware_classifier(own).log_prob, 1.0
    )
    check_process_of(guidance, own)
    with pytest.raises(ValueError, match="the classifier was trained for another process"):
        check_process_of(guidance, other)
