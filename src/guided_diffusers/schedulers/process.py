"""The noise process of a scheduler: what its network is trained on, and what a classifier is compared with.

A noise-aware classifier knows one relation between timestep and noise: it sees `input_scale * x_t` and the
timestep, and nothing tells it where the two come from. Under another schedule it answers all the same, and
wrongly. So its configuration holds the process that it was trained for, `process_of(scheduler).to_config()`:

    kind                    what else is in it
    variance_preserving     num_train_timesteps and the betas; schedulers in other coordinates (Euler, Heun)
                            give the same inputs once they are scaled, so they are of this kind too
    flow                    num_train_timesteps: at timestep t, sigma = t / num_train_timesteps, or, where
                            `reversed` is there, 1 minus that
    edm                     sigma_data, which scales the input; `timestep` where it is not log(sigma) / 4
    trigflow                noise_timestep, which means pure noise, and sigma_data
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guided_diffusers.core.process import EDM, Flow, Process, TrigFlow, VariancePreserving
from guided_diffusers.schedulers.adapt import process_kind
from guided_diffusers.schedulers.families import QUARTER_TURN, is_reversed, known_as
from guided_diffusers.schedulers.protocol import AnyScheduler


def process_of(scheduler: Any) -> Process:
    """The process of a scheduler's noise levels and timesteps.

    Args:
        scheduler: One of `SUPPORTED_SCHEDULERS`, or one with an attribute `process`: a Process, or the
            mapping that is its `to_config()`. Its timesteps need not be set.

    Raises:
        ValueError: An unsupported scheduler, or one whose process is not known.
    """
    if (own := getattr(scheduler, "process", None)) is not None:
        return own if isinstance(own, Process) else Process.from_config(own)
    kind, config, known = process_kind(scheduler), scheduler.config, known_as(scheduler.__class__)
    if kind == "edm":
        arctangent = known == "CosineDPMSolverMultistepScheduler"
        return EDM(sigma_data=config.sigma_data, timestep="arctangent" if arctangent else "logarithm")
    if kind == "trigflow":
        return TrigFlow(noise_timestep=QUARTER_TURN[str(known)], sigma_data=config.get("sigma_data", 1.0))
    if kind == "flow":
        return Flow(num_train_timesteps=config.get("num_train_timesteps", 1), reversed=is_reversed(scheduler))
    if "snr_shift_scale" in config:  # CogVideoX shifts its table away from its betas
        return VariancePreserving.of_table(scheduler.alphas_cumprod)
    return VariancePreserving.of_config(config)


def describe_process(scheduler: AnyScheduler) -> dict[str, Any]:
    """The process of a scheduler as JSON values, for the configuration of a network."""
    return process_of(scheduler).to_config()


def check_process(trained: Mapping[str, Any], scheduler: AnyScheduler, name: str = "classifier") -> None:
    """Compare the process that a network was trained for with a scheduler's.

    Args:
        trained: A description, as `describe_process` gives it.
        scheduler: As of `process_of`.
        name: What the error calls the network.

    Raises:
        ValueError: They are not the same; it names each value that differs.
    """
    given, own = process_of(scheduler), type(scheduler).__name__
    if Process.from_config(trained) != given:
        said = f"the {name} was trained for another process than the scheduler's ({own})"
        remedy = f"Use the {name}'s own process, or a {name} of the scheduler's"
        raise ValueError(f"{said}: {_differences(trained, given.to_config())}. {remedy}")


def _differences(trained: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    differing = [key for key in {**trained, **given} if trained.get(key) != given.get(key)]
    return "; ".join(f"{key} {_short(trained, key)} for {_short(given, key)}" for key in differing)


def _short(process: Mapping[str, Any], key: str) -> str:
    value = process.get(key, "none")
    return f"{len(value)} numbers" if isinstance(value, list) else str(value)
