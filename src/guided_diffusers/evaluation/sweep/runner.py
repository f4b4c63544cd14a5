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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from guided_diffusers.evaluation.compute import Compute
from guided_diffusers.evaluation.generation import generate_images, generated_images
from guided_diffusers.evaluation.metrics import Metrics
from guided_diffusers.evaluation.prompts import Prompts
from guided_diffusers.evaluation.sweep.choice import finalists, pareto_front, spread, verdict
from guided_diffusers.evaluation.sweep.spec import Point, SweepSpec, points_of
from guided_diffusers.store.files import write_json_atomically
from guided_diffusers.store.provenance import OneProcess, Processes, write_or_check

_MAY_GROW = ("arms", "schedulers", "steps", "images", "seed", "seed_sets", "finals", "distance")
"""What each point says of itself, and what is decided after all of them."""


class Sampler(Protocol):
    """What draws the images of a sweep."""

    def sample(self, point: Point, prompts: Prompts, indices: Sequence[int]) -> Tensor:
        """Images of the global indices under a point, `(len(indices), c, h, w)` uint8."""

    def compute(self, point: Point, prompts: Prompts) -> Compute:
        """What an image of a point costs."""

    def identity(self) -> dict[str, Any]:
        """JSON values that say what draws, such as a hash of its weights."""


def run_sweep(
    spec: SweepSpec,
    sampler: Sampler,
    metrics: Metrics,
    prompts: Callable[[int], Prompts],
    folder: Path | str,
    *,
    processes: Processes = OneProcess(),  # noqa: B008 - frozen
    on_point: Callable[[Mapping[str, Any], int, int], None] | None = None,
) -> dict[str, Any]:
    """Run what is missing of a sweep and write results.json.

    Args:
        spec: The sweep.
        sampler: Draws the images.
        metrics: What is measured of them.
        prompts: What so many images are asked to show, such as `partial(sampler.prompts, data)`.
        folder: Of the sweep; made where it is not there.
        processes: Who shares the points, such as `accelerate.PartialState()`.
        on_point: Called with the record of each point of this process, its place and how many there are.

    Returns:
        What results.json holds.

    Raises:
        ValueError: The folder belongs to a sweep of another checkpoint, data or measure.
    """
    shared = {name: value for name, value in spec.to_dict().items() if name not in _MAY_GROW}
    sweep = Sweep(
        sampler=sampler,
        metrics=metrics,
        prompts=prompts,
        folder=Path(folder),
        made_of={"spec": shared, "drawer": sampler.identity()},
        batch_size=spec.batch_size,
        processes=processes,
        on_point=on_point,
    )
    distance = metrics.distance(spec.distance)
    records = sweep.measure(points_of(spec))
    results: dict[str, Any] = {
        "spec": spec.to_dict(),
        "drawer": sampler.identity(),
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
    sweep: Sweep, spec: SweepSpec, records: list[dict[str, Any]], distance: str
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


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The points of a sweep in its folder, each drawn and measured once.

    Attributes:
        sampler: Draws the images.
        metrics: What is measured of them.
        prompts: What so many images are asked to show.
        folder: Of the sweep; made where it is not there.
        made_of: JSON values of what all points have in common: written to sweep.json, or compared with it.
        batch_size: Images drawn at once.
        processes: Who shares the points.
        on_point: Called with the record of each point of this process, its place and how many there are.

    Raises:
        ValueError: The folder is of a sweep that was made of something else.
    """

    sampler: Sampler
    metrics: Metrics
    prompts: Callable[[int], Prompts]
    folder: Path
    made_of: Mapping[str, Any]
    batch_size: int = 100
    processes: Processes = OneProcess()  # noqa: RUF009 - frozen
    on_point: Callable[[Mapping[str, Any], int, int], None] | None = None

    def __post_init__(self) -> None:
        """Write what all points share, or compare it with what is there; a sweep may grow."""
        write_or_check(self.folder / "sweep.json", self.made_of, "a sweep", self.processes)

    def measure(self, points: Sequence[Point]) -> list[dict[str, Any]]:
        """The records of points; each process measures its share of those that are not there yet."""
        for number, point in enumerate(points):
            if number % self.processes.num_processes == self.processes.process_index:
                record = self._measured(point)
                if self.on_point is not None:
                    self.on_point(record, number + 1, len(points))
        self.processes.wait_for_everyone()
        return [json.loads(self._path(point).read_text()) for point in points]

    def images(self, point: Point) -> Tensor:
        """The images of a point that has been measured."""
        return generated_images(self.folder / "images" / point.name, point.images)

    def _path(self, point: Point) -> Path:
        return self.folder / "points" / f"{point.name}.json"

    def _measured(self, point: Point) -> dict[str, Any]:
        path = self._path(point)
        if path.is_file():
            record = json.loads(path.read_text())
            if record["point"] != json.loads(json.dumps(point.to_dict())):
                raise ValueError(f"{path} is of another point of this name: rename the arm, or remove it")
            return record
        prompts = self.prompts(point.images)
        generate_images(
            lambda indices: self.sampler.sample(point, prompts, indices),
            point.images,
            self.folder / "images" / point.name,
            settings=point.to_dict(),
            batch_size=self.batch_size,
        )
        record = {
            "point": point.to_dict(),
            "figures": self.metrics.measure(self.images(point), prompts.labels),
            "compute": self.sampler.compute(point, prompts).to_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, record)
        return record
