"""A scheduler by which an unmodified pipeline of diffusers is classifier-guided.

Every pipeline hands its scheduler the network's output and x_t, and nothing else has both. So the step reads
x_0 from the output, shifts it by the classifier's gradient at x_t, writes it back as an output, and goes on
as before. Whatever classifier-free guidance the pipeline does itself has been done by then, and the two add.
"""

from __future__ import annotations

import inspect
from copy import deepcopy
from functools import wraps
from typing import Any

from guided_diffusers.guidance import Guidance
from guided_diffusers.schedulers.adapt import step_names
from guided_diffusers.schedulers.families import check_supported
from guided_diffusers.schedulers.protocol import AnyScheduler
from guided_diffusers.stock.output import (
    check_classifier_terms,
    check_process_of,
    condition_of_batch,
    guided_output,
)


def classifier_guided_scheduler(
    scheduler: AnyScheduler, guidance: Guidance, condition: Any = None
) -> AnyScheduler:
    """A copy of a scheduler whose `step` guides.

        pipeline = StableDiffusionPipeline.from_pretrained(...)
        guidance = ClassifierGuidance(classifier.log_prob, scale=3.0)
        pipeline.scheduler = classifier_guided_scheduler(pipeline.scheduler, guidance, labels)

    The copy is of the scheduler's own class (a subclass of the same name), with its tables, its state and the
    signatures that pipelines look at. It is saved as that class: guidance holds a network, and is not saved.
    A scheduler made anew from its configuration by another class's `from_config` is not guided.

    Args:
        scheduler: Any of `guided_diffusers.schedulers.SUPPORTED_SCHEDULERS`, or one that says its noise
            levels. It is left as it is.
        guidance: ClassifierGuidance terms with `through="classifier"`. Under `GuidedDDPMScheduler` the mean
            shift is the scheduler's own. With `at="mean"` the mean is that of the pipeline's own output,
            after its classifier-free guidance.
        condition: What the terms' `log_prob` receives as its third argument, such as labels `(batch,)` for
            `NoiseAwareClassifier.log_prob`: one an image of the call. A pipeline that steps every image
            twice, for its own classifier-free guidance (DiTPipeline), needs no more.

    Raises:
        ValueError: An unsupported scheduler, terms that need the network, or a network that was trained for
            another process than the scheduler's or an unknown one; on use, labels that are not one an image.
    """
    check_supported(scheduler)
    check_classifier_terms(guidance)
    base = type(scheduler)
    check_process_of(guidance, scheduler)
    signature, names = inspect.signature(base.step), step_names(scheduler)
    shifts_its_mean = "guidance_gradient" in signature.parameters

    class GuidedByClassifier(base):
        @wraps(base.step)
        def step(self, *args: Any, **kwargs: Any) -> Any:
            call = signature.bind(self, *args, **kwargs)
            output, timestep, sample = (call.arguments[name] for name in names)
            told = condition_of_batch(condition, sample)
            output, mean = guided_output(guidance, self, output, timestep, sample, told, shifts_its_mean)
            call.arguments[names[0]] = output
            if mean is not None:
                call.arguments["guidance_gradient"] = mean
            return base.step(*call.args, **call.kwargs)

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(GuidedByClassifier, name, getattr(base, name))
    guided = deepcopy(scheduler)
    guided.__class__ = GuidedByClassifier
    return guided
