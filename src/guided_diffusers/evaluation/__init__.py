"""Evaluation: what a model is worth, in figures with intervals."""

from .agreement import Agreement, agreement
from .estimate import Estimate, ratio_of_means, wilson_estimate
from .judge import Judge, JudgeConfig, JudgeTraining, judge_images, load_judge, save_judge, train_judge
from .sharpness import high_frequency_energy, laplacian_energy

__all__ = [
    "Agreement",
    "Estimate",
    "Judge",
    "JudgeConfig",
    "JudgeTraining",
    "agreement",
    "high_frequency_energy",
    "judge_images",
    "laplacian_energy",
    "load_judge",
    "ratio_of_means",
    "save_judge",
    "train_judge",
    "wilson_estimate",
]
