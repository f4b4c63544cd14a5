"""How networks are called, and what they have to be told: the one place that knows it by their class.

A UNet is called as `unet(sample, timestep, **arguments)`, and so is any network of one's own. Transformers of
diffusers take both by name, a timestep for each sample, some of them on another scale, and some a sequence
of tokens instead of a map. What a network has to be told beside the sample is in its configuration and in the
signature of its forward: a UNet that is not told the scale it was distilled with answers all the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guided_diffusers.core.checks import check_that

Packing = tuple[Tensor, dict[str, Any], Callable[[Tensor], Tensor]]
"""Tokens, what the network is told of their places, and the way back."""


@dataclass(frozen=True, kw_only=True)
class Calling:
    """How a transformer of diffusers is called.

    Attributes:
        timestep: From a scheduler's timesteps, `(batch,)`, from 0 to 1000, to those of the network.
        negated: Its output is the negative of what its scheduler reads.
        needs: Arguments without which it fails, beside those that its forward has no default for.
        pack: A map as the tokens that it works on; None where it takes maps.
        channels: The axis of the channels; None where they are not those of its configuration.
    """

    timestep: Callable[[Tensor, Mapping[str, Any]], Tensor] = lambda timestep, config: timestep
    negated: bool = False
    needs: tuple[str, ...] = ()
    pack: Callable[[Tensor, Mapping[str, Any], Mapping[str, Any]], Packing] | None = None
    channels: int | None = 1


WITHOUT_A_BATCH = (
    "image_rotary_emb",
    "rotary_embedding",
    "pos_embed",
    "img_ids",
    "txt_ids",
    "cross_attention_kwargs.ip_adapter_masks",
)
"""Arguments of transformers that are one for all samples."""


def _thousandths(timestep: Tensor, config: Mapping[str, Any]) -> Tensor:
    return timestep / 1000


def _patches(sample: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], int, int]:
    """Patches of 2 x 2 as tokens, `(batch, rows * columns, channels * 4)`, the way back, rows and columns."""
    channels, height, width = sample.shape[1:]
    check_that(height % 2 == width % 2 == 0, "sample", sample, "even sides, for tokens of 2 x 2")
    rows, columns = height // 2, width // 2
    split = sample.unflatten(3, (columns, 2)).unflatten(2, (rows, 2))
    tokens = split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def back(answer: Tensor) -> Tensor:
        split = answer.unflatten(1, (rows, columns)).unflatten(3, (channels, 2, 2))
        return split.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    return tokens, back, rows, columns


def _with_ids(sample: Tensor, config: Mapping[str, Any], told: Mapping[str, Any]) -> Packing:
    """Flux: 2 x 2 patches with their rows and columns; the words have the place 0."""
    words = told["encoder_hidden_states"].shape[1]
    places = {"txt_ids": torch.zeros(words, 3, device=sample.device)}
    if sample.ndim != 4:  # tokens already
        return sample, places, lambda answer: answer
    tokens, back, rows, columns = _patches(sample)
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
    return tokens, {**places, "img_ids": grid.to(sample.device, torch.float32)}, back


def _with_shapes(sample: Tensor, config: Mapping[str, Any], told: Mapping[str, Any]) -> Packing:
    """Qwen-Image: 2 x 2 patches and how many rows and columns there are."""
    if sample.ndim != 4:
        return sample, {}, lambda answer: answer
    tokens, back, rows, columns = _patches(sample)
    return tokens, {"img_shapes": [[(1, rows, columns)]] * len(sample)}, back


def _with_sizes(sample: Tensor, config: Mapping[str, Any], told: Mapping[str, Any]) -> Packing:
    """LTX: every place of every frame is a token."""
    if sample.ndim != 5:
        return sample, {}, lambda answer: answer
    frames, height, width = sample.shape[2:]
    sizes = {"num_frames": frames, "height": height, "width": width}
    return (
        sample.flatten(2).transpose(1, 2),
        sizes,
        lambda answer: answer.transpose(1, 2).unflatten(2, sample.shape[2:]),
    )


CALLING: dict[str, Calling] = {
    "AllegroTransformer3DModel": Calling(),
    "AuraFlowTransformer2DModel": Calling(timestep=_thousandths, needs=("encoder_hidden_states",)),
    "ChromaTransformer2DModel": Calling(
        timestep=_thousandths, needs=("encoder_hidden_states", "img_ids"), pack=_with_ids, channels=None
    ),
    "CogVideoXTransformer3DModel": Calling(channels=2),
    "CogView3PlusTransformer2DModel": Calling(),
    "CogView4Transformer2DModel": Calling(),
    "DiTTransformer2DModel": Calling(needs=("class_labels",)),
    "FluxTransformer2DModel": Calling(
        timestep=_thousandths,
        needs=("encoder_hidden_states", "pooled_projections", "img_ids"),
        pack=_with_ids,
        channels=None,
    ),
    "HunyuanDiT2DModel": Calling(
        timestep=lambda timestep, config: timestep.float(),
        needs=("encoder_hidden_states", "encoder_hidden_states_t5", "image_rotary_emb"),
    ),
    "HunyuanVideoTransformer3DModel": Calling(),
    "LTXVideoTransformer3DModel": Calling(
        needs=("num_frames", "height", "width"), pack=_with_sizes, channels=None
    ),
    "LatteTransformer3DModel": Calling(),
    "Lumina2Transformer2DModel": Calling(timestep=lambda timestep, config: 1 - timestep / 1000, negated=True),
    "PRXTransformer2DModel": Calling(timestep=_thousandths),
    "PixArtTransformer2DModel": Calling(needs=("encoder_hidden_states",)),
    "QwenImageTransformer2DModel": Calling(
        timestep=_thousandths,
        needs=("encoder_hidden_states", "img_shapes"),
        pack=_with_shapes,
        channels=None,
    ),
    "SD3Transformer2DModel": Calling(needs=("encoder_hidden_states", "pooled_projections")),
    "SanaTransformer2DModel": Calling(
        timestep=lambda timestep, config: timestep * config.get("timestep_scale", 1.0)
    ),
    "WanTransformer3DModel": Calling(),
}
"""The transformers that are known, by the name of their class."""
_CALLED = f"a UNet, {', '.join(CALLING)}, or a function (sample, timestep, **condition) that calls it"


class Network:
    """A network as `(sample, timestep, arguments) -> output`, whatever its class calls them.

    Args:
        model: A UNet of diffusers, a transformer of `CALLING`, or anything that is called as
            `model(sample, timestep, **arguments)`.

    Raises:
        ValueError: A network of diffusers that is called in a way which is not known here.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model, plain = model, unwrapped(model)
        self.kind, self.config = type(plain).__name__, _config(plain)
        forward = _forward_of_diffusers(plain)
        names = list(inspect.signature(forward).parameters)[1:] if forward else ["sample", "timestep"]
        rows = (CALLING.get(each.__name__) for each in type(plain).__mro__)
        self.calling = next(filter(None, rows), None) if names[0] == "hidden_states" else None
        known = self.calling is not None or names[:2] == ["sample", "timestep"]
        check_that(known, "model", model, _CALLED)
        self.always = {"return_dict": False} if forward and "return_dict" in names else {}
        self.needs = {} if forward is None else dict(_needs(plain, forward))
        self.axis = 1 if self.calling is None else self.calling.channels
        self.channels = self.config.get("in_channels") if forward and self.axis else None

    def __call__(self, sample: Tensor, timestep: Any, arguments: Mapping[str, Any]) -> Any:
        """The network's output for `sample`, `(batch, channels, ...)`; a tensor, a tuple or an object."""
        back, refused = None, self._why_not(sample, timestep)
        if self.calling is not None and self.calling.pack is not None and refused is None:
            sample, places, back = self.calling.pack(sample, self.config, arguments)
            arguments = {**places, **arguments}
        if refused is None and not self.needs.keys() <= arguments.keys():
            refused = next(self._untold(arguments), None)
        if refused is not None:
            raise ValueError(refused)
        if self.calling is None:
            return self.model(sample, timestep, **{**self.always, **arguments})
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        timestep = self.calling.timestep(timestep, self.config)
        arguments = {**self.always, **arguments}
        output = self.model(hidden_states=sample, timestep=timestep, **arguments)
        output = output if isinstance(output, Tensor) else output[0]
        output = -output if self.calling.negated else output
        return output if back is None else back(output)

    def _why_not(self, sample: Tensor, timestep: Any) -> str | None:
        """Why the network cannot take a sample at a timestep; None where it can."""
        if self.axis is not None and self.channels is not None and sample.shape[self.axis] != self.channels:
            return (
                f"sample has {sample.shape[self.axis]} channels; allowed: {self.channels}, the in_channels "
                f"of {self.kind}: an image beside the noise is added by a function around it"
            )
        if timestep is None and self.channels is not None:
            return f"level has no timestep, which {self.kind} has to be told: give NoiseLevel one"
        return None

    def _untold(self, arguments: Mapping[str, Any]) -> Iterator[str]:
        """What the network has to be told and is not."""
        for name, why in self.needs.items():
            if name in arguments:
                continue
            *inside, last = name.split(".")
            told: Any = arguments
            for part in inside:
                told = told.get(part)
            if not isinstance(told, Mapping) or last not in told:
                yield f"condition has no {name}, which {self.kind} has to be told: {why}"


