"""A cascade: a base pipeline draws small pictures, and upsamplers make them large, stage by stage.

    p(x) = p(z) p(x | z),    z the small picture                                                (1)

Each stage is a pipeline of its own, with its own scheduler, guidance, steps and defaults; the cascade is one
object, one folder (a folder a stage) and one push.

References:
    Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation" (arXiv:2106.15282), section 3.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from huggingface_hub import snapshot_download

from guided_diffusers.core.checks import check_choice, check_int
from guided_diffusers.guidance import Guidance
from guided_diffusers.hub.entry_point import plain_class_name
from guided_diffusers.hub.errors import hub_errors
from guided_diffusers.hub.sharing import PUSH_ARGUMENTS
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.safe import OF_THE_HUB, SafePipeline
from guided_diffusers.pipelines.stages import (
    STAGES,
    arguments_by_stage,
    check_calls,
    check_stages,
    scheduler_of,
)
from guided_diffusers.store.safety import (
    CheckpointError,
    check_checkpoint,
    components_of,
    read_json,
    refused_in_one_line,
)

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


@dataclass
class CascadeOutput(ImagePipelineOutput):
    """Images, and on request those of each stage.

    Attributes:
        images: Of the last stage.
        stages: Of every stage, in order; None unless asked for.
    """

    stages: list[Any] | None = None


class CascadePipeline(SafePipeline):
    """Draws small pictures and makes them large.

    Args:
        stages: A pipeline of this package that draws, then one to three `UpsamplePipeline`s; in their place
            each may be given by its name.
        base: The pipeline that draws.
        upsampler: The first upsampler.
        upsampler_2: The second; None for none.
        upsampler_3: The third; None for none.
        num_inference_steps: The base's steps of a call that names none.

    Raises:
        ValueError: No stages, a stage that is no such pipeline, or one of another size or other channels than
            the stage before it draws; each message names it.
    """

    _optional_components = list(STAGES)

    def __init__(
        self,
        stages: Sequence[Any] | None = None,
        base: Any = None,
        upsampler: Any = None,
        upsampler_2: Any = None,
        upsampler_3: Any = None,
        num_inference_steps: int = 50,
    ) -> None:
        super().__init__()
        named = [stage for stage in (base, upsampler, upsampler_2, upsampler_3) if stage is not None]
        if (stages is None) == (not named) or not isinstance(stages, Sequence | None):
            raise ValueError("allowed: stages, a list of pipelines, or base, upsampler, ... by name")
        stages = named if stages is None else list(stages)
        check_stages(stages)
        self.register_modules(**dict(zip(STAGES, stages + [None] * len(STAGES), strict=False)))
        self.register_to_config(num_inference_steps=check_int("num_inference_steps", num_inference_steps, 1))

    @property
    def stages(self) -> list[Any]:
        """The pipelines, from the base on."""
        return [stage for name in STAGES if (stage := getattr(self, name)) is not None]

    @property
    def unet(self) -> Any:
        """The base's denoiser."""
        return self.base.unet

    @property
    def scheduler(self) -> Any:
        """The base's scheduler; it may be set. Those of other stages are `stages[1].scheduler`, ..."""
        return self.base.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.base.scheduler = scheduler

    @property
    def device(self) -> torch.device:
        """The base's."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """The base's."""
        return self.base.dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move every stage."""
        for stage in self.stages:
            stage.to(*args, **kwargs)
        return self

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Of every stage."""
        for stage in self.stages:
            stage.set_progress_bar_config(**kwargs)

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Of every stage."""
        for stage in self.stages:
            stage.enable_model_cpu_offload(*args, **kwargs)

    def call_guidance(self, *args: Any, **kwargs: Any) -> Guidance:
        """The base's."""
        return self.base.call_guidance(*args, **kwargs)

    def guidance_from_config(self, config: Any, **networks: Any) -> Guidance:
        """The base's."""
        return self.base.guidance_from_config(config, **networks)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        class_labels: Any = None,
        batch_size: int | None = None,
        guidance: Guidance | None = None,
        stage_arguments: Sequence[Mapping[str, Any] | None] = (),
        return_stages: bool = False,
    ) -> CascadeOutput | tuple[Any, ...]:
        """Draw.

        Args:
            prompt: For every stage that takes one.
            num_inference_steps: Of the base; upsamplers have steps of their own.
            guidance_scale: Of the base, as its own call takes it; upsamplers have their default guidance.
            negative_prompt: For every stage that takes one.
            num_images_per_prompt: Images a prompt.
            generator: One, or one an image: stage after stage draws from it.
            output_type: "pil", "np", "pt" or "latent" (the last stage's sample).
            return_dict: False returns a tuple.
            class_labels: For every stage that takes them.
            batch_size: How many, for a base that takes it.
            guidance: Of the base.
            stage_arguments: For each stage from the base on, further arguments of its call, in the place of
                what it would get: `num_inference_steps`, `guidance`, `augmentation_level`, `generator`,
                `tile_size` ...; and `scheduler`, for this call. None, or a list that ends before, is none.
            return_stages: The pictures of every stage too.

        Returns:
            `CascadeOutput`, or a tuple of images and, on request, stages.

        Raises:
            ValueError: An argument that no stage takes, or that the stage refuses; each message names it.
        """
        check_choice("output_type", output_type, inputs.OUTPUT_TYPES)
        check_int("num_images_per_prompt", num_images_per_prompt, 1)
        given = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "class_labels": class_labels,
            "batch_size": batch_size,
            "guidance_scale": guidance_scale,
            "guidance": guidance,
            "num_images_per_prompt": None if num_images_per_prompt == 1 else num_images_per_prompt,
        }
        given = {name: value for name, value in given.items() if value is not None}
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        given |= {"num_inference_steps": steps, "generator": generator}
        several = arguments_by_stage(self.stages, given, stage_arguments)
        told = {}
        for name in ("prompt", "negative_prompt", "class_labels"):
            if name in given:
                told[name] = _repeated(given[name], num_images_per_prompt)
        calls: list[dict[str, Any]] = []
        for stage, own in zip(self.stages, several, strict=True):
            common = given
            if calls:
                takes = {"class_labels": stage.takes_class}
                common = {name: value for name, value in told.items() if takes.get(name, stage.takes_text)}
                common["generator"] = generator
            last = len(calls) == len(several) - 1
            calls.append({"output_type": output_type if last else "pt", **common, **own})
        check_calls(self.stages, calls)
        drawn: list[Any] = []
        for stage, arguments in zip(self.stages, calls, strict=True):
            with scheduler_of(stage, arguments.pop("scheduler", None)):
                # (1)
                drawn.append(stage(**arguments, **({"image": drawn[-1]} if drawn else {})).images)
        stages = [*(_converted(images, output_type) for images in drawn[:-1]), drawn[-1]]
        if not return_dict:
            return (drawn[-1], stages) if return_stages else (drawn[-1],)
        asked = stages if return_stages else None
        return CascadeOutput(images=drawn[-1], stages=asked)  # type: ignore[call-arg]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save each stage into a folder of its name; arguments as of the stages' own `save_pretrained`."""
        push = kwargs.pop("push_to_hub", False)
        pushing = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if push and name in kwargs}
        folder = Path(save_directory)
        for name, stage in zip(STAGES, self.stages, strict=False):
            stage.save_pretrained(folder / name, **kwargs)
        self.save_config(folder)
        if push:
            saving = {name: kwargs[name] for name in ("variant", "max_shard_size") if name in kwargs}
            self.push_to_hub(**{"repo_id": folder.name, **saving, **pushing})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load each stage as its own class does, from safetensors only.

        Args:
            pretrained_model_name_or_path: A folder, or a repository of the Hub.
            kwargs: As of the stages' own, such as `torch_dtype` and `variant`; stages by name, which are not
                loaded then.

        Raises:
            OSError: It is no cascade, a stage is of a class outside this package, or one is refused.
            HubError: A repository that is not there, or cannot be read; in one line.
        """
        where = str(pretrained_model_name_or_path)
        hub = {name: kwargs.pop(name) for name in OF_THE_HUB if name in kwargs}
        stages = {name: kwargs.pop(name) for name in STAGES if name in kwargs}
        with hub_errors(where, hub.get("revision")), refused_in_one_line(where):
            folder = Path(where)
            if not folder.is_dir():
                folder = Path(snapshot_download(where, allow_patterns=list(_FILES), **hub))
            index = read_json(folder / cls.config_name)
            if plain_class_name(index) != cls.__name__:
                raise CheckpointError(f"{where} is a {plain_class_name(index)}; allowed: a {cls.__name__}")
            check_checkpoint(
                folder, stages, bool(kwargs.get("trust_remote_code")), kwargs.get("variant") or ""
            )
            for name, (_, class_name) in components_of(index).items():
                if name not in stages:
                    stages[name] = _stage_class(name, class_name, where).from_pretrained(
                        folder / name, **kwargs
                    )
            cascade = cls(**stages, num_inference_steps=index.get("num_inference_steps", 50))
        cascade.register_to_config(_name_or_path=where)
        return cascade


def _stage_class(name: str, class_name: str, where: str) -> type[SafePipeline]:
    found = getattr(import_module("guided_diffusers"), class_name, None)
    if name not in STAGES or not (isinstance(found, type) and issubclass(found, SafePipeline)):
        raise CheckpointError(
            f"{where} says that {name!r} is a {class_name}; allowed: {', '.join(STAGES)}, each a pipeline of "
            "this package"
        )
    return found


def _repeated(value: Any, times: int) -> Any:
    """What is told of each image, where the base draws several of each; one for all stays one."""
    if times == 1 or isinstance(value, str | int):
        return value
    return [each for each in (value.tolist() if hasattr(value, "tolist") else value) for _ in range(times)]


def _converted(images: torch.Tensor, output_type: str) -> Any:
    """A stage's images in [0, 1] as the output asked for; of latents they stay tensors."""
    if output_type == "latent":
        return images
    return VaeImageProcessor().postprocess(2 * images - 1, output_type)
