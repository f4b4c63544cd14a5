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
intervals. `{}` is an arm without terms: the denoiser as it is. Every point draws the same prompts from the
same seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from guided_diffusers.core.checks import check_choice, check_that
from guided_diffusers.core.declared import AtLeast, Count, Declared, Share, Text, Whole, build
from guided_diffusers.guidance import GuidanceInterval
from guided_diffusers.store.reading import read_mapping

Steps = Annotated[list[Count], AtLeast(1), "a list of at least one integer of at least 1"]


def _interval(value: Any) -> list[float | None] | None:
    """A pair in sigma / alpha as JSON has it; None is everywhere."""
    interval = GuidanceInterval.of(value)
    return None if interval is None else interval.to_config()


@dataclass(frozen=True, kw_only=True)
class Arm(Declared):
    """One way of guiding.

    Attributes:
        guidance: Its terms; the first is swept, so it names no scale and no interval of its own. Empty, with
            no scales and no intervals, is no guidance.
        scales: The scales of the first term.
        intervals: Its intervals, pairs in sigma / alpha, None for everywhere.
    """

    guidance: list[dict[str, Any]] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    intervals: list[Annotated[list, _interval]] = field(default_factory=lambda: [None])

    def __post_init__(self) -> None:
        """Check what a typing mistake would spoil."""
        super().__post_init__()
        if self.guidance == [] and self.scales == [] and self.intervals == [None]:
            return
        for name in ("guidance", "scales", "intervals"):
            given = getattr(self, name)
            check_that(given, f"{name} of an arm", given, "a list of at least one")
        first, allowed = self.guidance[0], "one without scale and interval, which the sweep sets"
        check_that({"scale", "interval"}.isdisjoint(first), "the first term of an arm", first, allowed)


@dataclass(frozen=True, kw_only=True)
class Finals(Declared):
    """The second round: the best arms and the baseline, each at its best point, over steps.

    Attributes:
        baseline: The arm that the others are compared with.
        arms: How many others.
        steps: Numbers of steps.
        images: Images a point.
        min_agreement: The least agreement with the prompt, in [0, 1], of a point that may be an arm's best:
            an arm without such a point is left out.
    """

    baseline: Text
    arms: Whole = 3
    steps: Steps = field(default_factory=lambda: [10, 20, 50])
    images: Count = 2500
    min_agreement: Share = 0.0


@dataclass(frozen=True, kw_only=True)
class SweepSpec(Declared):
    """A whole sweep.

    Attributes:
        checkpoint: What draws.
        data: Real images with captions: a parquet file or a folder.
        arms: By name.
        weak: Subfolder of the checkpoint with the weak network of autoguidance.
        schedulers: Names as of `guided-diffusers generate --scheduler`, or "own", the checkpoint's.
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

    checkpoint: Text
    data: Text
    arms: Annotated[dict[Text, Arm], AtLeast(1), "at least one arm, by name"]
    weak: Text | None = None
    schedulers: Annotated[list[str], AtLeast(1), "a list of at least one name"] = field(
        default_factory=lambda: ["ddim"]
    )
    steps: Steps = field(default_factory=lambda: [20])
    images: Count = 1000
    seed: Whole = 0
    seed_sets: Count = 5
    features: Text = "efficientnet-lite0"
    judge: Text | None = None
    distance: Literal["kernel", "frechet"] = "kernel"
    resamples: Count = 200
    batch_size: Count = 100
    finals: Finals | None = None

    def __post_init__(self) -> None:
        """Check the values, and the names that point at one another."""
        super().__post_init__()
        if self.finals is not None:
            check_choice("finals.baseline", self.finals.baseline, self.arms)

    @classmethod
    def read(cls, path: Path | str) -> SweepSpec:
        """A sweep from its YAML file.

        Raises:
            ValueError: An unknown key, a missing one, or a value that is not allowed.
        """
        return build(cls, read_mapping(path))

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
        first = self.guidance[0] if self.guidance else {}
        parts = [self.arm, *([f"{first['scale']:g}"] if first else [])]
        if first.get("interval") is not None:
            parts += ["in", *("inf" if limit is None else f"{limit:g}" for limit in first["interval"])]
        return "-".join(
            [*parts, self.scheduler, f"{self.steps}steps", f"{self.images}images", f"seed{self.seed}"]
        )

    @property
    def scale(self) -> str:
        """The scale of its first term as text; empty without terms."""
        return f"{self.guidance[0]['scale']:g}" if self.guidance else ""

    @property
    def title(self) -> str:
        """The arm and its scale, for people."""
        return f"{self.arm} {self.scale}".rstrip()

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
            spec.schedulers, spec.steps, arm.intervals, arm.scales or [None]
        )
    ]


def _swept(
    guidance: Sequence[Mapping[str, Any]], scale: float | None, interval: Sequence[float | None] | None
) -> list[dict[str, Any]]:
    if scale is None:
        return []
    first, *rest = ({**term} for term in guidance)
    first["scale"] = float(scale)
    if interval is not None:
        first["interval"] = list(interval)
    return [first, *rest]
