"""`guided-diffusers info`: what is in a checkpoint, without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from guided_diffusers.cli.drawing import local_folder

Checkpoint = Annotated[str, typer.Argument(help="A shipped checkpoint, a folder, or a Hub repository.")]
Revision = Annotated[str | None, typer.Option(help="Of a Hub repository.", show_default="main")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def info(checkpoint: Checkpoint, revision: Revision = None, json_output: Json = False) -> dict[str, Any]:
    """Say what is in a checkpoint, without loading it.

    Its components with parameters and sizes, the noise schedule, the default guidance.
    """
    from guided_diffusers.hub import inventory

    content = inventory(_folder(checkpoint, revision))
    if not json_output:
        typer.echo("\n".join(lines(content)))
    return content


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
    folder = local_folder(checkpoint)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    from guided_diffusers.hub.errors import hub_errors

    with hub_errors(checkpoint, revision):
        wanted = ["*.json", "*.safetensors"]
        return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=wanted))
