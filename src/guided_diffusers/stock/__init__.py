"""Our guidance in pipelines of diffusers that are not ours: `guide`, and by their scheduler, block or guider.

| guidance | where | what |
|---|---|---|
| any | any pipeline with a network and a scheduler | `guide(pipeline, guidance)` |
| classifier | any pipeline with a scheduler | `classifier_guided_scheduler(scheduler, guidance, labels)` |
| classifier | a modular pipeline | `classifier_guided_step(denoise_step)` |
| classifier-free | a modular pipeline | `ClassifierFreeGuider(guidance)` as its component `guider` |
| any | `sampling_loop` with a pipeline's transformer | `prompt_condition(pipeline, prompts)` |

A guider of diffusers is given neither the sample nor the scheduler, so classifier guidance, which needs x_t,
is no guider; and a callback at the end of a step comes when x_t is gone.
"""

from guided_diffusers.stock.blocks import ClassifierGuidanceBlock, classifier_guided_step
from guided_diffusers.stock.guider import ClassifierFreeGuider
from guided_diffusers.stock.handle import Handle, guide
from guided_diffusers.stock.prompted import prompt_condition
from guided_diffusers.stock.scheduler import classifier_guided_scheduler

__all__ = [
    "ClassifierFreeGuider",
    "ClassifierGuidanceBlock",
    "Handle",
    "classifier_guided_scheduler",
    "classifier_guided_step",
    "guide",
    "prompt_condition",
]
