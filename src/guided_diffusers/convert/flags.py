"""The published flags of ADM models: what a network is made of, with the defaults of the published code.

A checkpoint does not say how its attention is split into heads, nor in which order queries, keys and values
lie in its fused projection: both come from the flags. A flag that is left out has the published default, as
on the published command line; a name that is no flag is refused, so a misspelt one is never a default.

References:
    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), appendix I.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guided_diffusers.convert.values import listed, numbers, read_flags, typed
from guided_diffusers.core.checks import check_choice, check_int, check_number, check_that
from guided_diffusers.models.noise_aware_classifier import POOLS

IMAGENET_CLASSES = 1000
MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
"""What `channel_mult=""` means, by image size."""
UPSAMPLER_MULTIPLIERS = {512: (1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4)}

DIFFUSION_FLAGS: dict[str, Any] = {
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}
UNET_FLAGS: dict[str, Any] = {
    **DIFFUSION_FLAGS,
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_fp16": False,
    "use_new_attention_order": False,
    "large_size": 0,
    "small_size": 0,
    "num_classes": IMAGENET_CLASSES,
}
CLASSIFIER_FLAGS: dict[str, Any] = {
    "image_size": 64,
    "classifier_use_fp16": False,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
    "num_classes": IMAGENET_CLASSES,
}
CLASSIFIER_HEAD_CHANNELS = 64  # no flag: the published code's own
CONSTRUCTOR_ARGUMENTS: dict[str, Any] = {
    **{name: DIFFUSION_FLAGS[name] for name in ("diffusion_steps", "noise_schedule", "rescale_timesteps")},
    "image_size": 64,
    "in_channels": 3,
    "model_channels": 128,
    "out_channels": IMAGENET_CLASSES,
    "num_res_blocks": 2,
    "attention_resolutions": (),
    "dropout": 0.0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "use_checkpoint": False,
    "use_fp16": False,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "pool": "adaptive",
}
"""Of the published half-UNet, with its defaults."""
_MOST_LEVELS = 16
_COUNTS = {
    "image_size": 16_384,
    "num_channels": 65_536,
    "model_channels": 65_536,
    "classifier_width": 65_536,
    "in_channels": 65_536,
    "out_channels": 1_000_000,
    "num_classes": 1_000_000,
    "num_heads": 4096,
    "num_res_blocks": 64,
    "classifier_depth": 64,
}
"""Flags that are at least 1, and the most that they may be."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What an ADM network is made of.

    Attributes:
        image_size: Height and width.
        in_channels: Of the first convolution.
        out_channels: Of the last layer: channels of the output, or classes of a classifier.
        model_channels: The base width, also that of the timestep's sinusoids.
        multipliers: The width of each level in base widths.
        layers: Residual blocks at each level.
        attention_rates: The downsampling rates at which there is attention.
        head_channels: The width of a head; -1 where `heads` says how many there are.
        heads: Heads of each attention, where `head_channels` is -1.
        scale_shift: The timestep scales and shifts the normalisation (else it is added before).
        residual_resampling: Residual blocks that resample (else convolutions).
        new_order: Queries, keys and values lie one after the other, each with all heads (else head by head).
        dropout: In residual blocks.
        num_classes: Of a class-conditional denoiser; None where there is no condition.
        pool: Of a classifier.
    """

    image_size: int
    in_channels: int
    out_channels: int
    model_channels: int
    multipliers: tuple[float, ...]
    layers: int
    attention_rates: frozenset[int]
    head_channels: int
    heads: int
    scale_shift: bool
    residual_resampling: bool
    new_order: bool
    dropout: float = 0.0
    num_classes: int | None = None
    pool: str = ""

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each level."""
        return tuple(int(multiplier * self.model_channels) for multiplier in self.multipliers)

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether there is attention, of each level."""
        return tuple(2**level in self.attention_rates for level in range(len(self.multipliers)))

    @property
    def head_widths(self) -> tuple[int, ...]:
        """The channels of an attention head at each level.

        Raises:
            ValueError: The channels of a level with attention cannot be split like this.
        """
        result = []
        for level, width in enumerate(self.widths):
            by_width = self.head_channels != -1
            name, value = ("num_head_channels", self.head_channels) if by_width else ("num_heads", self.heads)
            unused = not self.attends[level] and level < len(self.widths) - 1
            allowed = f"what divides {width}, the channels of level {level}"
            check_that(unused or width % value == 0, name, value, allowed)
            result.append(self.head_channels if by_width else max(width // self.heads, 1))
        return tuple(result)


def unet_architecture(config: Mapping[str, Any]) -> Architecture:
    """From the published flags of a denoiser, or of an upsampler (`large_size`, `small_size`).

    Those of a classifier that guides it may be among them, as on the command line that samples with both.

    Raises:
        ValueError: A name that is no flag, a value of another kind, or one that is not supported.
    """
    flags = _check_ranges(read_flags(config, {**CLASSIFIER_FLAGS, **UNET_FLAGS}))
    heads, upsampling = flags["num_heads"], flags["num_heads_upsample"]
    fits = upsampling in (-1, heads) or flags["num_head_channels"] != -1
    check_that(fits, "num_heads_upsample", upsampling, f"-1 or num_heads, {heads}")
    upsampler = flags["large_size"] > 0
    size = flags["large_size"] if upsampler else flags["image_size"]
    multipliers = UPSAMPLER_MULTIPLIERS if upsampler else MULTIPLIERS
    return Architecture(
        image_size=size,
        in_channels=6 if upsampler else 3,
        out_channels=6 if flags["learn_sigma"] else 3,
        model_channels=flags["num_channels"],
        multipliers=_multipliers(flags["channel_mult"], size, multipliers),
        layers=flags["num_res_blocks"],
        attention_rates=frozenset(size // r for r in numbers("attention_resolutions", flags)),
        head_channels=flags["num_head_channels"],
        heads=flags["num_heads"],
        scale_shift=flags["use_scale_shift_norm"],
        residual_resampling=flags["resblock_updown"],
        new_order=flags["use_new_attention_order"],
        dropout=flags["dropout"],
        num_classes=flags["num_classes"] if flags["class_cond"] else None,
    )


def classifier_architecture(config: Mapping[str, Any]) -> Architecture:
    """From the published flags of a classifier, or, where there is `model_channels`, its constructor's names.

    The order of queries, keys and values is the legacy one of every published classifier. The flags of the
    denoiser that it guides may be among the published ones, as on the command line that samples with both;
    `use_new_attention_order` is then the denoiser's. Among the constructor's names it is the classifier's.

    Raises:
        ValueError: A name that is neither, a value of another kind, or one that is not supported.
    """
    if isinstance(config, Mapping) and "model_channels" in config:
        return _constructed(_check_ranges(read_flags(config, CONSTRUCTOR_ARGUMENTS)))
    flags = _check_ranges(read_flags(config, {**UNET_FLAGS, **CLASSIFIER_FLAGS}))
    size = flags["image_size"]
    return Architecture(
        image_size=size,
        in_channels=3,
        out_channels=flags["num_classes"],
        model_channels=flags["classifier_width"],
        multipliers=_multipliers("", size, MULTIPLIERS),
        layers=flags["classifier_depth"],
        attention_rates=frozenset(size // r for r in numbers("classifier_attention_resolutions", flags)),
        head_channels=CLASSIFIER_HEAD_CHANNELS,
        heads=1,
        scale_shift=flags["classifier_use_scale_shift_norm"],
        residual_resampling=flags["classifier_resblock_updown"],
        new_order=False,
        pool=flags["classifier_pool"],
    )


def _constructed(flags: Mapping[str, Any]) -> Architecture:
    for name, supported in (("conv_resample", True), ("dims", 2)):
        check_that(flags[name] == supported, name, flags[name], supported)
    return Architecture(
        image_size=flags["image_size"],
        in_channels=flags["in_channels"],
        out_channels=flags["out_channels"],
        model_channels=flags["model_channels"],
        multipliers=_multipliers(flags["channel_mult"], flags["image_size"], MULTIPLIERS),
        layers=flags["num_res_blocks"],
        attention_rates=frozenset(int(r) for r in numbers("attention_resolutions", flags)),
        head_channels=flags["num_head_channels"],
        heads=flags["num_heads"],
        scale_shift=flags["use_scale_shift_norm"],
        residual_resampling=flags["resblock_updown"],
        new_order=flags["use_new_attention_order"],
        dropout=flags["dropout"],
        pool=flags["pool"],
    )


def process_of_flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """The process that the diffusion flags describe, as `schedulers.describe_process` gives it.

    The published "linear" betas run from 1e-4 to 0.02 for 1000 steps, and times 1000 / steps for others.

    Raises:
        ValueError: An unknown `noise_schedule`, or `rescale_timesteps`, under which the network is told
            other timesteps than the scheduler's.
    """
    check_that(isinstance(config, Mapping), "config", config, "a mapping of flags to values")
    flags = {**DIFFUSION_FLAGS, **config}
    steps, schedule = typed("diffusion_steps", flags["diffusion_steps"], 1000), flags["noise_schedule"]
    check_int("diffusion_steps", steps, 21, 1_000_000)  # fewer have betas above 1
    rescaled = typed("rescale_timesteps", flags["rescale_timesteps"], False)
    check_that(not rescaled or steps == 1000, "diffusion_steps", steps, "1000 with rescale_timesteps")
    described = {"kind": "variance_preserving", "num_train_timesteps": steps}
    if check_choice("noise_schedule", schedule, ("linear", "cosine")) == "cosine":
        return {**described, "beta_schedule": "squaredcos_cap_v2"}
    scale = 1000 / steps
    return {**described, "beta_schedule": "linear", "beta_start": scale * 1e-4, "beta_end": scale * 0.02}


def _multipliers(given: str | Sequence[float], size: int, known: Mapping[int, tuple]) -> tuple[float, ...]:
    if given is None or (isinstance(given, str) and given == ""):
        sizes = ", ".join(map(str, sorted(known)))
        check_that(size in known, "image_size", size, f"{sizes}, where channel_mult is left out")
        return known[size]
    multipliers = listed("channel_mult", given)
    fits = 0 < len(multipliers) <= _MOST_LEVELS and all(0 < each <= 64 for each in multipliers)
    check_that(fits, "channel_mult", given, f"up to {_MOST_LEVELS} numbers above 0, at most 64")
    return tuple(multipliers)


def _check_ranges(flags: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raise ValueError for a number of which no network can be made."""
    for name in flags.keys() & _COUNTS.keys():
        check_int(name, flags[name], 1, _COUNTS[name])
    for name in flags.keys() & {"num_heads_upsample", "num_head_channels"}:
        if flags[name] != -1:
            check_int(name, flags[name], 1, 4096)
    if "dropout" in flags:
        check_number("dropout", flags["dropout"], 0, 1)
    for name in flags.keys() & {"large_size", "small_size"}:
        check_int(name, flags[name], 0, 16_384)
    for name in flags.keys() & {"pool", "classifier_pool"}:
        check_choice(name, flags[name], POOLS)
    return flags
