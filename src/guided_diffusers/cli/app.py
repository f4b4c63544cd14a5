"""The command line: its commands, and how errors end it.

Exit codes: 0 done; 1 failed, and one line on standard error says why; 2 wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from guided_diffusers.cli.convert import convert_adm, convert_ldm
from guided_diffusers.cli.drawing import SCHEDULERS, draw, load_pipeline, save
from guided_diffusers.cli.evaluate import evaluate
from guided_diffusers.cli.hub import pull, push
from guided_diffusers.cli.info import info
from guided_diffusers.cli.likelihood import likelihood
from guided_diffusers.cli.sweep import sweep

app = typer.Typer(
    name="guided-diffusers",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Prompts = Annotated[list[str], typer.Argument(help="What to draw; each prompt gets a row of the grid.")]
Checkpoint = Annotated[str, typer.Option(help="A shipped checkpoint, a folder, or a Hub repository.")]
Output = Annotated[Path, typer.Option(help="The folder to write to.")]
NumImages = Annotated[int, typer.Option(min=1, help="Images for each prompt.")]
GuidanceScale = Annotated[
    float | None,
    typer.Option(help="1 is unguided; more follows the prompt more.", show_default="checkpoint's own"),
]
NegativePrompt = Annotated[str | None, typer.Option(help="What to steer away from.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="pipeline's own")]
Seed = Annotated[int, typer.Option(min=0, help="Image k of a prompt depends on this and k only.")]
Scheduler = Annotated[
    str | None, typer.Option(help=f"One of: {', '.join(SCHEDULERS)}.", show_default="checkpoint's own")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images drawn at once.")]
Device = Annotated[str | None, typer.Option(help="Where to draw.", show_default="cuda, else cpu")]
Grid = Annotated[bool, typer.Option(help="Save all images as one labelled picture too, grid.png.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the paths.")]


@app.command()
def generate(
    prompts: Prompts,
    checkpoint: Checkpoint = "fashion-32",
    output: Output = Path("outputs"),
    num_images: NumImages = 1,
    guidance_scale: GuidanceScale = None,
    negative_prompt: NegativePrompt = None,
    steps: Steps = None,
    seed: Seed = 0,
    scheduler: Scheduler = None,
    batch_size: BatchSize = 16,
    device: Device = None,
    grid: Grid = True,
    json_output: Json = False,
) -> None:
    """Draw images for text prompts, save them as PNG files and print their paths.

    Under `accelerate launch` the processes share the drawing, and the images are the same.
    """
    from guided_diffusers.launch import processes

    if scheduler is not None and scheduler not in SCHEDULERS:
        allowed = ", ".join(SCHEDULERS)
        raise typer.BadParameter(f"{scheduler!r} is none of {allowed}", param_hint="--scheduler")
    sharing = processes(device)
    pipeline = load_pipeline(checkpoint, scheduler, device)
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
    options = {"guidance_scale": guidance_scale, "num_inference_steps": steps}
    given = {name: value for name, value in options.items() if value is not None}
    images = draw(pipeline, prompts, num_images, seed, batch_size, negative_prompt, sharing, **given)
    records, grid_path = save(images, prompts, seed, output, grid, sharing)
    if not sharing.is_main_process:
        return
    if json_output:
        summary = {"checkpoint": checkpoint, "images": records, "grid": grid_path and str(grid_path)}
        typer.echo(json.dumps(summary, indent=2))
    else:
        for path in [record["path"] for record in records] + ([grid_path] if grid_path else []):
            typer.echo(path)


app.command()(likelihood)
app.command()(evaluate)
app.command()(sweep)
app.command()(convert_adm)
app.command()(convert_ldm)
app.command()(push)
app.command()(pull)
app.command()(info)


def _print_version(wanted: bool) -> None:
    if wanted:
        from guided_diffusers import __version__

        typer.echo(f"guided-diffusers {__version__}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
]


@app.callback()
def root(version: Version = False) -> None:
    """Guided diffusion on top of diffusers."""


def main() -> None:
    """Runs the command line and ends the process. With GUIDED_DIFFUSERS_DEBUG=1, errors show a traceback."""
    try:
        app()
    except Exception as error:  # a user gets one line, whatever it is; the traceback is for who asks
        if os.environ.get("GUIDED_DIFFUSERS_DEBUG", "0") not in ("", "0"):
            raise
        reason = " ".join(str(error).split()) or "no reason given"
        kind = "" if isinstance(error, ValueError | TypeError | OSError) else f"{type(error).__name__}: "
        print(f"error: {kind}{reason}", file=sys.stderr)
        sys.exit(1)
