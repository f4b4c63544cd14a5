"""The figures of the comparison of classifier guidance: trade-offs, and the images of chosen points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from points import CONDITIONAL, UNCONDITIONAL, role_of
from torch import Tensor

from guided_diffusers.evaluation.grid import labelled_grid, to_pictures
from guided_diffusers.guidance.classifier import FORMS

COLUMNS = 8
FORM_NAMES = {"score": "score form", "mean_shift": "mean shift"}
Record = Mapping[str, Any]


def draw(
    results: Mapping[str, Any],
    images_of: Callable[[Mapping[str, Any]], Tensor],
    names: Sequence[str],
    stem: Path,
) -> list[Path]:
    """Write `<stem>-trade-off.png`, `<stem>-scales.png`, and of each final `<stem>-<role>.png`.

    Args:
        results: Of the measurement.
        images_of: The images of a point.
        names: Of the classes, of which image i has the one of number i modulo their number.
        stem: The folder, and how the names begin.

    Returns:
        The paths.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    trade_off = stem.with_name(f"{stem.name}-trade-off.png")
    _trade_off(results, trade_off)
    pictures = {"scales": _scales(results, images_of, names)}
    for record in results["finals"]:
        role = role_of(record["point"]).replace("_", "-")
        pictures[role] = _classes(images_of(record["point"]), names)
    paths = [trade_off]
    for name, picture in pictures.items():
        if picture is not None:
            paths.append(stem.with_name(f"{stem.name}-{name}.png"))
            picture.quantize(64).save(paths[-1], optimize=True)
    return paths


def lines_of(results: Mapping[str, Any]) -> Iterator[tuple[str, list[Record]]]:
    """What belongs together, from the weakest scale on: a form and number of steps; a gamma of the grid."""
    records = results["points"]
    own = [r for r in records if r["point"]["denoiser"] == UNCONDITIONAL and not _everywhere(r)]
    for steps in sorted({record["point"]["steps"] for record in own}):
        for form in FORMS:
            line = [
                r
                for r in own
                if r["point"]["steps"] == steps and (r["point"]["form"] == form or not r["point"]["scale"])
            ]
            if line:
                yield f"{FORM_NAMES[form]}, {steps} steps", _by_scale(line)
    grid = [record for record in records if record["point"]["denoiser"] == CONDITIONAL]
    for gamma in sorted({record["point"]["gamma"] for record in grid}):
        line = [record for record in grid if record["point"]["gamma"] == gamma]
        yield f"conditional, γ = {gamma:g}, {line[0]['point']['steps']} steps", _by_scale(line)


def _by_scale(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record["point"]["scale"])


def _everywhere(record: Record) -> bool:
    return bool(record["point"]["scale"]) and record["point"]["interval"] is None


def _trade_off(results: Mapping[str, Any], path: Path) -> None:
    """Accuracy against distance, and recall against accuracy; each point with its classifier scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, distance = Figure(figsize=(12, 5), layout="constrained"), results["distance"]
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    panels = [(left, distance, "agreement"), (right, "agreement", "recall")]
    for axes, across, up in panels:
        for (label, line), marker in zip(lines_of(results), "os^vDPX*<>hd" * 3, strict=False):
            xs, ys = ([record["figures"][name]["value"] for record in line] for name in (across, up))
            (drawn,) = axes.plot(xs, ys, marker=marker, markersize=5, linewidth=1, label=label)
            for record, x, y in zip(line, xs, ys, strict=True):
                axes.annotate(
                    f"{record['point']['scale']:g}", (x, y), fontsize=6, color=drawn.get_color(),
                    textcoords="offset points", xytext=(3, 3),
                )  # fmt: skip
        axes.grid(alpha=0.3)
    names = {distance: f"{distance} to the test images", "agreement": "held-out accuracy", "recall": "recall"}
    for axes, across, up in panels:
        axes.set(xlabel=names[across], ylabel=names[up])
    if all(record["figures"][distance]["value"] > 0 for record in results["points"]):
        left.set_xscale("log")
    left.legend(fontsize=7)
    figure.suptitle("Numbers at the points: classifier scale", fontsize=9)
    figure.savefig(path, dpi=110)


def _scales(
    results: Mapping[str, Any], images_of: Callable[[Mapping[str, Any]], Tensor], names: Sequence[str]
) -> Any:
    """The same classes and noise over the scales of both forms at the fewest steps; None without these."""
    rows, labels = [], []
    own = [(label, line) for label, line in lines_of(results) if not label.startswith("conditional")]
    if not own:
        return None
    fewest = own[0][1][0]["point"]["steps"]
    for label, line in own:
        for record in line:
            known = f"{label}: s = {record['point']['scale']:g}" if record["point"]["scale"] else "unguided"
            if record["point"]["steps"] == fewest and known not in labels:
                rows.append(to_pictures(images_of(record["point"])[: len(names)]))
                labels.append(known)
    return labelled_grid(rows, labels, 48)


def _classes(images: Tensor, names: Sequence[str]) -> Any:
    """A row a class."""
    count = len(names)
    rows = [to_pictures(images[number::count][:COLUMNS]) for number in range(count)]
    return labelled_grid(rows, list(names), 64)
