"""The figures of a sweep: distance against agreement with its Pareto front, and each against compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guided_diffusers.evaluation.generation import generated_images
from guided_diffusers.evaluation.grid import labelled_grid, to_pictures
from guided_diffusers.evaluation.plotting import new_figure, write_figure
from guided_diffusers.evaluation.sweep.spec import Point
from guided_diffusers.store.files import write_atomically

_MARKERS = "osD^vP*Xhd<>"


def draw_figures(results: Mapping[str, Any], folder: Path | str) -> list[Path]:
    """The figures of a sweep as PNG files in its folder; their paths.

    `trade-off.png`: agreement against distance, an arm a line, the front ringed. `compute.png`: the finals'
    distance and agreement against FLOPs an image. `scales-ARM.png` and `steps.png`: pictures of the same
    prompts and seeds, a row a scale, and a row an arm and number of steps. What a sweep has no figures for is
    left out, and so are points whose images were removed after they had been measured.
    """
    folder, paths = Path(folder), []
    if "agreement" in results["points"][0]["figures"]:
        paths.append(write_figure(_trade_off(results), folder / "trade-off.png"))
    if results.get("finals"):
        paths.append(write_figure(_compute(results), folder / "compute.png"))
    grids = {f"scales-{arm}.png": records for arm, records in _by_arm(results["points"]).items()}
    for name, records in {**grids, "steps.png": results.get("finals", [])}.items():
        drawn = [r for r in records if (folder / "images" / Point(**r["point"]).name).is_dir()]
        if drawn:
            paths.append(picture_grid(drawn, folder / "images", folder / name))
    return paths


def picture_grid(records: Sequence[Mapping[str, Any]], images: Path, path: Path, columns: int = 10) -> Path:
    """A picture of the same prompts and seeds, a row a record, a column an image.

    Args:
        records: Such as one arm over its scales, or over its steps.
        images: The sweep's folder of images.
        path: The PNG file to write.
        columns: Images a row, spread evenly over those that all the records have.
    """
    count = min(record["point"]["images"] for record in records)
    columns = min(columns, count)
    indices = [(2 * column + 1) * count // (2 * columns) for column in range(columns)]
    rows, labels = [], []
    for record in records:
        point = Point(**record["point"])
        rows.append(to_pictures(generated_images(images / point.name, max(indices) + 1)[indices]))
        labels.append(f"{point.title}, {point.steps} steps")
    grid = labelled_grid(rows, labels, 48)
    write_atomically(path, lambda at: grid.save(at, format="png", optimize=True))
    return path


def _trade_off(results: Mapping[str, Any]) -> Any:
    figure = new_figure(8.5, 5.5)
    axes, distance = figure.add_subplot(), results["distance"]
    records = results["points"]
    for (arm, its), marker in zip(_by_arm(records).items(), _cycled(), strict=False):
        xs, ys = _values(its, distance), [100 * y for y in _values(its, "agreement")]
        (line,) = axes.plot(xs, ys, marker=marker, markersize=5, linewidth=1, label=arm)
        for record, x, y in zip(its, xs, ys, strict=True):
            axes.annotate(
                Point(**record["point"]).scale, (x, y), fontsize=6, color=line.get_color(),
                textcoords="offset points", xytext=(3, 3),
            )  # fmt: skip
    front = [records[index] for index in results["front"]]
    axes.plot(
        _values(front, distance), [100 * y for y in _values(front, "agreement")],
        linestyle="none", marker="o", markersize=12, markerfacecolor="none", markeredgecolor="black",
        label="Pareto front",
    )  # fmt: skip
    axes.set_xlabel(f"{distance} to real images (less is better)")
    if min(_values(records, distance)) > 0:  # a bad point would squeeze the good ones together
        axes.set_xscale("log")
    axes.set_ylabel("agreement with the prompt, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _compute(results: Mapping[str, Any]) -> Any:
    figure = new_figure(10, 4.5)
    distance = results["distance"]
    panels = [(distance, f"{distance} (less is better)", 1.0), ("agreement", "agreement, %", 100.0)]
    panels = [panel for panel in panels if panel[0] in results["finals"][0]["figures"]]
    for axes, (name, label, unit) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for its, marker in zip(_by_arm(results["finals"]).values(), _cycled(), strict=False):
            its = sorted(its, key=lambda record: record["compute"]["flops"])
            flops = [record["compute"]["flops"] / 1e9 for record in its]
            values = [unit * value for value in _values(its, name)]
            low = [unit * (r["figures"][name]["value"] - r["figures"][name]["low"]) for r in its]
            high = [unit * (r["figures"][name]["high"] - r["figures"][name]["value"]) for r in its]
            axes.errorbar(
                flops, values, yerr=[low, high], marker=marker, markersize=5, linewidth=1, capsize=2,
                label=Point(**its[0]["point"]).title,
            )  # fmt: skip
        axes.set_xlabel("GFLOPs an image")
        axes.set_xscale("log")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def _by_arm(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        arms.setdefault(record["point"]["arm"], []).append(record)
    return arms


def _values(records: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [record["figures"][name]["value"] for record in records]


def _cycled() -> str:
    return _MARKERS * 10
