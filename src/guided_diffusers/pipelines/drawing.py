"""The arguments of a call that say how images are drawn, whatever they show; and the run that they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from guided_diffusers.core.checks import check_choice, check_number
from guided_diffusers.core.denoiser import Denoiser
from guided_diffusers.pipelines import inputs
from guided_diffusers.pipelines.call import Call
from guided_diffusers.pipelines.callbacks import call_back
from guided_diffusers.sampling import Run
from guided_diffusers.schedulers.protocol import AnyScheduler


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How images are drawn.

    Attributes:
        schedule: `num_inference_steps`, `timesteps` and `sigmas`, which `Run` checks.
        eta: Noise of DDIM, 0 (none) to 1.
        generator: One, or one an image.
        latents: Standard normal noise to start from; None draws it.
        output_type: Of the images: "pil", "np", "pt" or "latent".
        return_dict: Whether they are given as an output object.
        callback: `callback_on_step_end`.
        tensor_inputs: The tensors that it gets; a callback that says its own, as diffusers' do, gets those.
    """

    schedule: Mapping[str, Any]
    eta: float
    generator: Any
    latents: Tensor | None
    output_type: str
    return_dict: bool
    callback: Callable | None
    tensor_inputs: Sequence[str]

    def __post_init__(self) -> None:
        """Take the callback's word for its tensors."""
        own = getattr(self.callback, "tensor_inputs", self.tensor_inputs)
        object.__setattr__(self, "tensor_inputs", own)

    def check(self, shape: Sequence[int], tensor_inputs: Sequence[str]) -> None:
        """Raise ValueError where an argument is none.

        Args:
            shape: Of the samples, `(images, channels, height, width)`.
            tensor_inputs: Those that the pipeline has for callbacks.
        """
        check_choice("output_type", self.output_type, inputs.OUTPUT_TYPES)
        check_number("eta", self.eta, 0, 1)
        inputs.check_callback(self.callback, self.tensor_inputs, tensor_inputs)
        if self.generator is not None:
            inputs.check_generator(self.generator, shape[0])
        if self.latents is not None:
            inputs.check_latents(self.latents, shape)

    def run(self, denoiser: Denoiser, scheduler: AnyScheduler, noise: Tensor, call: Call) -> Run:
        """The run of a call, which has not been told its condition yet."""
        takes_eta = "eta" in inspect.signature(scheduler.step).parameters
        return Run(
            denoiser,
            scheduler,
            noise,
            guidance=call.current,
            generator=self.generator,
            step_kwargs={"eta": self.eta} if takes_eta else None,
            **self.schedule,
        )

    def sample(self, pipeline: Any, run: Run, call: Call) -> Tensor:
        """The last sample of a run, with the pipeline's progress bar and the user's callback."""
        pipeline._begin(call, len(run.timesteps))
        with pipeline.progress_bar(total=len(run.timesteps)) as progress:
            for index, step in enumerate(run):
                run.advance(step)
                progress.update()
                if self.callback is not None:
                    call = call_back(pipeline, run, call, self.callback, self.tensor_inputs, index)
                if pipeline._interrupt:
                    run.check()
                    break
        return run.sample
