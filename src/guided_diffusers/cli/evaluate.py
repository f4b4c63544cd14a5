"""`guided-diffusers evaluate`: figures of images against real ones; draws them first if asked to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guided_diffusers.cli.drawing import SCHEDULERS, check_scheduler_name, load_pipeline, make_scheduler

if TYPE_CHECKING:
    from guided_diffusers.evaluation import ImageSet

Generated = Annotated[
    Path,
    typer.Argument(help="The images: a folder, .npz or .parquet. With --checkpoint: where to draw them."),
]
Real = Annotated[Path, typer.Option(help="Real images: a folder, .npz or .parquet.", exists=True)]
Checkpoint = Annotated[
    str | None, typer.Option(help="Draw the images first, with this, for the real ones' captions or classes.")
]
NumImages = Annotated[int, typer.Option(min=2, help="How many to draw.")]
GuidanceScale = Annotated[
    float | None, typer.Option(help="Of drawing; 1 is unguided.", show_default="checkpoint's own")
]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps of drawing.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help=f"One of: {', '.join(SCHEDULERS)}.",
        show_default="checkpoint's own",
        callback=check_scheduler_name,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Image i is drawn from this and i only.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images drawn at once.")]
Format = Annotated[str, typer.Option("--format", help="Of the drawn images: npz or png.")]
Features = Annotated[
    str,
    typer.Option(
        help="efficientnet-lite0, -lite1, inception, or a classifier's file; figures carry the name."
    ),
]
JudgeFile = Annotated[
    Path | None, typer.Option("--judge", help="A classifier's file, for agreement with the labels.")
]
Clip = Annotated[str | None, typer.Option(help="A CLIP model, for the CLIP score and retrieval.")]
Training = Annotated[
    Path | None, typer.Option(help="The images the model was trained on, to look for copies of them.")
]
Picture = Annotated[Path | None, typer.Option(help="With --training: the closest pairs, into this file.")]
Limit = Annotated[int | None, typer.Option(min=2, help="Read only so many images of each source.")]
Device = Annotated[str | None, typer.Option(help="Where to draw.", show_default="cuda, else cpu")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line a figure.")]


def evaluate(
    generated: Generated,
    real: Real,
    checkpoint: Checkpoint = None,
    num_images: NumImages = 1000,
    guidance_scale: GuidanceScale = None,
    steps: Steps = 25,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    batch_size: BatchSize = 100,
    image_format: Format = "npz",
    features: Features = "efficientnet-lite0",
    judge: JudgeFile = None,
    clip: Clip = None,
    training: Training = None,
    picture: Picture = None,
    limit: Limit = None,
    device: Device = None,
    json_output: Json = False,
) -> dict[str, Any] | None:
    """Measure any model's images against real ones.

    Distances, agreement with the captions, diversity, copies of training images, each with an interval.

    Needs none of our models: a folder of PNG files against another is enough. With --checkpoint the images
    are drawn first; under `accelerate launch` the processes share the drawing, and the figures are the same.
    """
    from guided_diffusers.evaluation import feature_network, load_judge, read_images
    from guided_diffusers.evaluation.clip import ClipScorer
    from guided_diffusers.evaluation.evaluate import evaluate_images
    from guided_diffusers.store.files import write_atomically
    from guided_diffusers.store.launch import processes as all_processes

    processes = all_processes(device) if checkpoint is not None else None
    network = feature_network(features)
    judging = None if judge is None else load_judge(judge)[0]
    truth, compute = read_images(real, limit=limit), None
    if checkpoint is not None:
        options = (guidance_scale, steps, scheduler, seed, batch_size, image_format, device)
        images, compute = _drawn(checkpoint, truth, num_images, generated, processes, *options)
        if not processes.is_main_process:
            return None
    else:
        images = read_images(generated, limit=limit)
    figures, pairs = evaluate_images(
        images,
        truth,
        network,
        judge=judging,
        clip=None if clip is None else ClipScorer.from_pretrained(clip),
        training=None if training is None else read_images(training),
        seed=seed,
    )
    if picture is not None and pairs is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(picture, lambda at: pairs.save(at, format=_format_of(picture)))
    results = {"images": len(images), "real_images": len(truth), "figures": figures, "compute": compute}
    if not json_output:
        _say(results)
    return results


def _format_of(picture: Path) -> str:
    from PIL import Image

    from guided_diffusers.core.checks import check_that

    formats = Image.registered_extensions()
    allowed = "a name that ends as pictures' do, such as .png"
    check_that(picture.suffix.lower() in formats, "--picture", str(picture), allowed)
    return formats[picture.suffix.lower()]


def _say(results: dict[str, Any]) -> None:
    typer.echo(f"{results['images']} images against {results['real_images']} real ones")
    for name, figure in results["figures"].items():
        typer.echo(f"{name}: {figure['value']:.5g} [{figure['low']:.5g}, {figure['high']:.5g}]")
    if results["compute"] is not None:
        typer.echo(f"{results['compute']['flops'] / 1e9:.2f} GFLOPs an image")


def _drawn(
    checkpoint: str,
    real: ImageSet,
    count: int,
    folder: Path,
    processes: Any,
    guidance_scale: float | None,
    steps: int,
    scheduler: str | None,
    seed: int,
    batch_size: int,
    image_format: str,
    device: str | None,
) -> tuple[ImageSet, dict[str, Any] | None]:
    """Draw images for captions or classes of the real ones into a folder; them, and what one cost."""
    from huggingface_hub.utils import tqdm

    from guided_diffusers.evaluation import generate_images, generated_images
    from guided_diffusers.evaluation.evaluate import with_prompts
    from guided_diffusers.evaluation.sweep import OWN_SCHEDULER, PipelineSampler, Point

    pipeline = load_pipeline(checkpoint, device=device, prompted=False)
    guided = hasattr(pipeline, "call_guidance")
    if guidance_scale is not None and not guided:
        raise ValueError(f"--guidance-scale is given, and {type(pipeline).__name__} takes no guidance")
    guidance = pipeline.call_guidance(guidance_scale).to_config() if guided else []
    point = Point(
        arm="evaluate",
        guidance=guidance,
        scheduler=scheduler or OWN_SCHEDULER,
        steps=steps,
        images=count,
        seed=seed,
    )
    sampler = PipelineSampler(pipeline, make_scheduler)
    sampler.check(point)
    prompts = sampler.prompts(real, count)
    with tqdm(total=count, unit="image", disable=not sys.stderr.isatty()) as progress:
        generate_images(
            lambda indices: sampler.sample(point, prompts, indices),
            count,
            folder,
            settings={**point.to_dict(), **sampler.identity()},
            batch_size=batch_size,
            image_format=image_format,
            processes=processes,
            on_images=progress.update,
        )
    if not processes.is_main_process:
        return real, None
    images = with_prompts(generated_images(folder, count), prompts.texts, prompts.labels)
    return images, sampler.compute(point, prompts).to_dict()
