"""The noise process: how much signal and how much noise a timestep means.

    x_t = alpha x_0 + sigma eps

| process | alpha | sigma | the network is told |
|---|---|---|---|
| VariancePreserving | sqrt(abar_t) | sqrt(1 - abar_t) | t, the place in the table of abar |
| Flow | 1 - sigma | t / T, or 1 - t / T where it is reversed | t |
| EDM | 1 | e^(4 t), or tan(pi t / 2) | t, and x_t / sqrt(sigma_data^2 + sigma^2) |
| TrigFlow | cos(angle) | sigma_data sin(angle), angle = pi / 2 t / T | t, and x_t / sigma_data |

A process is a value: networks keep it in their configuration as `to_config()`, and two are equal where the
same input and timestep mean the same noise. Scaled for a network, variance-exploding samples, x_t / alpha,
are those of the variance-preserving process, so they have none of their own. All is float64: in float32,
1 - abar loses digits near the clean end.

References:
    Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), equation 4: abar.
    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv:2206.00364),
        table 1: EDM.
    Lipman et al., "Flow Matching for Generative Modeling" (arXiv:2210.02747): flow.
    Lu and Song, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models"
        (arXiv:2410.11081), section 3: TrigFlow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from guided_diffusers.core.betas import WITH_LIMITS, WITHOUT_LIMITS, abar_of
from guided_diffusers.core.checks import shown
from guided_diffusers.core.declared import Count, Declared, Positive, Within, build
from guided_diffusers.core.noise import NoiseLevel

_TOLERANCE = 1e-4  # of abar, relative; beta_end 0.0201 for 0.02 changes its last value by 5%


@dataclass(frozen=True, kw_only=True)
class Process(Declared):
    """A family of noise levels, from clean to noisy, as a network is trained for it."""

    kind: ClassVar[str]

    def at(self, timestep: Tensor | float) -> NoiseLevel:
        """The level at timesteps, `()` or `(batch,)`, in the network's units."""
        raise NotImplementedError

    def at_fraction(self, fraction: Tensor) -> NoiseLevel:
        """The level at a fraction in [0, 1) of the process's own time, `(batch,)`."""
        raise ValueError(f"a process of kind {self.kind!r} has no end of time; allowed: log-normal levels")

    def at_log_noise_to_signal(self, value: Tensor) -> NoiseLevel:
        """The level of this process whose log(sigma / alpha) is nearest to a value, `(batch,)`."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """The process as JSON values: its kind, and the fields that differ from their defaults."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        told = {name: value for name, (value, default) in values.items() if value != default}
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}}

    @staticmethod
    def from_config(config: Any) -> Process:
        """The inverse of `to_config`.

        Raises:
            ValueError: An unknown kind, or what the kind needs is missing or not understood.
        """
        kind = config.get("kind") if isinstance(config, Mapping) else None
        if not isinstance(kind, str) or kind not in _KINDS:
            has = "has kind" if isinstance(config, Mapping) else "is"
            raise ValueError(
                f"process {has} {shown(kind if isinstance(config, Mapping) else config)}; allowed: "
                f"{', '.join(_KINDS)}, and the rest as describe_process(scheduler) gives it"
            )
        return build(_KINDS[kind], {key: value for key, value in config.items() if key != "kind"}, "process")