def needed_arguments(model: Any) -> dict[str, str]:
    """What a network of diffusers has to be told beside sample and timestep, and what in it says so.

    Returns:
        Names of arguments of its forward, with a dot for what is inside a mapping, and the reasons.
    """
    plain = unwrapped(model)
    forward = _forward_of_diffusers(plain)
    return {} if forward is None else dict(_needs(plain, forward))


def _needs(plain: Any, forward: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    for name, parameter in list(inspect.signature(forward).parameters.items())[2:]:
        if parameter.default is parameter.empty and name != "timestep":
            yield name, "it has no default"
    for name in getattr(CALLING.get(type(plain).__name__), "needs", ()):
        yield name, "it has no other"
    config = _config(plain)
    for key, value, names in _CONFIGURED:
        given = config.get(key)
        if given is not None and given is not False and value in (None, given):
            yield from ((name, f"{key} is {given!r}") for name in names)
    if getattr(plain, "use_additional_conditions", False) is True:
        for name in ("resolution", "aspect_ratio"):
            yield f"added_cond_kwargs.{name}", "use_additional_conditions is True"


_CONFIGURED: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("time_cond_proj_dim", None, ("timestep_cond",)),
    ("class_embed_type", None, ("class_labels",)),
    ("num_class_embeds", None, ("class_labels",)),
    ("addition_embed_type", "text_time", ("added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids")),
    ("addition_embed_type", "text_image", ("added_cond_kwargs.image_embeds",)),
    ("addition_embed_type", "image", ("added_cond_kwargs.image_embeds",)),
    ("addition_embed_type", "image_hint", ("added_cond_kwargs.image_embeds", "added_cond_kwargs.hint")),
    ("encoder_hid_dim_type", "text_image_proj", ("added_cond_kwargs.image_embeds",)),
    ("encoder_hid_dim_type", "image_proj", ("added_cond_kwargs.image_embeds",)),
    ("encoder_hid_dim_type", "ip_image_proj", ("added_cond_kwargs.image_embeds",)),
    ("guidance_embeds", True, ("guidance",)),
    ("image_dim", None, ("encoder_hidden_states_image",)),
)
"""Entries of configurations, their values (None is any), and what such a network has to be told."""


