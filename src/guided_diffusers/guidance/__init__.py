"""Guidance terms: called on a denoiser they give the guided denoiser; `+` adds them."""

from guided_diffusers.guidance import views
from guided_diffusers.guidance.auto import AutoGuidance
from guided_diffusers.guidance.base import Guidance, GuidanceSum, Guided, Prediction, Query, Shift, Step
from guided_diffusers.guidance.cfg_plus_plus import CFGPlusPlus
from guided_diffusers.guidance.cfg_zero_star import CFGZeroStar
from guided_diffusers.guidance.classifier import ClassifierGuidance
from guided_diffusers.guidance.classifier_free import ClassifierFreeGuidance
from guided_diffusers.guidance.dynamic_threshold import DynamicThresholding
from guided_diffusers.guidance.effective import effective_scale
from guided_diffusers.guidance.history import HistoryGuidance
from guided_diffusers.guidance.interval import GuidanceInterval
from guided_diffusers.guidance.loss import LossGuidance
from guided_diffusers.guidance.norm_cap import NormCap
from guided_diffusers.guidance.projected import ProjectedGuidance
from guided_diffusers.guidance.rectified_cfg_plus_plus import RectifiedCFGPlusPlus
from guided_diffusers.guidance.rescale import RescaledGuidance
from guided_diffusers.guidance.sliding_window import SlidingWindowGuidance
from guided_diffusers.guidance.tangential import TangentialGuidance
from guided_diffusers.guidance.timestep import TimestepGuidance

__all__ = [
    "AutoGuidance",
    "CFGPlusPlus",
    "CFGZeroStar",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "DynamicThresholding",
    "Guidance",
    "GuidanceInterval",
    "GuidanceSum",
    "Guided",
    "HistoryGuidance",
    "LossGuidance",
    "NormCap",
    "Prediction",
    "ProjectedGuidance",
    "Query",
    "RectifiedCFGPlusPlus",
    "RescaledGuidance",
    "Shift",
    "SlidingWindowGuidance",
    "Step",
    "TangentialGuidance",
    "TimestepGuidance",
    "effective_scale",
    "views",
]
