"""A block of diffusers' modular pipelines by which a denoising loop is classifier-guided.

A loop of blocks has, between the block that predicts and the block that steps, x_t and the guided output in
one place (`latents` and `noise_pred`), whatever the guider did. That is where this block goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.modular_pipelines import BlockState, ComponentSpec, InputParam, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks
from torch import Tensor

from guided_diffusers.guidance import ClassifierGuidance
from guided_diffusers.stock.output import check_classifier_terms, check_process_of, guided_output


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
            ValueError: An option of ClassifierGuidance out of range, or one that needs the network; a
                classifier that was trained for another process than the scheduler's.
        """
        options = block_state.classifier_options or {}
        guidance = ClassifierGuidance(components.classifier.log_prob, block_state.classifier_scale, **options)
        check_classifier_terms(guidance)
        if i == 0:
            check_process_of(guidance, components.scheduler)
        block_state.noise_pred, _ = guided_output(
            guidance,
            components.scheduler,
            block_state.noise_pred,
            t,
            block_state.latents,
            torch.as_tensor(block_state.class_labels, device=block_state.latents.device),
        )
        return components, block_state


def classifier_guided_step(blocks: ModularPipelineBlocks, after: str = "denoiser") -> ModularPipelineBlocks:
    """A copy of blocks in whose denoising loops a `ClassifierGuidanceBlock` stands behind the denoiser.

        pipeline = classifier_guided_step(StableDiffusionXLAutoBlocks()).init_pipeline()

    Args:
        blocks: A denoising loop whose blocks share `latents` and `noise_pred`, such as
            `StableDiffusionXLDenoiseStep`, or blocks that hold such loops, at any depth. They are left as
            they are.
        after: The name of the loop's block that computes `noise_pred`.

    Raises:
        ValueError: No loop with a block of that name.
    """
    guided = deepcopy(blocks)
    loops = list(_loops(guided))
    found = [loop for loop in loops if after in loop.sub_blocks]
    if not found:
        names = dict.fromkeys(name for loop in loops for name in loop.sub_blocks)
        if not names:
            raise ValueError(f"blocks are a {type(blocks).__name__}, which holds no denoising loop")
        allowed = ", ".join(map(repr, names))
        raise ValueError(f"after is {after!r}; allowed: {allowed}, the blocks of the loop")
    for loop in found:
        place = list(loop.sub_blocks).index(after) + 1
        loop.sub_blocks.insert("classifier_guidance", ClassifierGuidanceBlock(), place)
    return guided


def _loops(blocks: ModularPipelineBlocks) -> Iterator[LoopSequentialPipelineBlocks]:
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        yield blocks
        return
    for block in blocks.sub_blocks.values():
        yield from _loops(block)
