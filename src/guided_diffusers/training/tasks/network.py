"""The network of a run: of the class that `denoiser.class` names, with the sizes that the other parts fix.

A class of diffusers stands in `ARGUMENTS` with what fixes its arguments; those of them that a configuration
gives all the same are checked. A network of one's own, by its dotted path, gets those that a UNet has too.
How each is called stands in `core.networks`, what it is told of prompts in `stock.prompted`.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from importlib import import_module
from typing import Any

import diffusers
from diffusers.models.embeddings import LabelEmbedding
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    SD35AdaLayerNormZeroX,
)
from torch import nn

from guided_diffusers.core.checks import check_that, shown
from guided_diffusers.core.declared import unknown
from guided_diffusers.core.networks import Network
from guided_diffusers.models.patched_unet import unet_class
from guided_diffusers.training.engine.config import check_arguments

_SAMPLE = {"sample_size": "side", "in_channels": "channels", "out_channels": "outputs"}
_CAPTIONED = {**_SAMPLE, "caption_channels": "text", "cross_attention_dim": "width"}
ARGUMENTS: dict[str, dict[str, str]] = {
    "DiTTransformer2DModel": _SAMPLE,
    "FluxTransformer2DModel": {
        "in_channels": "patch",
        "joint_attention_dim": "text",
        "pooled_projection_dim": "pooled",
    },
    "PixArtTransformer2DModel": _CAPTIONED,
    "SD3Transformer2DModel": {
        **_SAMPLE,
        "joint_attention_dim": "text",
        "pooled_projection_dim": "pooled",
        "caption_projection_dim": "width",
    },
    "SanaTransformer2DModel": _CAPTIONED,
    "UNet2DConditionModel": {**_SAMPLE, "cross_attention_dim": "text"},
    "UNet2DModel": {**_SAMPLE, "num_class_embeds": "classes"},
}
"""The classes of diffusers that are trained, and what fixes their arguments, by `FIXED`."""

OWN = {**_SAMPLE, "cross_attention_dim": "text", "num_class_embeds": "classes"}
"""The arguments that a network of one's own gets where it has them."""

FIXED = {
    "side": "the side of the sample",
    "channels": "the channels of the sample",
    "outputs": "the channels of the sample, twice with a learned variance",
    "patch": "four times the channels of the sample",
    "text": "the width of the text's tokens",
    "pooled": "the width of the pooled text",
    "width": "num_attention_heads times attention_head_dim",
    "classes": "the classes, and one for none where they are dropped",
}
"""What other parts fix."""


def denoiser_field(*classes: str) -> Any:
    """The field `denoiser` of the configuration of a script that trains these classes of diffusers."""
    told = "class: of diffusers, or a dotted path of your own; arguments: its own. Instead of unet"
    check = partial(check_denoiser, classes=classes)
    return field(default_factory=dict, metadata={"help": told, "check": check})


def check_denoiser(given: Mapping[str, Any], path: str, classes: Sequence[str]) -> None:
    """Raise ValueError for a `denoiser` that is not one of some classes, or has arguments that it lacks."""
    for key in given:
        if key not in ("class", "arguments"):
            raise ValueError(unknown(f"{path}.{key}", [f"{path}.class", f"{path}.arguments"]))
    if not given:
        return
    name, arguments = given.get("class"), given.get("arguments") or {}
    allowed = f"{', '.join(classes)}, or the dotted path of a class or function of your own"
    check_that(isinstance(name, str) and name, f"{path}.class", name, allowed)
    cls = class_named(name)
    theirs = getattr(cls, "__module__", "").startswith("diffusers.")
    check_that(callable(cls) and (not theirs or cls.__name__ in classes), f"{path}.class", name, allowed)
    check_that(isinstance(arguments, Mapping), f"{path}.arguments", arguments, "a mapping of keys")
    if not any(each.kind is each.VAR_KEYWORD for each in inspect.signature(cls).parameters.values()):
        check_arguments(arguments, f"{path}.arguments", [cls])


def class_named(name: str) -> Any:
    """The class of diffusers of that name, or what a dotted path leads to; None where there is none.

    Raises:
        ValueError: The path's module does not import.
    """
    module, _, last = name.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as for `python -m`, and for those who load the network again
    try:
        return getattr(import_module(module) if module else diffusers, last, None)
    except ImportError as error:
        raise ValueError(f"denoiser.class is {name!r}, which does not import: {error}") from error


