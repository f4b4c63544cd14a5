"""The arguments of a call that say how images are drawn, whatever they show; and the run that they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from guided_diffusers.core.checks import MAX_COUNT, check_int
from guided_diffusers.core.declared import Declared, Share
from guided_diffusers.core.denoiser import Denoiser
from guided_diffusers.guidance import Guidance
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.callbacks import call_back
from guided_diffusers.pipelines.guided import Call
from guided_diffusers.sampling import Run
from guided_diffusers.schedulers.protocol import AnyScheduler
from guided_diffusers.schedulers.timesteps import set_timesteps


@dataclass(frozen=True)
class Asked:
    """A call whose arguments have been checked: nothing has been computed yet.

    Attributes:
        draw: Computes, and gives what the call returns.
        drawing: How.
        pictures: How many pictures there will be, and their height and width in pixels.
    """

    draw: Callable[[], Any]
    drawing: Drawing
    pictures: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Drawing(Declared):
    """How images are drawn. The fields are arguments of pipelines' calls, by their names.

    Attributes:
        num_inference_steps: Of the scheduler, which checks it; None where `timesteps` or `sigmas` are given.
        timesteps: Custom ones.
        sigmas: Custom ones.
        mu: The shift of a scheduler with `use_dynamic_shifting`.
        eta: Noise of DDIM, 0 (none) to 1.
        generator: One, or one an image.
        latents: Standard normal noise to start from; None draws it.
        output_type: Of the images.
        return_dict: Whether they are given as an output object.
        callback_on_step_end: Called after each step.
        callback_on_step_end_tensor_inputs: The tensors that it gets; a callback that says its own, as those
            of diffusers do, gets them.
    """

    num_inference_steps: Any
    timesteps: Any = None
    sigmas: Any = None
    mu: Any = None
    eta: Share = 0.0
    generator: Any
    latents: Any = None
    output_type: Literal["pil", "np", "pt", "latent"]
    return_dict: Any
    callback_on_step_end: Any = None
    callback_on_step_end_tensor_inputs: Any = ("latents",)

    @classmethod
    def of(
        cls,
        given: Mapping[str, Any],
        shape: Sequence[int],
        tensor_inputs: Sequence[str] = ("latents",),
        **others: Any,
    ) -> Self:
        """Of the arguments of a call, some of them others.

        Args:
            given: The call's arguments.
            shape: Of the samples, `(images, channels, height, width)`.
            tensor_inputs: Those that the pipeline has for callbacks.
            others: In the place of given ones.

        Raises:
            ValueError: One that is out of range, or does not fit the shape.
        """
        asked = {**{name: given[name] for name in _NAMES if name in given}, **others}
        if asked["generator"] is not None:
            asked["generator"] = inputs.check_generator(asked["generator"], shape[0])
        drawing = cls(**asked)
        callback, names = drawing.callback_on_step_end, drawing.callback_on_step_end_tensor_inputs
        if callback is not None or type(names) is not tuple or names != ("latents",):
            inputs.check_callback(callback, drawing.tensor_inputs, tensor_inputs)
        if drawing.latents is not None:
            inputs.check_latents(drawing.latents, shape)
        return drawing

    @property
    def tensor_inputs(self) -> Any:
        """The tensors that the callback gets."""
        own = self.callback_on_step_end_tensor_inputs
        return getattr(self.callback_on_step_end, "tensor_inputs", own)

    def check_schedule(self, scheduler: AnyScheduler) -> None:
        """Raise ValueError where a scheduler does not take the steps: a run does so too, once it is made."""
        set_timesteps(copy(scheduler), self.num_inference_steps, self.timesteps, self.sigmas, self.mu)

    def run(
        self,
        denoiser: Denoiser,
        scheduler: AnyScheduler,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        guidance: Guidance,
    ) -> Run:
        """The run of a call from its noise, which has not been told its condition yet."""
        noise = noise_of(shape, self.generator, device, dtype) if self.latents is None else self.latents
        takes_eta = "eta" in inspect.signature(scheduler.step).parameters
        return Run(
            guidance(denoiser),
            scheduler,
            noise.to(device),
            num_inference_steps=self.num_inference_steps,
            timesteps=self.timesteps,
            sigmas=self.sigmas,
            generator=self.generator,
            step_kwargs={"eta": self.eta} if takes_eta else None,
            mu=self.mu,
        )

    def sample(self, pipeline: Any, run: Run, call: Call) -> Tensor:
        """The last sample of a run, with the pipeline's progress bar and the user's callback."""
        pipeline._call, pipeline._guidance_scale = call, call.scale
        pipeline._num_timesteps, pipeline._interrupt = len(run.timesteps), False
        with pipeline.progress_bar(total=len(run.timesteps)) as progress:
            for index, step in enumerate(run):
                run.advance(step)
                progress.update()
                if self.callback_on_step_end is not None:
                    callback, names = self.callback_on_step_end, self.tensor_inputs
                    call = call_back(pipeline, run, call, callback, names, index)
                if pipeline._interrupt:
                    run.check()
                    break
        return run.sample


_NAMES = tuple(item.name for item in fields(Drawing))


def noise_of(
    shape: Sequence[int],
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Standard normal noise for networks of a dtype, drawn in float32 at least.

    So a seed means one picture in every precision: some versions of torch draw other numbers, not the same
    ones rounded, in half precision on a CPU.

    Args:
        shape: `(batch, ...)`.
        generator: One, or a list of one a sample.
        device: Where the noise is wanted; it is drawn where the generator is.
        dtype: The networks'.

    Returns:
        Noise of `shape`, in float32, or in float64 where the networks are.
    """
    promoted = torch.promote_types(dtype, torch.float32)
    return randn_tensor(tuple(shape), generator, device, promoted)


def latent_shape(
    unet: Any, factor: int, prompts: int, times: Any, height: Any, width: Any
) -> tuple[int, int, int, int]:
    """The shape of a call's samples, `(images, channels, height, width)`, of images of sides in pixels.

    Args:
        unet: The denoiser, whose sides are those that are not given.
        factor: Pixels of a side for one position of a sample's.
        prompts: How many.
        times: Images of each.
        height: In pixels; None is the denoiser's.
        width: Likewise.

    Raises:
        ValueError: Sides that the factor does not divide, or too many images.
    """
    images = checked_images(prompts, times)
    for name, side in (("height", height), ("width", width)):
        if side is not None:
            inputs.check_size(name, side, factor * unet.config.get("patch_size", 1))
    rows, columns = (None, None) if height and width else sample_sides(unet, "give height and width")
    rows, columns = height // factor if height else rows, width // factor if width else columns
    return images, unet.config.in_channels, rows, columns  # type: ignore[return-value]


def sample_sides(unet: Any, remedy: str = "say it by unet.register_to_config") -> tuple[int, int]:
    """Height and width of the samples that a denoiser was made for; ValueError where it does not say."""
    size = unet.config.sample_size
    if size is None:
        raise ValueError(f"unet has sample_size None, so the size of a sample is not known: {remedy}")
    return (size, size) if isinstance(size, int) else tuple(size)


def checked_images(prompts: int, times: Any) -> int:
    """How many images one call is to draw, where it can hold them: `num_images_per_prompt` of each prompt."""
    times = times if type(times) is int and times > 0 else check_int("num_images_per_prompt", times, 1)
    images = prompts * times
    if images > MAX_COUNT:
        raise ValueError(
            f"prompt and num_images_per_prompt make {images} images; allowed: {MAX_COUNT:,} a call"
        )
    return images
