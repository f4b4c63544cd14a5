"""`guided-diffusers ema`: averaged weights of any length, after training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Run = Annotated[Path, typer.Argument(help="A run's folder, trained with training.posthoc_ema.")]
Length = Annotated[
    float, typer.Option(help="sigma_rel: the deviation of the average's profile, as a share of the run.")
]
Out = Annotated[
    Path | None, typer.Option(help="The folder to write.", show_default="RUN/ema/LENGTH, or LENGTH-IMAGES")
]
Images = Annotated[
    int | None,
    typer.Option(help="The average as of this position: an early one is weak.", show_default="last"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def ema(
    run: Run, length: Length, out: Out = None, images: Images = None, json_output: Json = False
) -> dict[str, Any]:
    """Make the averaged weights of any length from the averages that a run kept.

    Writes a folder that from_pretrained loads: the whole pipeline where the run's final/ is one. Of an early
    position (--images) the networks are weak ones, for autoguidance. Runs in progress will do.
    """
    from guided_diffusers.training.engine.reconstruct import reconstruct

    name = f"{length:g}" if images is None else f"{length:g}-{images}"
    out = out or run / "ema" / name
    record = reconstruct(run, length, out, images)
    if not json_output:
        error = f"profile fitted to {record['profile_error']:.2%}"
        typer.echo(f"{out}: length {length:g} after {record['images']} images, {error}")
    return {"folder": str(out), **record}
