"""`guided-diffusers info`: what is in a checkpoint, without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Checkpoint = Annotated[str, typer.Argument(help="A shipped checkpoint, a folder, or a Hub repository.")]
Revision = Annotated[str | None, typer.Option(help="Of a Hub repository.", show_default="main")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def info(checkpoint: Checkpoint, revision: Revision = None, json_output: Json = False) -> None:
    """Say what is in a checkpoint: components, parameters, sizes, schedule, default guidance."""
    from guided_diffusers.hub import inventory

    content = inventory(_folder(checkpoint, revision))
    typer.echo(json.dumps(content, indent=2) if json_output else "\n".join(lines(content)))


def lines(content: dict[str, Any]) -> list[str]:
    """A checkpoint's content, a line a fact."""
    from guided_diffusers.hub.inventory import guidance_text

    found = [f"{content['class']}: {content['parameters']:,} parameters, {content['bytes'] / 1e6:.1f} MB"]
    width = max(len(component["name"]) for component in content["components"])
    for component in content["components"]:
        text = f"  {component['name']:{width}}  {component['class'] or 'weights without a configuration'}"
        if component["files"]:
            shards = f", {component['files']} files" if component["files"] > 1 else ""
            text += f": {component['parameters']:,} parameters, {' and '.join(component['dtypes'])}{shards}"
        if component["variants"]:
            text += f", variants: {', '.join(component['variants'])}"
        found.append(text)
    if content["image_size"] is not None:
        size = content["image_size"]
        found.append(f"images: {'x'.join(map(str, size if isinstance(size, list) else [size, size]))} pixels")
    if schedule := content["schedule"]:
        settings = (f"{name} {value}" for name, value in schedule.items() if name != "class")
        found.append(f"schedule: {schedule['class']}, {', '.join(settings)}")
    if str(content["class"]).endswith("Pipeline"):
        found.append(f"default guidance: {guidance_text(content['default_guidance'])}")
    return found


def _folder(checkpoint: str, revision: str | None) -> Path:
    """The folder of a checkpoint; a repository is downloaded to the cache."""
    from guided_diffusers.checkpoints import pretrained, shipped

    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    if checkpoint in shipped():
        return pretrained(checkpoint)
    if checkpoint.count("/") != 1:
        raise ValueError(
            f"checkpoint={checkpoint!r} is no folder, no Hub repository (owner/name) and no checkpoint that "
            f"ships with the package, which are: {', '.join(shipped())}"
        )
    from huggingface_hub import snapshot_download

    from guided_diffusers.hub.errors import hub_errors

    with hub_errors(checkpoint, revision):
        wanted = ["*.json", "*.safetensors"]
        return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=wanted))