def sample_sizes(side: int, channels: int, learned: bool) -> dict[str, Any]:
    """What a sample fixes of `FIXED`, for `make_network`."""
    outputs = channels * (2 if learned else 1)
    return {"side": side, "channels": channels, "outputs": outputs, "patch": 4 * channels}


def make_network(
    denoiser: Mapping[str, Any], unet: Mapping[str, Any], usual: type[nn.Module], sizes: Mapping[str, Any]
) -> nn.Module:
    """The network that a configuration says, new.

    Args:
        denoiser: `class` and `arguments`; empty: a UNet.
        unet: The UNet's arguments.
        usual: The UNet's class of diffusers.
        sizes: What other parts fix, by the names of `FIXED`.

    Raises:
        ValueError: Both are given, an argument is not what other parts fix, or what is made is no network
            that can be saved and loaded.
    """
    if not denoiser:
        return unet_class(usual, unet)(**{**_fixed(ARGUMENTS[usual.__name__], sizes), **unet})
    check_that(not unet, "unet", shown(dict(unet)), "nothing beside denoiser.class, which says the network")
    cls, given = class_named(denoiser["class"]), dict(denoiser.get("arguments") or {})
    parameters = inspect.signature(cls).parameters
    row = ARGUMENTS.get(cls.__name__, {name: size for name, size in OWN.items() if name in parameters})
    told = {**{name: each.default for name, each in parameters.items()}, **given}
    if cls.__name__ in ARGUMENTS and (patch := told.get("patch_size")):
        whole = f"a divisor of {sizes['side']}, {FIXED['side']}"
        check_that(sizes["side"] % patch == 0, "denoiser.arguments.patch_size", patch, whole)
    if "width" in row.values():
        sizes = {**sizes, "width": told["num_attention_heads"] * told["attention_head_dim"]}
    for name, value in _fixed(row, sizes).items():
        if name in given and cls.__name__ in ARGUMENTS and row[name] != "classes":
            fixed = f"{value}, {FIXED[row[name]]}: leave it out"
            check_that(given[name] in (value, [value] * 2), f"denoiser.arguments.{name}", given[name], fixed)
        given.setdefault(name, value)
    network = cls(**given)
    kept = isinstance(network, diffusers.ModelMixin) and hasattr(network, "config")
    check_that(kept, "what denoiser.class makes", network, "a ModelMixin of diffusers, with a configuration")
    begin_as_identity(network)
    return network


def _fixed(row: Mapping[str, str], sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: sizes[size] for name, size in row.items() if sizes.get(size) is not None}


def begin_as_identity(network: nn.Module) -> None:
    """Let the blocks of a new transformer begin as the identity, and its output as zero, as in DiT.

    References:
        Peebles and Xie, "Scalable Diffusion Models with Transformers" (arXiv:2212.09748), section 3.2.
    """
    if component_of(network) == "unet":
        return
    modulated = (AdaLayerNormZero, AdaLayerNormZeroSingle, AdaLayerNormContinuous, SD35AdaLayerNormZeroX)
    layers = [each.linear for each in network.modules() if isinstance(each, modulated)]
    ends = (getattr(network, name, None) for name in ("proj_out", "proj_out_1", "proj_out_2"))
    # Peebles and Xie, section 3.2: adaLN-Zero, and the final layer
    for layer in [*layers, *filter(None, ends)]:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def component_of(network: nn.Module) -> str:
    """What pipelines call a network: "transformer" those of diffusers, and "unet" any other."""
    return "unet" if Network(network).calling is None else "transformer"


def class_rows(network: nn.Module) -> int | None:
    """How many classes a network knows, the one for none among them; None where it knows none.

    A DiT has one row more than its configuration says, the last, which its pipeline takes for none.
    """
    rows = network.config.get("num_class_embeds")
    if type(network).__name__ == "DiTTransformer2DModel":
        rows = network.config.num_embeds_ada_norm + 1
    return rows


def keep_all_labels(network: nn.Module) -> None:
    """Switch off that the blocks of a DiT in training drop labels themselves, each block others.

    Labels are dropped where the batch is made, as a function of the position in training.
    """
    for module in network.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0
