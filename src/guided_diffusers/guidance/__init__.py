"""Guidance terms: called on a denoiser they give the guided denoiser; `+` adds them."""

from guided_diffusers.guidance.auto import AutoGuidance
from guided_diffusers.guidance.base import Guidance, GuidanceSum, Guided, Query, Step
from guided_diffusers.guidance.classifier import ClassifierGuidance
from guided_diffusers.guidance.classifier_free import ClassifierFreeGuidance
from guided_diffusers.guidance.interval import GuidanceInterval

__all__ = [
    "AutoGuidance",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Guidance",
    "GuidanceInterval",
    "GuidanceSum",
    "Guided",
    "Query",
    "Step",
]
