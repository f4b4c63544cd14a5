"""Sweeps over guidance: the same prompts and seeds at every point, distance against agreement and compute."""

from guided_diffusers.evaluation.sweep.choice import best, finalists, pareto_front, spread, verdict
from guided_diffusers.evaluation.sweep.runner import Sampler, Sweep, run_sweep
from guided_diffusers.evaluation.sweep.sampler import OWN_SCHEDULER, PipelineSampler
from guided_diffusers.evaluation.sweep.spec import Arm, Finals, Point, SweepSpec, points_of

__all__ = [
    "OWN_SCHEDULER",
    "Arm",
    "Finals",
    "PipelineSampler",
    "Point",
    "Sampler",
    "Sweep",
    "SweepSpec",
    "best",
    "finalists",
    "pareto_front",
    "points_of",
    "run_sweep",
    "spread",
    "verdict",
]
