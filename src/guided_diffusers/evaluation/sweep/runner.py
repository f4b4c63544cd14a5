"""Running a sweep: draw, measure, write; resumable at every chunk of images and every point.

The folder of a sweep:

    sweep.json              the sweep as it was asked for
    images/POINT/           the images of a point, in chunks
    points/POINT.json       its figures, written once when all its images are there
    results.json            everything together: a function of the figures alone, so a sweep that was killed
                            and restarted ends with the same bytes
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from guided_diffusers.evaluation.agreement import agreement
from guided_diffusers.evaluation.compute import Compute
from guided_diffusers.evaluation.features import FeatureNetwork, extract_features
from guided_diffusers.evaluation.generation import (
    OneProcess,
    Processes,
    generate_images,
    generated_images,
    write_json_atomically,
)
from guided_diffusers.evaluation.judge import Judge, judge_images
from guided_diffusers.evaluation.prompts import Prompts, stratified_prompts
from guided_diffusers.evaluation.reference import Reference
from guided_diffusers.evaluation.report import distance_report, figure_names
from guided_diffusers.evaluation.sweep.choice import finalists, pareto_front, spread, verdict
from guided_diffusers.evaluation.sweep.spec import Point, SweepSpec, points_of

_MAY_GROW = ("arms", "schedulers", "steps", "images", "seed", "seed_sets", "finals", "distance")
"""What each point says of itself, and what is decided after all of them."""


class Drawer(Protocol):
    """What draws the images of a sweep."""

    def draw(self, point: Point, prompts: Prompts, indices: Sequence[int]) -> Tensor:
        """Images of the global indices under a point, `(len(indices), c, h, w)` uint8."""

    def compute(self, point: Point, prompts: Prompts) -> Compute:
        """What an image of a point costs."""

    def identity(self) -> dict[str, Any]:
        """JSON values that say what draws, such as a hash of its weights."""


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """What measures the images of a sweep.

    Attributes:
        network: The feature network.
        reference: The real images.
        judge: A classifier that the generator has never met; None measures no agreement.
        resamples: Bootstrap resamples of the intervals.
    """

    network: FeatureNetwork
    reference: Reference
    judge: Judge | None = None
    resamples: int = 200

    def measure(self, images: Tensor, labels: Tensor | None) -> dict[str, Any]:
        """Every figure of a set of images by name, each with its interval."""
        features = extract_features(self.network, images)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # said once by whoever runs the sweep
            report = distance_report(self.reference, features, self.network.name, resamples=self.resamples)
        figures = {name: estimate.to_dict() for name, estimate in report.items()}
        if self.judge is not None and labels is not None:
            figures["agreement"] = agreement(judge_images(self.judge, images), labels).overall.to_dict()
        return figures

    def distance(self, kind: str) -> str:
        """The name of the "kernel" or the "frechet" distance among the figures."""
        frechet, kernel = figure_names(self.network.name)
        return {"kernel": kernel, "frechet": frechet}[kind]


def run_sweep(
    spec: SweepSpec,
    drawer: Drawer,
    ruler: Ruler,
    data: Any,
    folder: Path | str,
    *,
    processes: Processes = OneProcess(),  # noqa: B008 - frozen
    on_point: Callable[[Mapping[str, Any], int, int], None] | None = None,
) -> dict[str, Any]:
    """Run what is missing of a sweep and write results.json.

    Args:
        spec: The sweep.
        drawer: Draws.
        ruler: Measures.
        data: The ImageSet whose captions are drawn.
        folder: Of the sweep; made where it is not there.
        processes: Who shares the points, such as `accelerate.PartialState()`.
        on_point: Called with the record of each point of this process, its place and how many there are.

    Returns:
        What results.json holds.

    Raises:
        ValueError: The folder belongs to a sweep of another checkpoint, data or measure.
    """
    sweep = _Sweep(spec, drawer, ruler, data, Path(folder), processes, on_point)
    sweep.settle()
    distance = ruler.distance(spec.distance)
    records = sweep.measure(points_of(spec))
    results: dict[str, Any] = {
        "spec": spec.to_dict(),
        "drawer": drawer.identity(),
        "distance": distance,
        "points": records,
        "front": pareto_front(records, distance, "agreement") if "agreement" in records[0]["figures"] else [],
    }
    if spec.finals is not None:
        results |= _second_round(sweep, spec, records, distance)
    if processes.process_index == 0:
        write_json_atomically(Path(folder) / "results.json", results)
    processes.wait_for_everyone()
    return results


def _second_round(
    sweep: _Sweep, spec: SweepSpec, records: list[dict[str, Any]], distance: str
) -> dict[str, Any]:
    """The finals, the spread over seed sets, and the verdict."""
    rule = spec.finals
    chosen = finalists(records, rule.baseline, rule.arms, distance, rule.min_agreement)
    first = Point(**chosen[0]["point"])
    seeds = sweep.measure([replace(first, seed=spec.seed + number) for number in range(spec.seed_sets)])
    finals = sweep.measure(
        [
            replace(Point(**record["point"]), steps=steps, images=spec.finals.images)
            for record in chosen
            for steps in spec.finals.steps
        ]
    )
    of_seeds = spread(seeds, distance)
    return {
        "finals": finals,
        "seeds": of_seeds,
        "verdict": verdict(finals, spec.finals.baseline, distance, of_seeds["range"]),
    }


@dataclass(frozen=True)
class _Sweep:
    spec: SweepSpec
    drawer: Drawer
    ruler: Ruler
    data: Any
    folder: Path
    processes: Processes
    on_point: Callable[[Mapping[str, Any], int, int], None] | None

    def settle(self) -> None:
        """Write what all points share, or compare it with what is there; a sweep may grow."""
        path, spec = self.folder / "sweep.json", self.spec.to_dict()
        shared = {name: value for name, value in spec.items() if name not in _MAY_GROW}
        asked = json.loads(json.dumps({"spec": shared, "drawer": self.drawer.identity()}))
        if self.processes.process_index == 0 and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomically(path, asked)
        self.processes.wait_for_everyone()
        if json.loads(path.read_text()) != asked:
            raise ValueError(f"{self.folder} holds another sweep: give another folder, or remove it")

    def measure(self, points: Sequence[Point]) -> list[dict[str, Any]]:
        """The records of points; each process measures its share of those that are not there yet."""
        for number, point in enumerate(points):
            if number % self.processes.num_processes == self.processes.process_index:
                record = self._measured(point)
                if self.on_point is not None:
                    self.on_point(record, number + 1, len(points))
        self.processes.wait_for_everyone()
        return [json.loads(self._path(point).read_text()) for point in points]

    def _path(self, point: Point) -> Path:
        return self.folder / "points" / f"{point.name}.json"

    def _measured(self, point: Point) -> dict[str, Any]:
        path = self._path(point)
        if path.is_file():
            record = json.loads(path.read_text())
            if record["point"] != json.loads(json.dumps(point.to_dict())):
                raise ValueError(f"{path} is of another point of this name: rename the arm, or remove it")
            return record
        prompts = stratified_prompts(self.data, point.images)
        images = self.folder / "images" / point.name
        generate_images(
            lambda indices: self.drawer.draw(point, prompts, indices),
            point.images,
            images,
            settings=point.to_dict(),
            batch_size=self.spec.batch_size,
        )
        record = {
            "point": point.to_dict(),
            "figures": self.ruler.measure(generated_images(images, point.images), prompts.labels),
            "compute": self.drawer.compute(point, prompts).to_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, record)
        return record
