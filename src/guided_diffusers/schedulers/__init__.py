"""Schedulers, and the noise levels of those of diffusers."""

from guided_diffusers.schedulers.adapt import (
    SUPPORTED_SCHEDULERS,
    next_noise_level,
    noise_level,
    prediction_type_of,
)
from guided_diffusers.schedulers.ddim import GuidedDDIMScheduler
from guided_diffusers.schedulers.ddpm import GuidedDDPMScheduler
from guided_diffusers.schedulers.families import check_supported
from guided_diffusers.schedulers.process import check_process, describe_process, process_of
from guided_diffusers.schedulers.protocol import Scheduler

__all__ = [
    "SUPPORTED_SCHEDULERS",
    "GuidedDDIMScheduler",
    "GuidedDDPMScheduler",
    "Scheduler",
    "check_process",
    "check_supported",
    "describe_process",
    "next_noise_level",
    "noise_level",
    "prediction_type_of",
    "process_of",
]
