"""The stages of a cascade: which pipelines fit each other, and the arguments of each one's call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from guided_diffusers.core.checks import a_kind_of, shown
from guided_diffusers.models.latents import image_channels, spatial_factor
from guided_diffusers.pipelines.safe import SafePipeline
from guided_diffusers.pipelines.upsample import UpsamplePipeline

STAGES = ("base", "upsampler", "upsampler_2", "upsampler_3")
"""The stages' names: folders of the checkpoint, and attributes."""


def check_stages(stages: Sequence[Any]) -> None:
    """Raise ValueError where pipelines are no stages, or one is of another size than the one before draws."""
    if not 2 <= len(stages) <= len(STAGES):
        raise ValueError(f"stages are {len(stages)}; allowed: a base and 1 to {len(STAGES) - 1} upsamplers")
    for name, stage in zip(STAGES, stages, strict=False):
        upsamples, draws = isinstance(stage, UpsamplePipeline), hasattr(stage, "unet")
        if not (isinstance(stage, SafePipeline) and draws) or upsamples == (name == STAGES[0]):
            allowed = "a pipeline of this package that draws" if name == STAGES[0] else "an UpsamplePipeline"
            raise ValueError(f"{name} is {a_kind_of(stage)}; allowed: {allowed}")
    channels, size = drawn_channels(stages[0]), _drawn_size(stages[0])
    for name, stage in zip(STAGES[1:], stages[1:], strict=False):
        seen, made = stage.channels.picture, stage.config.image_size
        if seen != channels:
            raise ValueError(
                f"{name} sees pictures of {seen} channels, and the stage before draws {channels}"
            )
        if None not in (made, size) and made != size * stage.config.scale:
            raise ValueError(
                f"{name} makes pictures of {made} from {made // stage.config.scale}, and the stage before "
                f"draws {size}; allowed: a stage that draws {made // stage.config.scale}"
            )
        size = None if size is None else size * stage.config.scale


def drawn_channels(stage: Any) -> int:
    """How many channels a stage's pictures have."""
    vae = getattr(stage, "vae", None)
    if vae is None and isinstance(stage, UpsamplePipeline):
        return stage.channels.sample
    return stage.unet.config.in_channels if vae is None else image_channels(vae.config)


def _drawn_size(base: Any) -> int | None:
    """The side of the square pictures that a base draws by default; None where it does not say."""
    size, vae = base.unet.config.sample_size, getattr(base, "vae", None)
    return size * (1 if vae is None else spatial_factor(vae)) if isinstance(size, int) else None


def arguments_by_stage(
    stages: Sequence[Any], given: Mapping[str, Any], several: Sequence[Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """Each stage's own arguments; ValueError for one that it does not take.

    Args:
        stages: The pipelines.
        given: What the base is given of the cascade's own arguments.
        several: `stage_arguments`.
    """
    if not isinstance(several, list | tuple) or len(several) > len(stages):
        raise ValueError(
            f"stage_arguments is {shown(several)}; allowed: a list of at most {len(stages)} mappings"
        )
    found = []
    for number, (name, stage) in enumerate(zip(STAGES, stages, strict=False)):
        own = several[number] if number < len(several) else None
        if not isinstance(own, Mapping | None):
            raise ValueError(f"stage_arguments[{number}] is {shown(own)}; allowed: None, or a mapping")
        found.append(dict(own or {}))
        known = {*inspect.signature(stage.__call__).parameters, "scheduler"} - {"return_dict", "output_type"}
        for argument in found[-1] if number else {**given, **found[-1]}:
            if argument not in known or (argument == "image" and name != "base"):
                raise ValueError(
                    f"{argument} is given, which the {name} ({type(stage).__name__}) does not take"
                )
    return found


def check_calls(stages: Sequence[Any], calls: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError where a stage would refuse its call, before anything is drawn.

    Args:
        stages: The pipelines.
        calls: The arguments of each; in the place of a picture that the stage before has yet to draw stands
            an empty one of its size.
    """
    drawn: dict[str, Any] = {}
    for name, stage, arguments in zip(STAGES, stages, calls, strict=False):
        if not hasattr(stage, "_asked"):
            return
        own = {key: value for key, value in {**arguments, **drawn}.items() if key != "scheduler"}
        try:
            with scheduler_of(stage, arguments.get("scheduler")):
                call = inspect.signature(stage.__call__).bind(**own)
                call.apply_defaults()
                asked = stage._asked(call.arguments)
                asked.drawing.check_schedule(stage.scheduler)
        except ValueError as error:
            if name == STAGES[0]:
                raise
            raise ValueError(f"{error} (of the {name})") from error
        images, *sides = asked.pictures
        channels = drawn_channels(stage)
        drawn = {"image": torch.full((1, 1, 1, 1), 0.5).expand(images, channels, *sides)}


@contextmanager
def scheduler_of(stage: Any, scheduler: Any) -> Iterator[None]:
    """A block in which a stage has another scheduler; None is its own."""
    own = stage.scheduler
    try:
        if scheduler is not None:
            stage.scheduler = scheduler
        yield
    finally:
        stage.scheduler = own
