"""`guided-diffusers generate`: images for prompts, or once more the image that a PNG says it is."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guided_diffusers.cli.drawing import (
    CLASSIFIER_GUIDED,
    SCHEDULERS,
    check_scheduler_name,
    draw_call,
    grid_of,
    identify,
    load_pipeline,
    save,
    save_png,
    summary,
)
from guided_diffusers.cli.repeat import repeat

if TYPE_CHECKING:
    from guided_diffusers.pipelines.record import ImageRecord
    from guided_diffusers.pipelines.safe import SafePipeline

MOST_AT_ONCE, MOST_STEPS = 1024, 10_000  # what a PNG may ask for is what the command line may

Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        help="What to draw; each prompt gets a row of the grid. Classes, where a classifier guides."
    ),
]
FromImage = Annotated[
    Path | None,
    typer.Option(
        metavar="PNG",
        help="Instead of prompts: an image of `generate`, to draw again to the bit, as NAME-again.png.",
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option(help="A shipped checkpoint, a folder, or a Hub repository (owner/name)."),
]
Revision = Annotated[
    str | None, typer.Option(help="Of a Hub repository: branch, tag or commit.", show_default="main")
]
Output = Annotated[Path, typer.Option(help="The folder to write to.")]
NumImages = Annotated[int, typer.Option(min=1, help="Images for each prompt.")]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        help="How closely to follow the prompt: 1 is unguided; 2 to 8 is usual; more loses variety.",
        show_default="checkpoint's own guidance",
    ),
]
ClassifierScale = Annotated[
    float | None,
    typer.Option(
        help="Of a checkpoint with a classifier or a CLIP that guides: 0 is unguided, 1 is Bayes' rule.",
        show_default="checkpoint's own guidance",
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        help="Guide only where sigma / alpha is in (LOW, HIGH].",
        show_default="everywhere",
    ),
]
NegativePrompt = Annotated[str | None, typer.Option(help="What to steer away from.")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_STEPS, help="Denoising steps: more is slower.", show_default="50"),
]
Seed = Annotated[int, typer.Option(min=0, help="Image k of a prompt depends on this and k only.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help=f"The sampler, one of: {', '.join(SCHEDULERS)}.",
        show_default="checkpoint's own",
        callback=check_scheduler_name,
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, max=MOST_AT_ONCE, help="Images drawn at once: fewer take less memory.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps ...", show_default="cuda, else cpu")]
Grid = Annotated[bool, typer.Option(help="Save all images as one labelled picture too, grid.png.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the paths.")]

OVERRIDES = ("from_image", "output", "checkpoint", "batch_size", "device", "json_output")
"""What may be given beside --from-image; everything else is in the image."""


def generate(
    context: typer.Context,
    prompts: Prompts = None,
    from_image: FromImage = None,
    checkpoint: Checkpoint = "fashion-32",
    revision: Revision = None,
    output: Output = Path("outputs"),
    num_images: NumImages = 1,
    guidance_scale: GuidanceScale = None,
    classifier_scale: ClassifierScale = None,
    guidance_interval: GuidanceInterval = None,
    negative_prompt: NegativePrompt = None,
    steps: Steps = None,
    seed: Seed = 0,
    scheduler: Scheduler = None,
    batch_size: BatchSize = 16,
    device: Device = None,
    grid: Grid = True,
    json_output: Json = False,
) -> dict[str, Any] | None:
    """Draw images for prompts, as PNG files; print their paths.

    Every PNG says inside how it was made: the prompts of its batch, seed, scheduler, guidance, checkpoint.
    --from-image draws it again from that. Beside it only --output, --device, --batch-size (in a batch of
    another size the last bit of a pixel may differ) and --checkpoint (where the same checkpoint is now) may
    be given. A checkpoint that has changed since is refused.

    Under `accelerate launch` the processes share the drawing, and the images are the same.
    """
    given = {name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"}
    if from_image is not None:
        _check_overrides(given)
        place = checkpoint if "checkpoint" in given else None
        result = repeat(from_image, output, place, batch_size if "batch_size" in given else None, device)
    else:
        if not prompts:
            raise typer.BadParameter("Missing argument PROMPTS: say what to draw, or give --from-image")
        from PIL import Image

        from guided_diffusers.store.launch import processes

        sharing = processes(device)
        pipeline = load_pipeline(checkpoint, scheduler, device, revision)
        call = describe(
            pipeline,
            {
                "guidance_scale": guidance_scale,
                "classifier_scale": classifier_scale,
                "guidance_interval": guidance_interval,
            },
            checkpoint=checkpoint,
            fingerprint=identify(checkpoint, revision),
            prompts=tuple(prompts),
            negative_prompt=negative_prompt,
            seed=seed,
            jobs=tuple((row, index) for row in range(len(prompts)) for index in range(num_images)),
            batch_size=batch_size,
            steps=steps or default_steps(pipeline),
            scheduler=scheduler,
        )
        paths = save(draw_call(pipeline, call, sharing), call, output)
        sharing.wait_for_everyone()
        if not sharing.is_main_process:
            return None
        if grid:
            images = [Image.open(path) for path in paths]  # the other processes' too
            save_png(grid_of(images, call), call, output / "grid.png")
        result = summary(call, paths, output / "grid.png" if grid else None)
    if not json_output:
        for path in [image["path"] for image in result["images"]] + [result["grid"]]:
            if path is not None:
                typer.echo(path)
    return result


def _check_overrides(given: set[str]) -> None:
    wrong = sorted(given - set(OVERRIDES))
    if wrong:
        name = "a prompt" if wrong[0] == "prompts" else f"--{wrong[0].replace('_', '-')}"
        allowed = ", ".join(f"--{name.replace('_', '-')}" for name in OVERRIDES[1:5])
        raise typer.BadParameter(
            f"{name} is in the image already: leave it out; allowed beside it: {allowed}",
            param_hint="--from-image",
        )


def default_steps(pipeline: SafePipeline) -> int:
    """The steps of a call that names none."""
    default = inspect.signature(pipeline.__call__).parameters["num_inference_steps"].default
    return pipeline.config.num_inference_steps if default is None else default


def describe(pipeline: SafePipeline, guidance: dict[str, Any], **call: Any) -> ImageRecord:
    """The record of a call: what it was given, and what the pipeline makes of it.

    Args:
        pipeline: With the scheduler that is to draw.
        guidance: What the command line says of it; None for what it does not.
        call: The other fields.
    """
    from guided_diffusers.pipelines.record import ImageRecord, made_with, scheduler_config

    given = {name: value for name, value in guidance.items() if value is not None}
    drawn_by = type(getattr(pipeline, "base", pipeline)).__name__
    if "classifier_scale" in given and drawn_by not in CLASSIFIER_GUIDED:
        raise typer.BadParameter(
            f"{call['checkpoint']} has no classifier that guides; allowed: --guidance-scale",
            param_hint="--classifier-scale",
        )
    return ImageRecord(
        guidance=pipeline.call_guidance(**given).to_config(),
        scheduler_class=type(pipeline.scheduler).__name__,
        scheduler_config=scheduler_config(pipeline.scheduler),
        made_with=made_with(pipeline.device),
        position=None,
        **call,
    )
