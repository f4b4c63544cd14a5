"""A block of diffusers' modular pipelines by which a denoising loop is classifier-guided.

A loop of blocks has, between the block that predicts and the block that steps, x_t and the guided output in
one place (`latents` and `noise_pred`), whatever the guider did. That is where this block goes.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.modular_pipelines import BlockState, ComponentSpec, InputParam, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks
from torch import Tensor

from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.stock.output import check_classifier_terms, guided_output


class ClassifierGuidanceBlock(ModularPipelineBlocks):
    """Within a denoising loop: shifts `noise_pred` by a classifier's gradient at `latents`.

    It needs the components `scheduler` (one of `guided_diffusers.schedulers.SUPPORTED_SCHEDULERS`) and
    `classifier` (a ModelMixin with `log_prob(sample, level, labels) -> (batch,)`), and takes the inputs
    `class_labels` `(images,)`, `classifier_scale` (1 by default; 0 never runs the classifier) and
    `classifier_options`, further arguments of `ClassifierGuidance` such as `{"interval": (0.1, 5)}`.
    """

    model_name = None

    @property
    def description(self) -> str:
        """What the block does, for the documentation that diffusers puts together."""
        return "step within the denoising loop that adds classifier guidance to the predicted output"

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The scheduler, for noise levels, and the classifier."""
        return [ComponentSpec("scheduler", SchedulerMixin), ComponentSpec("classifier", ModelMixin)]

    @property
    def inputs(self) -> list[InputParam]:
        """The call's arguments that this block adds."""
        return [
            InputParam("class_labels", required=True, type_hint=Tensor, description="One class an image."),
            InputParam("classifier_scale", default=1.0, description="s: 0 is unguided, 1 is Bayes' rule."),
            InputParam("classifier_options", default=None, description="Options of ClassifierGuidance."),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, block_state: BlockState, i: int, t: Tensor) -> tuple[Any, BlockState]:
        """Guide the output of step `i`.

        Raises:
            ValueError: An option of ClassifierGuidance out of range, or one that needs the network.
        """
        options = block_state.classifier_options or {}
        guidance = ClassifierGuidance(components.classifier.log_prob, block_state.classifier_scale, **options)
        check_classifier_terms(guidance)
        block_state.noise_pred = guided_output(
            guidance,
            components.scheduler,
            block_state.noise_pred,
            t,
            block_state.latents,
            torch.as_tensor(block_state.class_labels, device=block_state.latents.device),
        )
        return components, block_state


def classifier_guided_step(
    denoise_step: LoopSequentialPipelineBlocks, after: str = "denoiser"
) -> LoopSequentialPipelineBlocks:
    """A copy of a denoising loop with a `ClassifierGuidanceBlock` behind its denoiser.

        blocks.sub_blocks["denoise"] = classifier_guided_step(StableDiffusionXLDenoiseStep())

    Args:
        denoise_step: A loop whose blocks share `latents` and `noise_pred`, such as
            `StableDiffusionXLDenoiseStep`. It is left as it is.
        after: The name of its block that computes `noise_pred`.

    Raises:
        ValueError: No block of that name.
    """
    names = list(denoise_step.sub_blocks)
    if after not in names:
        raise ValueError(
            f"after is {after!r}; allowed: {', '.join(map(repr, names))}, the blocks of the loop"
        )
    guided = deepcopy(denoise_step)
    guided.sub_blocks.insert("classifier_guidance", ClassifierGuidanceBlock(), names.index(after) + 1)
    return guided
