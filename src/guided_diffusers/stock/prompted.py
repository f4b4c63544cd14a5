"""What the transformers of diffusers' pipelines are told of prompts: by the pipeline's own `encode_prompt`.

A transformer is told its text in the way of its pipeline: StableDiffusion3Pipeline joins two CLIPs and a T5,
PixArtAlphaPipeline tells which tokens are padding. One row a class says which argument is which of what
`encode_prompt` gives. Training and `sampling_loop` both ask here, so that a network is told the same in both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from guided_diffusers.core.checks import check_that
from guided_diffusers.core.condition import Condition

Widths = tuple[int, int | None]


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """How a pipeline of diffusers tells its transformer of a prompt.

    Attributes:
        pipeline: The pipeline's class.
        told: The network's arguments, and the place of each in what `encode_prompt` gives.
        encoders: The classes of its text encoders by their names in it, as a new one is made.
        widths: From the configurations of these to the width of a token and that of the pooled text.
        scale: What a call names its guidance scale.
        call: Arguments of a call beside which it would tell the network something else.
        prepares: It calls the scheduler's `scale_model_input`.
        learned: It knows that twice the channels are a learned variance.
        shifts: It reads the autoencoder's `shift_factor`.
        vae: The class of its autoencoder where another does not do.
    """

    pipeline: str
    told: Mapping[str, int]
    encoders: Mapping[str, str]
    widths: Callable[..., Widths] = lambda only: (only.hidden_size, None)
    scale: str = "guidance_scale"
    call: Mapping[str, Any] = field(default_factory=dict)
    prepares: bool = False
    learned: bool = True
    shifts: bool = False
    vae: str | None = None

    @property
    def cls(self) -> type[DiffusionPipeline]:
        """The pipeline's class itself."""
        return getattr(diffusers, self.pipeline)

    @property
    def length(self) -> int:
        """The tokens of a plain call, its `max_sequence_length`."""
        return inspect.signature(self.cls.__call__).parameters["max_sequence_length"].default


def _joined(one: Any, two: Any, t5: Any) -> Widths:
    """Two CLIPs side by side, padded to the width of a T5, which alone of the three may be None."""
    both = one.hidden_size + two.hidden_size
    width = both if t5 is None else t5.hidden_size
    allowed = f"at least {both}, that of text_encoder and text_encoder_2: they would be cut"
    check_that(width >= both, "the width of text_encoder_3", width, allowed)
    return width, one.projection_dim + two.projection_dim


_MASKED = {"encoder_hidden_states": 0, "encoder_attention_mask": 1}
_ANY_SIZE = {"use_resolution_binning": False, "clean_caption": False}
PROMPTED: dict[str, Prompted] = {
    "FluxTransformer2DModel": Prompted(
        pipeline="FluxPipeline",
        told={"encoder_hidden_states": 0, "pooled_projections": 1},
        encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"},
        widths=lambda clip, t5: (t5.hidden_size, clip.hidden_size),
        scale="true_cfg_scale",
        learned=False,
        shifts=True,
    ),
    "PixArtTransformer2DModel": Prompted(
        pipeline="PixArtAlphaPipeline",
        told=_MASKED,
        encoders={"text_encoder": "T5EncoderModel"},
        call=_ANY_SIZE,
        prepares=True,
    ),
    "SD3Transformer2DModel": Prompted(
        pipeline="StableDiffusion3Pipeline",
        told={"encoder_hidden_states": 0, "pooled_projections": 2},
        encoders={
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
        },
        widths=_joined,
        learned=False,
        shifts=True,
    ),
    "SanaTransformer2DModel": Prompted(
        pipeline="SanaPipeline",
        told=_MASKED,
        encoders={"text_encoder": "Gemma2Model"},
        call={**_ANY_SIZE, "complex_human_instruction": None},
        vae="AutoencoderDC",
    ),
}
"""By the name of the transformer's class."""


def encoded(
    pipeline: DiffusionPipeline, prompts: Sequence[str], length: int | None = None, device: Any = None
) -> dict[str, Tensor]:
    """What the transformer of a pipeline is told of prompts, each `(prompts, ...)`.

    Args:
        pipeline: Of a class in `PROMPTED`, with its text encoders and tokenizers.
        prompts: Texts.
        length: Tokens, the `max_sequence_length` of a call; None: a plain call's.
        device: Where the text encoders are; None: where the pipeline is.
    """
    row = next(each for each in PROMPTED.values() if isinstance(pipeline, each.cls))
    known = inspect.signature(pipeline.encode_prompt).parameters
    given = {"do_classifier_free_guidance": False, "prompt_2": None, "prompt_3": None}
    given |= {"device": device, "max_sequence_length": length or row.length}
    given = {name: value for name, value in given.items() if name in known}
    answer = pipeline.encode_prompt(prompt=list(prompts), **given)
    return {name: answer[place] for name, place in row.told.items()}


@torch.no_grad()
def prompt_condition(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    negative_prompts: Sequence[str] | None = None,
    length: int | None = None,
) -> Condition:
    """The condition that prompts are for the transformer of a pipeline: for `sampling_loop`.

    Args:
        pipeline: Of a class in `PROMPTED`.
        prompts: One a sample.
        negative_prompts: Likewise; the empty text by default.
        length: As of `encoded`.
    """
    null = [""] * len(prompts) if negative_prompts is None else negative_prompts
    return Condition(encoded(pipeline, prompts, length), encoded(pipeline, null, length))
