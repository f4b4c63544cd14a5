"""`guided-diffusers sweep`: run a sweep from its YAML file, draw its figures, adopt its best point."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guided_diffusers.cli.drawing import CLASSIFIER_GUIDED, PROMPTLESS, load_pipeline, make_scheduler

if TYPE_CHECKING:
    from guided_diffusers.evaluation.images import ImageSet
    from guided_diffusers.evaluation.metrics import Metrics
    from guided_diffusers.evaluation.sweep import PipelineSampler, SweepSpec

Config = Annotated[Path, typer.Argument(help="The YAML file of the sweep.", exists=True, dir_okay=False)]
Output = Annotated[Path, typer.Option(help="Its folder; the same command goes on with what is there.")]
Device = Annotated[str | None, typer.Option(help="Where to draw.", show_default="cuda, else cpu")]
Adopt = Annotated[
    Path | None,
    typer.Option(help="A checkpoint's folder: the winner becomes its default guidance.", file_okay=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print results.json instead of a line a point.")]

WEAK_COMPONENT = "weak_unet"
"""The name of TextToImagePipeline's component that autoguidance guides by."""


def sweep(
    config: Config,
    output: Output = Path("sweep"),
    device: Device = None,
    adopt: Adopt = None,
    json_output: Json = False,
) -> dict[str, Any] | None:
    """Compare ways of guiding, on common prompts and seeds.

    Distance to real images, agreement with prompt or class and compute of each, their figures, and a winner.
    Resumable: every point is measured once. Under `accelerate launch` the processes share the points.
    """
    from guided_diffusers.evaluation.images import read_images
    from guided_diffusers.evaluation.sweep import SweepSpec, points_of, run_sweep
    from guided_diffusers.evaluation.sweep.figures import draw_figures
    from guided_diffusers.store.launch import processes as all_processes

    spec = SweepSpec.read(config)
    processes = all_processes(device)
    data = read_images(spec.data)
    sampler = _sampler(spec, device)
    for point in points_of(spec):
        sampler.check(point)  # before anything is drawn, what no point can be drawn with
    metrics = _metrics(spec, data, sampler)

    def on_point(record: Any, number: int, count: int) -> None:
        if not json_output:
            typer.echo(f"{number}/{count} {line(record, metrics.distance(spec.distance))}")

    prompts = partial(sampler.prompts, data)
    results = run_sweep(spec, sampler, metrics, prompts, output, processes=processes, on_point=on_point)
    if not processes.is_main_process:
        return None
    paths = draw_figures(results, output)
    adopted = None if adopt is None else _adopt(results, adopt)
    if not json_output:
        typer.echo("\n".join(map(str, paths)))
        if adopted is not None:
            guidance = json.dumps(results["verdict"]["winner"]["guidance"])
            typer.echo(f"{adopted}: default_guidance is now {guidance}")
    return results


def line(record: Any, distance: str) -> str:
    """A point and its figures in one line."""
    from guided_diffusers.evaluation.sweep import Point

    point, figures = Point(**record["point"]), record["figures"]
    parts = [f"{point.title}, {point.steps} steps: "]
    for name in (distance, "agreement"):
        if name in figures:
            value = figures[name]
            parts.append(f"{name} {value['value']:.4g} [{value['low']:.4g}, {value['high']:.4g}], ")
    return "".join(parts) + f"{record['compute']['flops'] / 1e9:.2f} GFLOPs an image"


def _sampler(spec: SweepSpec, device: str | None) -> PipelineSampler:
    from guided_diffusers.core.checks import check_that
    from guided_diffusers.evaluation.sweep import PipelineSampler
    from guided_diffusers.hub.component import load_network, stock_class

    pipeline = load_pipeline(spec.checkpoint, device=device, prompted=False)
    weak = None
    if spec.weak is not None:
        stock = getattr(pipeline, "stock", None)
        allowed = f"none, for a {type(stock).__name__} is guided by no second network: leave it out"
        check_that(stock is None, "weak", spec.weak, allowed)
        weak = load_network(stock_class(pipeline.unet), f"{spec.checkpoint}/{spec.weak}", spec.weak)
        weak = weak.to(pipeline.device).eval()
    return PipelineSampler(pipeline, make_scheduler, weak)


def _metrics(spec: SweepSpec, data: ImageSet, sampler: PipelineSampler) -> Metrics:
    from guided_diffusers.evaluation import load_judge
    from guided_diffusers.evaluation.features import feature_network
    from guided_diffusers.evaluation.metrics import Metrics
    from guided_diffusers.evaluation.reference import Reference, reference_features

    if spec.judge is not None:
        data.need(
            "labels", f"a judge needs the class of each image, and {spec.data} has no column `label` of them"
        )
        from guided_diffusers.core.checks import check_that

        allowed = f"none, for {spec.checkpoint} draws for no class that a judge could find: leave it out"
        check_that(sampler.takes_text or sampler.takes_class, "judge", spec.judge, allowed)
    network = feature_network(spec.features)
    return Metrics(
        network=network,
        reference=Reference(reference_features(data.images, network)),
        judge=None if spec.judge is None else load_judge(spec.judge)[0],
        resamples=spec.resamples,
    )


def _adopt(results: dict[str, Any], folder: Path) -> Path:
    """Write the winner into model_index.json as the default guidance, with the network that it needs.

    Raises:
        ValueError: No winner, one that needs a weak network that the checkpoint does not bring, or a
            checkpoint of a pipeline that takes no guidance.
    """
    import diffusers

    from guided_diffusers.cli.stock import BY_CLASS, BY_PROMPT
    from guided_diffusers.hub.entry_point import LIBRARY
    from guided_diffusers.hub.inventory import WAY_OF_DRAWING
    from guided_diffusers.store.files import write_json_atomically

    if "verdict" not in results:
        raise ValueError("the sweep has no finals, so there is no winner to adopt: add `finals` to its file")
    guidance, weak = results["verdict"]["winner"]["guidance"], results["spec"]["weak"]
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    stock = index["_class_name"] in (BY_CLASS, *BY_PROMPT)
    if stock:
        index[WAY_OF_DRAWING] = {**index.get(WAY_OF_DRAWING, {}), "default_guidance": guidance}
    else:
        index["default_guidance"] = guidance
    if index["_class_name"] in PROMPTLESS:
        raise ValueError(f"{folder} holds the pipeline {index['_class_name']}, which takes no guidance")
    if any(term["term"] == "AutoGuidance" for term in guidance):
        if stock or index["_class_name"] in CLASSIFIER_GUIDED:
            raise ValueError(f"the winner guides by {weak!r}, and {index['_class_name']} has no weak network")
        if weak != WEAK_COMPONENT or not (folder / weak).is_dir():
            raise ValueError(f"the winner guides by {weak!r}: bring it in a folder {WEAK_COMPONENT}")
        config = json.loads((folder / weak / "config.json").read_text())
        library = "diffusers" if hasattr(diffusers, config["_class_name"]) else LIBRARY
        index[WEAK_COMPONENT] = [library, config["_class_name"]]
    write_json_atomically(path, index)
    return path
