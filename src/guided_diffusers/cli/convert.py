"""`guided-diffusers convert-adm` and `convert-ldm`: a published checkpoint to a folder of safetensors.

The published files are pickles, and loading a pickle can run code. So one is read here only, only with
`--allow-pickle`, and by torch.load(weights_only=True), which makes tensors and containers and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor, nn


class Kind(StrEnum):
    """What an ADM checkpoint is of."""

    UNET = "unet"
    CLASSIFIER = "classifier"


Checkpoint = Annotated[
    Path,
    typer.Argument(help="The published file: .safetensors, or a pickle.", exists=True, dir_okay=False),
]
Output = Annotated[Path, typer.Option(help="The folder to write to.", file_okay=False)]
KindOption = Annotated[Kind, typer.Option(help="What the checkpoint is of.")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="The published flags by name: 64, 128, 256, 512; for a unet 256-unconditional, 64-to-256, "
        "128-to-512 too."
    ),
]
FlagsFile = Annotated[
    Path | None,
    typer.Option("--flags", help="The published flags in a JSON or YAML file.", exists=True, dir_okay=False),
]
ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config", help="embed_dim and ddconfig in a JSON or YAML file.", exists=True, dir_okay=False
    ),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read a pickle, its tensors only; published files are pickles.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")]


def convert_adm(
    checkpoint: Checkpoint,
    kind: KindOption,
    output: Output,
    preset: Preset = None,
    flags: FlagsFile = None,
    allow_pickle: AllowPickle = False,
    json_output: Json = False,
) -> dict[str, Any]:
    """Convert a published ADM checkpoint to diffusers' format.

    A denoiser or a noise-aware classifier. The flags come from --preset or --flags: the checkpoint does not
    say how its attention is laid out.
    """
    from guided_diffusers import convert

    presets = convert.UNET_PRESETS if kind is Kind.UNET else convert.CLASSIFIER_PRESETS
    if (preset is None) == (flags is None):
        raise typer.BadParameter("give one of --preset and --flags", param_hint="--preset")
    if preset is not None and preset not in presets:
        raise typer.BadParameter(f"{preset!r} is none of {', '.join(presets)}", param_hint="--preset")
    from guided_diffusers.store.reading import read_mapping  # and torch with it

    config = presets[preset] if flags is None else read_mapping(flags)
    function = convert.adm_unet if kind is Kind.UNET else convert.adm_classifier
    return _write(function(read_checkpoint(checkpoint, allow_pickle), config), output, json_output)


def convert_ldm(
    checkpoint: Checkpoint,
    config: ConfigFile,
    output: Output,
    allow_pickle: AllowPickle = False,
    json_output: Json = False,
) -> dict[str, Any]:
    """Convert an autoencoder of latent diffusion to diffusers' format.

    A KL autoencoder; its latents stay the raw ones.
    """
    from guided_diffusers.convert import ldm_autoencoder
    from guided_diffusers.store.reading import read_mapping

    model = ldm_autoencoder(read_checkpoint(checkpoint, allow_pickle), read_mapping(config))
    return _write(model, output, json_output)


def read_checkpoint(path: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, under their names; of a training checkpoint, its `state_dict`.

    Raises:
        ValueError: A pickle without `allow_pickle`, one that holds more than tensors and containers, or no
            tensors by name.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from guided_diffusers.store.reading import reading_as

        with reading_as("safetensors", path, SafetensorError):
            return load_file(path)
    if not allow_pickle:
        raise ValueError(
            f"{path} is not safetensors, and loading a pickle can run code; if you trust it, --allow-pickle "
            "reads it, its tensors only"
        )
    import torch

    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} cannot be read as a pickle of tensors only: {reason}") from error
    read = read.get("state_dict", read) if isinstance(read, Mapping) else read
    if not isinstance(read, Mapping) or not all(isinstance(value, torch.Tensor) for value in read.values()):
        raise ValueError(f"{path} holds no tensors by name, but a {type(read).__name__}")
    return dict(read)


def _write(model: nn.Module, output: Path, json_output: bool) -> dict[str, Any]:
    from guided_diffusers.store.files import room_for

    with room_for(output):
        model.save_pretrained(output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    name = type(model).__name__
    if not json_output:
        typer.echo(f"{output}: {name}, {parameters:,} parameters")
    return {"path": str(output), "class": name, "parameters": parameters}
