"""Our terms as a guider of diffusers, for its modular pipelines.

A guider gets the network's outputs under the condition and under its null, and no sample. A term that is a
function of the two outputs alone needs no more: plain classifier-free guidance, whose form is the same in
x_0, epsilon and v, and the rescaled one, which is defined on the output. With the scheduler at hand
(`guider.attach(scheduler)`) these may have intervals: a step outside all of them runs the network once.
Any other term needs x_t: `guider.attach(pipeline)` guides the pipeline's steps, as `guide` does, and the
guider only says which conditions the network is asked.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from diffusers.modular_pipelines import ModularPipeline
from torch import Tensor

from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.guidance import ClassifierFreeGuidance, Guidance, RescaledGuidance, Step
from guided_diffusers.schedulers.adapt import noise_level
from guided_diffusers.schedulers.families import check_supported
from guided_diffusers.stock.handle import Handle, guide

_OF_OUTPUTS = (ClassifierFreeGuidance, RescaledGuidance)
_ANYWHERE = NoiseLevel(alpha=1.0, sigma=1.0)


class ClassifierFreeGuider(BaseGuidance):
    """Terms of this package as a guider of diffusers.

    Args:
        guidance: A term or a sum, or its `to_config()` value, which is what is saved.
        enabled: False predicts under the condition only.

    Raises:
        ValueError: No guidance; on use, an interval, or a term that needs x_t, before `attach`.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]

    @register_to_config
    def __init__(self, guidance: Any = None, enabled: bool = True) -> None:
        super().__init__(0.0, 1.0, enabled)
        if guidance is None:
            guidance = ClassifierFreeGuidance(7.5)
        self.guidance = guidance if isinstance(guidance, Guidance) else Guidance.from_config(guidance)
        # diffusers takes an argument given by position for a default, which `new` would leave out.
        self.register_to_config(guidance=self.guidance.to_config(), _use_default_values=[])
        self._scheduler: Any = None
        self.handle: Handle | None = None

    def attach(self, to: Any) -> ClassifierFreeGuider:
        """Let it know where it guides; returns itself.

        Args:
            to: The modular pipeline, for any term: its calls are guided until `handle.remove()`. Or its
                scheduler, for the noise levels of plain and rescaled terms with intervals.

        Raises:
            ValueError: As `guide`, or an unsupported scheduler.
        """
        if isinstance(to, ModularPipeline):
            self.handle = guide(to, self.guidance)
        else:
            check_supported(to)
            self._scheduler = to
        return self

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided output, of pred_cond's shape and dtype, from those with and without the condition."""
        pred = pred_cond
        if self.handle is None and self._enabled:
            self._check_outputs_are_enough()
        if self.handle is None and pred_uncond is not None and self._enabled:
            answers = {
                "condition": pred_cond,
                None: pred_uncond,
            }  # the null of a string is None

            def answered(sample: Tensor, level: NoiseLevel, condition: Any = None) -> Denoised:
                return Denoised(answers[condition])

            # The terms are functions of the outputs, so these stand in for x_0, and the sample for nothing.
            step = Step(
                sample=torch.zeros_like(pred_cond),
                level=self._known_level(),
                condition="condition",
                prediction_type="sample",
            )
            pred = self.guidance(answered).run(step).x0.to(pred_cond.dtype)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def prepare_inputs(self, data: dict[str, tuple[Tensor, Tensor]]) -> list[Any]:
        """One batch of the network's inputs a prediction."""
        names = self._input_predictions[: self.num_conditions]
        return [self._prepare_batch(data, index, name) for index, name in enumerate(names)]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        """The same from a block's state."""
        names = self._input_predictions[: self.num_conditions]
        return [
            self._prepare_batch_from_block_state(input_fields, data, index, name)
            for index, name in enumerate(names)
        ]

    @property
    def is_conditional(self) -> bool:
        """Whether the prediction that is being prepared is the one under the condition."""
        return self._count_prepared == 1

    @property
    def num_conditions(self) -> int:
        """Predictions that this step needs: 1 where no term is active, 2 where nobody knows."""
        if self.handle is not None:  # which runs the null only where a term asks for it
            return 2 if self._enabled and self.guidance.needs_null else 1
        level = self._level()
        step = None if level is None else Step(sample=torch.empty(0), level=level)
        active = step is None or any(term.active(step) for term in self.guidance.terms)
        return 2 if self._enabled and active else 1

    def _level(self) -> NoiseLevel | None:
        """The step's noise level where a term asks for it: None where it cannot be known."""
        if all(term.interval is None for term in self.guidance.terms):
            return _ANYWHERE
        known = self._scheduler is not None and self._timestep is not None
        return noise_level(self._scheduler, self._timestep) if known else None

    def _check_outputs_are_enough(self) -> None:
        """Raise ValueError for terms that are no function of the two outputs alone."""
        for term in self.guidance.terms:
            if type(term) not in _OF_OUTPUTS or getattr(term, "prediction_type", None) is not None:
                raise ValueError(
                    f"guidance has a {type(term).__name__}, which needs more than the network's outputs: "
                    "call guider.attach(pipeline), or use guide(pipeline, guidance)"
                )

    def _known_level(self) -> NoiseLevel:
        level = self._level()
        if level is None:
            raise ValueError(
                "guidance has an interval, which is in sigma / alpha of the pipeline's noise levels: call "
                "guider.attach(pipeline.scheduler), and the guider in its run"
            )
        return level
