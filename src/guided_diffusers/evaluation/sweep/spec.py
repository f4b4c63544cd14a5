"""What a sweep asks: arms x scales x intervals x schedulers x steps x seeds, from a YAML file.

    checkpoint: fashion-32              # what draws: a shipped name, a folder, a Hub repository
    data: data/fashion/test.parquet     # real images, their captions and classes
    arms:
      plain: {guidance: [{term: ClassifierFreeGuidance}], scales: [1, 2, 4]}
      interval: {guidance: [{term: ClassifierFreeGuidance}], scales: [2, 4], intervals: [[0.2, 5]]}
    schedulers: [ddim]
    steps: [20]
    images: 1000

Each arm is a sum of guidance terms as in `Guidance.to_config`; its first term gets the arm's scales and
intervals. Every point draws the same prompts from the same seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of guiding.

    Attributes:
        guidance: Its terms; the first is swept, so it names no scale and no interval of its own.
        scales: The scales of the first term.
        intervals: Its intervals, pairs in sigma / alpha, None for everywhere.
    """

    guidance: list[dict[str, Any]]
    scales: list[float]
    intervals: list[list[float | None] | None] = field(default_factory=lambda: [None])

    def __post_init__(self) -> None:
        """Check what a typing mistake would spoil."""
        if not self.guidance or not self.scales or not self.intervals:
            raise ValueError("an arm needs at least one guidance term, one scale and one interval (or none)")
        swept = sorted({"scale", "interval"} & set(self.guidance[0]))
        if swept:
            raise ValueError(
                f"the first term of an arm names {swept[0]!r}, which the sweep sets: leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class Finals:
    """The second round: the best arms and the baseline, each at its best point, over steps.

    Attributes:
        baseline: The arm that the others are compared with.
        arms: How many others.
        steps: Numbers of steps.
        images: Images a point.
        min_agreement: The least agreement with the prompt, in [0, 1], of a point that may be an arm's best:
            an arm without such a point is left out.
    """

    baseline: str
    arms: int = 3
    steps: list[int] = field(default_factory=lambda: [10, 20, 50])
    images: int = 2500
    min_agreement: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A whole sweep.

    Attributes:
        checkpoint: What draws.
        data: Real images with captions: a parquet file or a folder.
        arms: By name.
        weak: Subfolder of the checkpoint with the weak network of autoguidance.
        schedulers: Names as of `guided-diffusers generate --scheduler`.
        steps: Numbers of steps.
        images: Images a point.
        seed: Of the first seed set.
        seed_sets: Seed sets that the baseline's best point is drawn with, to show the spread.
        features: The feature network of the distances.
        judge: File of the classifier that agreement is measured with; None for none.
        distance: The figure that ranks: "kernel" (unbiased) or "frechet".
        resamples: Bootstrap resamples of the intervals.
        batch_size: Images drawn at once.
        finals: The second round; None for none.
    """

    checkpoint: str
    data: str
    arms: dict[str, Arm]
    weak: str | None = None
    schedulers: list[str] = field(default_factory=lambda: ["ddim"])
    steps: list[int] = field(default_factory=lambda: [20])
    images: int = 1000
    seed: int = 0
    seed_sets: int = 5
    features: str = "efficientnet-lite0"
    judge: str | None = None
    distance: str = "kernel"
    resamples: int = 200
    batch_size: int = 100
    finals: Finals | None = None

    def __post_init__(self) -> None:
        """Check the names that point at one another."""
        if self.distance not in ("kernel", "frechet"):
            raise ValueError(f"distance is {self.distance!r}; allowed: kernel, frechet")
        if self.finals is not None and self.finals.baseline not in self.arms:
            raise ValueError(
                f"finals.baseline is {self.finals.baseline!r}; the arms are {', '.join(self.arms)}"
            )
        for name in ("schedulers", "steps", "arms"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give at least one")

    @classmethod
    def read(cls, path: Path | str) -> SweepSpec:
        """A sweep from its YAML file.

        Raises:
            ValueError: An unknown key, a missing one, or a value that is not allowed.
        """
        import yaml

        values = yaml.safe_load(Path(path).read_text())
        if not isinstance(values, Mapping):
            raise ValueError(f"{path} holds no mapping of settings")
        values = dict(values)
        if isinstance(values.get("arms"), Mapping):
            values["arms"] = {name: _filled(Arm, arm, f"arms.{name}") for name, arm in values["arms"].items()}
        if values.get("finals") is not None:
            values["finals"] = _filled(Finals, values["finals"], "finals")
        return _filled(cls, values, str(path))

    def to_dict(self) -> dict[str, Any]:
        """The whole sweep as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a sweep: what is drawn, and how."""

    arm: str
    guidance: list[dict[str, Any]]
    scheduler: str
    steps: int
    images: int
    seed: int

    @property
    def name(self) -> str:
        """A name of its own within a sweep, for files."""
        first = self.guidance[0]
        parts = [self.arm, f"{first['scale']:g}"]
        if first.get("interval") is not None:
            parts += ["in", *("inf" if limit is None else f"{limit:g}" for limit in first["interval"])]
        return "-".join(
            [*parts, self.scheduler, f"{self.steps}steps", f"{self.images}images", f"seed{self.seed}"]
        )

    def to_dict(self) -> dict[str, Any]:
        """The point as JSON values."""
        return asdict(self)


def points_of(spec: SweepSpec) -> list[Point]:
    """The points of the first round, arm by arm."""
    return [
        Point(
            arm=name,
            guidance=_swept(arm.guidance, scale, interval),
            scheduler=scheduler,
            steps=steps,
            images=spec.images,
            seed=spec.seed,
        )
        for name, arm in spec.arms.items()
        for scheduler, steps, interval, scale in product(
            spec.schedulers, spec.steps, arm.intervals, arm.scales
        )
    ]


def _swept(
    guidance: Sequence[Mapping[str, Any]], scale: float, interval: Sequence[float | None] | None
) -> list[dict[str, Any]]:
    first, *rest = ({**term} for term in guidance)
    first["scale"] = float(scale)
    if interval is not None:
        first["interval"] = list(interval)
    return [first, *rest]


def _filled(cls: type, values: Any, where: str) -> Any:
    """A dataclass from a mapping, with errors that say where."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}; wanted: a mapping")
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has an unknown key {key!r}; allowed: {', '.join(known)}")
    for name, f in known.items():
        if name not in values and f.default is f.default_factory is MISSING:
            raise ValueError(f"{where} lacks {name!r}")
    return cls(**values)
