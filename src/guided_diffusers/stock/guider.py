"""Our classifier-free terms as a guider of diffusers, for its modular pipelines.

A guider gets the network's outputs under the condition and under its null, and no sample. So it can be a term
that is a function of the two outputs alone: plain classifier-free guidance, whose form is the same in x_0,
epsilon and v, and the rescaled one, which is defined on the output. A term defined on x_0 or on the velocity
(projected, CFG-Zero*) cannot be, and CFG++ wants the next level. With the scheduler at hand
(`guider.attach(scheduler)`) terms may have intervals: then a step outside all of them runs the network once.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from guided_diffusers.core.denoiser import Denoised
from guided_diffusers.core.noise import NoiseLevel
from guided_diffusers.guidance import ClassifierFreeGuidance, Guidance, RescaledGuidance, Step
from guided_diffusers.schedulers.adapt import check_supported, noise_level

_TERMS = (ClassifierFreeGuidance, RescaledGuidance)
_ANYWHERE = NoiseLevel(alpha=1.0, sigma=1.0)


class ClassifierFreeGuider(BaseGuidance):
    """Classifier-free guidance terms of this package as a guider of diffusers.

    Args:
        guidance: A sum of `ClassifierFreeGuidance` and `RescaledGuidance` terms, or its `to_config()` value,
            which is what is saved.
        enabled: False predicts under the condition only.

    Raises:
        ValueError: Any other term; on use, an interval before `attach`.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]

    @register_to_config
    def __init__(self, guidance: Any = None, enabled: bool = True) -> None:
        super().__init__(0.0, 1.0, enabled)
        if guidance is None:
            guidance = ClassifierFreeGuidance(7.5)
        self.guidance = guidance if isinstance(guidance, Guidance) else Guidance.from_config(guidance)
        for term in self.guidance.terms:
            if type(term) not in _TERMS:
                raise ValueError(
                    f"guidance has a {type(term).__name__}, which needs more than two outputs; allowed in a "
                    f"guider: {', '.join(cls.__name__ for cls in _TERMS)}"
                )
            if getattr(term, "prediction_type", None) is not None:
                raise ValueError(
                    f"prediction_type of {type(term).__name__} is {term.prediction_type!r}; allowed in a "
                    "guider: None, because it works on the outputs as they are"
                )
        # diffusers takes an argument given by position for a default, which `new` would leave out.
        self.register_to_config(guidance=self.guidance.to_config(), _use_default_values=[])
        self._scheduler: Any = None

    def attach(self, scheduler: Any) -> ClassifierFreeGuider:
        """Read noise levels from this scheduler of the pipeline, for terms with intervals; returns itself."""
        check_supported(scheduler)
        self._scheduler = scheduler
        return self

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided output, of pred_cond's shape and dtype, from those with and without the condition."""
        pred = pred_cond
        if pred_uncond is not None and self._enabled:
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

    def _known_level(self) -> NoiseLevel:
        level = self._level()
        if level is None:
            raise ValueError(
                "guidance has an interval, which is in sigma / alpha of the pipeline's noise levels: call "
                "guider.attach(pipeline.scheduler), and the guider in its run"
            )
        return level