def guidance_embedding(scale: float | tuple[float, ...], count: int, width: int) -> Tensor:
    """The guidance scale as a network with `time_cond_proj_dim` is told it: sinusoids of 1000 (gamma - 1).

    Args:
        scale: gamma, one for all or one a sample.
        count: How many samples.
        width: The network's `time_cond_proj_dim`.

    Returns:
        `(count, width)` float32.

    References:
        Luo et al., "Latent Consistency Models" (arXiv:2310.04378), section 4.2.
    """
    # Luo et al., section 4.2: the sinusoids of Vaswani et al. (arXiv:1706.03762), section 3.5
    gamma = torch.tensor(scale, dtype=torch.float64).expand(count)
    half = width // 2
    step = torch.log(torch.tensor(10_000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -step)
    angles = ((gamma - 1).float() * 1000)[:, None] * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def unwrapped(model: Any) -> Any:
    """The network inside what `torch.compile` and data parallelism put around it."""
    while True:
        if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), torch.nn.Module):
            model = model._orig_mod
        else:
            return model


def _config(plain: Any) -> Mapping[str, Any]:
    config = getattr(plain, "config", None)
    return config if isinstance(config, Mapping) else {}


def _forward_of_diffusers(plain: Any) -> Callable[..., Any] | None:
    """The forward of a network's class, where diffusers wrote it."""
    for each in type(plain).__mro__:
        if "forward" in vars(each):
            return vars(each)["forward"] if each.__module__.startswith("diffusers.") else None
    return None
