"""Calls whose input is checked: training's configurations, sweeps, flags of published models."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import strategies as st
from properties.harness import Target
from properties.strategies import WRONG

from guided_diffusers.convert.flags import classifier_architecture, process_of_flags, unet_architecture
from guided_diffusers.evaluation.sweep import Arm, Finals, SweepSpec, points_of
from guided_diffusers.schedulers import GuidedDDIMScheduler, check_process
from guided_diffusers.training.engine.config import TrainingConfig, build_config, to_json

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
"""What a YAML file may hold."""

TRAINING = {
    "output_dir": st.just("run"),
    "seed": st.integers(0, 9),
    "num_images": st.integers(1, 10**9),
    "stop_at_images": st.none() | st.integers(1, 100),
    "batch_size": st.just(64),
    "gradient_accumulation": st.sampled_from([1, 2, 4]),
    "learning_rate": st.floats(1e-6, 1) | st.just("1e-3"),
    "learning_rate_schedule": st.sampled_from(["constant", "cosine", "linear", "inverse_sqrt"]),
    "betas": st.just([0.9, 0.99]),
    "max_grad_norm": st.integers(0, 9),
    "mixed_precision": st.sampled_from(["no", "fp16", "bf16", False]),
    "gradient_checkpointing": st.booleans(),
    "snapshot_fractions": st.just([]) | st.just([0.5, 1]),
    "push_to_hub": st.none() | st.just("owner/name"),
    "report_to": st.just(["wandb"]) | st.just(()),
}


def configured(overridden: Any, **tree: Any) -> Any:
    """A training configuration, from a mapping and overrides as on the command line."""
    return to_json(build_config(TrainingConfig, tree, {"ema_half_life_images": overridden}))


def swept(**values: Any) -> Any:
    """The points of a sweep, of its constructor."""
    return [point.name for point in points_of(SweepSpec(**values))]


def read(**values: Any) -> Any:
    """The same through its file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.yaml"
        path.write_text(yaml.safe_dump(values))
        return [point.name for point in points_of(SweepSpec.read(path))]


TERM = {"term": "ClassifierFreeGuidance"}
SWEEP = {
    "checkpoint": st.just("fashion-32"),
    "data": st.just("test.parquet"),
    "weak": st.none() | st.just("weak_unet"),
    "schedulers": st.just(["ddim", "euler"]),
    "steps": st.just([10, 20]),
    "images": st.integers(1, 10**6),
    "seed": st.integers(0, 9),
    "seed_sets": st.integers(1, 9),
    "features": st.just("efficientnet-lite0"),
    "judge": st.none() | st.just("judge.safetensors"),
    "distance": st.sampled_from(["kernel", "frechet"]),
    "resamples": st.integers(1, 200),
    "batch_size": st.integers(1, 100),
}
ARM = {
    "guidance": st.just([TERM]) | st.just([TERM, {"term": "AutoGuidance", "scale": 2}]),
    "scales": st.just([1, 2.5]),
    "intervals": st.just([None]) | st.just([[0.2, 5], [None, 3.0], None, [0.1, None]]),
}
FLAGS = {
    "image_size": st.sampled_from([64, 128, 256, "64"]),
    "num_channels": st.sampled_from([32, 64, "128"]),
    "num_res_blocks": st.integers(1, 3),
    "num_heads": st.sampled_from([1, 2, 4]),
    "num_head_channels": st.sampled_from([-1, 16]),
    "attention_resolutions": st.sampled_from(["16,8", "32", [16], ""]),
    "channel_mult": st.sampled_from(["", "1,2", (1, 2, 3)]),
    "dropout": st.floats(0, 1),
    "class_cond": st.booleans() | st.sampled_from(["True", "no"]),
    "learn_sigma": st.booleans(),
    "use_new_attention_order": st.booleans(),
    "num_classes": st.integers(1, 1000),
}
CLASSIFIER = {
    "image_size": st.sampled_from([64, 128]),
    "classifier_width": st.sampled_from([64, 128]),
    "classifier_depth": st.integers(1, 4),
    "classifier_attention_resolutions": st.sampled_from(["32,16,8", [8]]),
    "classifier_pool": st.sampled_from(["attention", "adaptive", "spatial", "spatial_v2"]),
    "classifier_use_scale_shift_norm": st.booleans(),
}
PROCESS = {
    "kind": st.just("variance_preserving"),
    "num_train_timesteps": st.just(1000),
    "beta_schedule": st.just("linear"),
    "beta_start": st.just(0.0001),
    "beta_end": st.just(0.02),
    "rescale_betas_zero_snr": st.just(False),
}


def _architecture(make: Any) -> Any:
    def call(**flags: Any) -> Any:
        plan = make(flags)
        return plan.widths, plan.attends, plan.head_widths

    return call


def _process(**process: Any) -> None:
    check_process(process, GuidedDDIMScheduler())


TARGETS: dict[str, Target] = {
    "a training configuration": Target(
        call=configured,
        arguments={**TRAINING, "overridden": st.integers(0, 9) | st.just("5e3")},
        wrong=PLAIN | WRONG,
        called={
            "overridden": "ema_half_life_images",
            "gradient_accumulation": "batch_size",
            "batch_size": "gradient_accumulation",
        },
    ),
    "a sweep": Target(
        call=swept,
        arguments={
            **SWEEP,
            "arms": st.just({"plain": Arm(guidance=[TERM], scales=[1.0])}),
            "finals": st.none() | st.just(Finals(baseline="plain")),
        },
        wrong=PLAIN | WRONG,
        called={"arms": "baseline"},
    ),
    "a sweep's file": Target(
        call=read,
        arguments={
            **SWEEP,
            "arms": st.just({"plain": {"guidance": [TERM], "scales": [1, 2.0]}}),
            "finals": st.none() | st.just({"baseline": "plain", "steps": [3]}),
        },
        wrong=PLAIN,
        called={"arms": "baseline arm"},
    ),
    "an arm": Target(
        call=lambda **arm: swept(checkpoint="a", data="b", arms={"arm": Arm(**arm)}),
        arguments=ARM,
        wrong=PLAIN | WRONG,
        called={"guidance": "term", "intervals": "interval"},
    ),
    "finals": Target(
        call=lambda **given: Finals(**given),
        arguments={
            "baseline": st.just("plain"),
            "arms": st.integers(0, 3),
            "steps": st.just([10]),
            "images": st.integers(1, 9999),
            "min_agreement": st.floats(0, 1),
        },
        wrong=PLAIN | WRONG,
    ),
    "flags of a denoiser": Target(
        call=_architecture(unet_architecture),
        arguments=FLAGS,
        wrong=PLAIN | WRONG,
        called={
            "image_size": "channel_mult",
            "num_channels": "num_heads num_head_channels",
            "channel_mult": "num_heads num_head_channels",
        },
    ),
    "flags of a classifier": Target(
        call=_architecture(classifier_architecture),
        arguments=CLASSIFIER,
        wrong=PLAIN | WRONG,
        called={"image_size": "channel_mult", "classifier_width": "num_head_channels"},
    ),
    "flags of a process": Target(
        call=lambda **flags: process_of_flags(flags),
        arguments={
            "diffusion_steps": st.sampled_from([1000, 4000, "1000"]),
            "noise_schedule": st.sampled_from(["linear", "cosine"]),
            "rescale_timesteps": st.just(False),
        },
        wrong=PLAIN | WRONG,
    ),
    "a process": Target(
        call=_process,
        arguments=PROCESS,
        wrong=WRONG,
        called={name: "process" for name in PROCESS},
    ),
}
