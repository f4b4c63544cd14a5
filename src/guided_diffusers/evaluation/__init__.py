"""Evaluation: what a model is worth, in figures with intervals."""

from guided_diffusers.evaluation.agreement import Agreement, agreement
from guided_diffusers.evaluation.clip import ClipFigures, ClipScorer, clip_figures
from guided_diffusers.evaluation.compute import Compute, count_compute, networks_of
from guided_diffusers.evaluation.distances import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from guided_diffusers.evaluation.diversity import Diversity, prompt_diversity
from guided_diffusers.evaluation.estimate import Estimate, ratio_of_means, wilson_estimate
from guided_diffusers.evaluation.features import FeatureNetwork, extract_features, feature_network
from guided_diffusers.evaluation.generation import generate_images, generated_images
from guided_diffusers.evaluation.images import ImageSet, read_images
from guided_diffusers.evaluation.judge import (
    Judge,
    JudgeConfig,
    JudgeTraining,
    judge_images,
    load_judge,
    save_judge,
    train_judge,
)
from guided_diffusers.evaluation.nearest import (
    Memorisation,
    Nearest,
    closest_pairs,
    memorisation,
    nearest_images,
)
from guided_diffusers.evaluation.prompts import Prompts, stratified_prompts
from guided_diffusers.evaluation.reference import Reference, reference_features
from guided_diffusers.evaluation.report import distance_report
from guided_diffusers.evaluation.sharpness import high_frequency_energy, laplacian_energy

__all__ = [
    "Agreement",
    "ClipFigures",
    "ClipScorer",
    "Compute",
    "Diversity",
    "Estimate",
    "FeatureNetwork",
    "ImageSet",
    "Judge",
    "JudgeConfig",
    "JudgeTraining",
    "Memorisation",
    "Nearest",
    "Prompts",
    "Reference",
    "agreement",
    "clip_figures",
    "closest_pairs",
    "count_compute",
    "density_coverage",
    "distance_report",
    "extract_features",
    "feature_network",
    "frechet_distance",
    "generate_images",
    "generated_images",
    "high_frequency_energy",
    "judge_images",
    "kernel_distance",
    "laplacian_energy",
    "load_judge",
    "memorisation",
    "nearest_images",
    "networks_of",
    "precision_recall",
    "prompt_diversity",
    "ratio_of_means",
    "read_images",
    "reference_features",
    "save_judge",
    "stratified_prompts",
    "train_judge",
    "wilson_estimate",
]