def _numbers(betas: Any) -> tuple[float, ...] | None:
    try:
        read = None if betas is None else torch.as_tensor(betas, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        read = torch.empty(0)
    if read is not None and not (read.ndim == 1 and len(read) and (read >= 0).all()):
        raise ValueError(f"trained_betas is {shown(betas)}; allowed: a list of numbers from 0 to 1")
    return None if read is None else tuple(read.tolist())


@dataclass(frozen=True, kw_only=True, eq=False)
class VariancePreserving(Process):
    """alpha^2 + sigma^2 = 1 at discrete timesteps: a table of abar = alpha^2, made of betas.

    Args:
        num_train_timesteps: How many; of `trained_betas` their number is meant.
        beta_schedule: One of `betas.BETA_SCHEDULES`.
        beta_start: The first beta, of schedules that have no limits of their own.
        beta_end: The last.
        trained_betas: The betas themselves, instead of the above.
        rescale_betas_zero_snr: Shift the table so that nothing of x_0 is left at its end.
        timestep_type: What the network is told: "discrete", the place; "continuous", log(sigma / alpha) / 4.

    Raises:
        ValueError: A value that is not allowed, or betas below 0.
    """

    kind: ClassVar[str] = "variance_preserving"
    num_train_timesteps: Annotated[int, Within(1, 1_000_000)]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"] | None = None
    beta_start: Annotated[float, Within(0, 1e6)] | None = None
    beta_end: Annotated[float, Within(0, 1e6)] | None = None
    trained_betas: Annotated[tuple[float, ...] | None, _numbers] = None
    rescale_betas_zero_snr: bool = False
    timestep_type: Literal["discrete", "continuous"] = "discrete"

    def __post_init__(self) -> None:
        """Check that there are betas."""
        super().__post_init__()
        limited = self.beta_schedule not in WITHOUT_LIMITS and None in (self.beta_start, self.beta_end)
        if self.trained_betas is None and (self.beta_schedule is None or limited):
            given = f"{self.beta_schedule!r}, beta_start and beta_end are {self.beta_start}, {self.beta_end}"
            raise ValueError(f"beta_schedule is {given}; allowed: one with two numbers, or trained_betas")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> VariancePreserving:
        """The process that a scheduler's configuration describes; other keys than of betas are left alone."""
        names: tuple[str, ...] = ("trained_betas",)
        if config.get("trained_betas") is None:
            own = str(config.get("beta_schedule")) in WITHOUT_LIMITS
            names = ("beta_schedule",) if own else ("beta_schedule", "beta_start", "beta_end")
        kept = ("num_train_timesteps", *names, "rescale_betas_zero_snr", "timestep_type")
        return cls(**{name: config[name] for name in kept if name in config})

    @classmethod
    def of_table(cls, abar: Tensor) -> VariancePreserving:
        """The process of a table of abar, `(timesteps,)`."""
        abar = abar.cpu().double()
        betas = 1 - abar / torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
        return cls(num_train_timesteps=len(abar), trained_betas=tuple(betas.tolist()))

    @cached_property
    def abar(self) -> Tensor:
        """The table, `(timesteps,)`, as of `betas.abar_of`."""
        with torch.device("cpu"):  # also of a model that is made on the meta device
            if self.trained_betas is not None:
                betas = torch.tensor(self.trained_betas, dtype=torch.float64)
            elif self.beta_schedule in WITHOUT_LIMITS:
                betas = WITHOUT_LIMITS[self.beta_schedule](self.num_train_timesteps)
            else:
                make: Callable[..., Tensor] = WITH_LIMITS[str(self.beta_schedule)]
                betas = make(self.num_train_timesteps, self.beta_start, self.beta_end)
            return abar_of(betas, self.rescale_betas_zero_snr)

    def __eq__(self, other: object) -> bool:
        """Whether another process has the same table and the network is told the same timesteps."""
        if not isinstance(other, VariancePreserving) or self.timestep_type != other.timestep_type:
            return False
        same = self.abar.shape == other.abar.shape
        return same and torch.allclose(self.abar, other.abar, rtol=_TOLERANCE, atol=0)

    __hash__ = None  # type: ignore[assignment]

    def at(self, timestep: Tensor | float) -> NoiseLevel:
        """The level at timesteps that are places in the table; "continuous" ones are rounded to one."""
        if self.timestep_type == "continuous":
            return self.at_log_noise_to_signal(4 * torch.as_tensor(timestep, dtype=torch.float64))
        return self._level(torch.as_tensor(timestep).long())

    def at_fraction(self, fraction: Tensor) -> NoiseLevel:
        """The level at timestep floor(fraction x timesteps)."""
        count = len(self.abar)
        return self._level((fraction * count).long().clamp(0, count - 1))

    def at_log_noise_to_signal(self, value: Tensor) -> NoiseLevel:
        """The nearest timestep's level."""
        table = ((1 - self.abar) / self.abar).log() / 2
        return self._level(torch.searchsorted((table[1:] + table[:-1]) / 2, value.double()))

    def _level(self, place: Tensor) -> NoiseLevel:
        abar = self.abar[place.cpu()]
        if abar.isnan().any():
            given = f"timestep is {shown(place)}, which has no noise level"
            raise ValueError(f"{given}: the scheduler's betas reach above 1; allowed: betas from 0 to 1")
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        told = place if self.timestep_type == "discrete" else ((sigma / alpha).log() / 4).float()
        return NoiseLevel(alpha=alpha, sigma=sigma, timestep=told)


@dataclass(frozen=True, kw_only=True)
class Flow(Process):
    """Flow matching: any sigma in (0, 1), at timestep T sigma.

    Args:
        num_train_timesteps: T, which means pure noise.
        reversed: Timesteps go from noise to data: T (1 - sigma).
    """

    kind: ClassVar[str] = "flow"
    num_train_timesteps: Count
    reversed: bool = False

    def at(self, timestep: Tensor | float) -> NoiseLevel:
        """The level at any timestep from 0 to T."""
        share = torch.as_tensor(timestep, dtype=torch.float64) / self.num_train_timesteps
        return self._level(1 - share if self.reversed else share)

    def at_fraction(self, fraction: Tensor) -> NoiseLevel:
        """The level at sigma = fraction."""
        return self._level(self._inside(fraction.double()))

    def at_log_noise_to_signal(self, value: Tensor) -> NoiseLevel:
        """The level at sigma / (1 - sigma) = e^value."""
        return self._level(self._inside(torch.sigmoid(value.double())))

    def _inside(self, sigma: Tensor) -> Tensor:
        return sigma.clamp(1e-5, 1 - 1e-5)  # at the ends a target lacks its x_0 or its noise

    def _level(self, sigma: Tensor) -> NoiseLevel:
        share = 1 - sigma if self.reversed else sigma
        return NoiseLevel(alpha=1 - sigma, sigma=sigma, timestep=(share * self.num_train_timesteps).float())


@dataclass(frozen=True, kw_only=True)
class EDM(Process):
    """Any sigma above 0 beside the whole x_0, with the input scaled to deviation 1.

    Args:
        sigma_data: The deviation of the data.
        timestep: What the network is told: "logarithm", log(sigma) / 4; "arctangent", 2 / pi arctan(sigma).
    """

    kind: ClassVar[str] = "edm"
    sigma_data: Positive
    timestep: Literal["logarithm", "arctangent"] = "logarithm"

    def at(self, timestep: Tensor | float) -> NoiseLevel:
        """The level at any timestep."""
        told = torch.as_tensor(timestep, dtype=torch.float64)
        return self._level((4 * told).exp() if self.timestep == "logarithm" else (told * math.pi / 2).tan())

    def at_log_noise_to_signal(self, value: Tensor) -> NoiseLevel:
        """The level at sigma = e^value."""
        return self._level(value.double().exp())

    def _level(self, sigma: Tensor) -> NoiseLevel:
        # Karras et al., table 1: c_noise and c_in
        told = sigma.log() / 4 if self.timestep == "logarithm" else 2 / math.pi * sigma.atan()
        scale = (self.sigma_data**2 + sigma**2).rsqrt()
        return NoiseLevel(alpha=torch.ones_like(sigma), sigma=sigma, timestep=told.float(), input_scale=scale)


@dataclass(frozen=True, kw_only=True)
class TrigFlow(Process):
    """A quarter of a circle from data of deviation sigma_data to noise of the same.

    Args:
        noise_timestep: T, which means pure noise.
        sigma_data: The deviation of the data.
    """

    kind: ClassVar[str] = "trigflow"
    noise_timestep: Positive
    sigma_data: Positive

    def at(self, timestep: Tensor | float) -> NoiseLevel:
        """The level at any timestep from 0 to T."""
        return self._level(
            torch.as_tensor(timestep, dtype=torch.float64) / self.noise_timestep * (math.pi / 2)
        )

    def at_fraction(self, fraction: Tensor) -> NoiseLevel:
        """The level at a fraction of the quarter circle, but not at its very ends."""
        return self._level(fraction.double().clamp(1e-5, 1 - 1e-5) * (math.pi / 2))

    def at_log_noise_to_signal(self, value: Tensor) -> NoiseLevel:
        """The level at sigma_data tan(angle) = e^value."""
        return self._level((value.double().exp() / self.sigma_data).atan())

    def _level(self, angle: Tensor) -> NoiseLevel:
        return NoiseLevel(
            alpha=angle.cos().clamp_min(0),
            sigma=self.sigma_data * angle.sin(),
            timestep=(angle / (math.pi / 2) * self.noise_timestep).float(),
            input_scale=torch.full_like(angle, 1 / self.sigma_data),
        )


_KINDS: dict[str, type[Process]] = {each.kind: each for each in (VariancePreserving, Flow, EDM, TrigFlow)}
