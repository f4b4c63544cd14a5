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

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from guided_diffusers.core.checks import as_number, check_choice, check_int, check_number, shown


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of guiding.

    Attributes:
        guidance: Its terms; the first is swept, so it names no scale and no interval of its own. Empty, with
            no scales and no intervals, is no guidance.
        scales: The scales of the first term.
        intervals: Its intervals, pairs in sigma / alpha, None for everywhere.
    """

    guidance: list[dict[str, Any]] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    intervals: list[list[float | None] | None] = field(default_factory=lambda: [None])

    def __post_init__(self) -> None:
        """Check what a typing mistake would spoil."""
        lists = {name: getattr(self, name) for name in ("guidance", "scales", "intervals")}
        unguided = {"guidance": [], "scales": [], "intervals": [None]}
        if all(isinstance(given, list) for given in lists.values()) and lists == unguided:
            return
        for name, given in lists.items():
            if not isinstance(given, list) or not given:
                raise ValueError(f"{name} of an arm is {shown(given)}; allowed: a list of at least one")
        if not all(isinstance(term, Mapping) for term in self.guidance):
            raise ValueError(f"guidance of an arm is {shown(self.guidance)}; allowed: terms, each a mapping")
        for scale in self.scales:
            check_number("scales of an arm", scale)
        for interval in self.intervals:
            _check_interval(interval)
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

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_text("baseline", self.baseline)
        check_int("arms", self.arms, 0)
        _check_counts("steps", self.steps)
        check_int("images", self.images, 1, None)
        check_number("min_agreement", self.min_agreement, 0, 1)


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
        """Check the values, and the names that point at one another."""
        if self.finals is not None and not isinstance(self.finals, Finals):
            raise ValueError(f"finals is {shown(self.finals)}; allowed: None, or the second round")
        if not isinstance(self.arms, Mapping):
            raise ValueError(f"arms is {shown(self.arms)}; allowed: arms by name")
        if self.finals is not None and self.finals.baseline not in self.arms:
            raise ValueError(
                f"finals.baseline is {self.finals.baseline!r}; the arms are {', '.join(self.arms)}"
            )
        self._check_values()

    def _check_values(self) -> None:
        for name in ("checkpoint", "data", "features"):
            _check_text(name, getattr(self, name))
        for name in ("weak", "judge"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        check_choice("distance", self.distance, ("kernel", "frechet"))
        for name in ("schedulers", "steps", "arms"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give at least one")
        if not all(isinstance(arm, Arm) for arm in self.arms.values()):
            raise ValueError(f"arms is {shown(self.arms)}; allowed: arms by name")
        for name in self.arms:
            _check_text("arms", name)
        if not isinstance(self.schedulers, list) or not all(isinstance(s, str) for s in self.schedulers):
            raise ValueError(f"schedulers is {shown(self.schedulers)}; allowed: a list of names")
        _check_counts("steps", self.steps)
        for name in ("images", "seed_sets", "resamples", "batch_size"):
            check_int(name, getattr(self, name), 1, None)
        check_int("seed", self.seed, 0, None)

    @classmethod
    def read(cls, path: Path | str) -> SweepSpec:
        """A sweep from its YAML file.

        Raises:
            ValueError: An unknown key, a missing one, or a value that is not allowed.
        """
        import yaml

        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} does not read as YAML: {' '.join(str(error).split())}") from error
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


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {shown(value)}; allowed: text that is not empty")


def _check_counts(name: str, values: Any) -> None:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name} is {shown(values)}; allowed: a list of at least one number")
    for value in values:
        check_int(name, value, 1)


def _check_interval(interval: Any) -> None:
    if interval is None:
        return
    pair = interval if isinstance(interval, list | tuple) and len(interval) == 2 else (None, 0)
    low, high = (0.0 if pair[0] is None else pair[0]), (math.inf if pair[1] is None else pair[1])
    low, high = as_number(low), as_number(high)
    if low is None or high is None or not 0 <= low < high:
        raise ValueError(
            f"intervals of an arm has {shown(interval)}; allowed: None, or a pair [low, high] in sigma / "
            "alpha"
        )


def _filled(cls: type, values: Any, where: str) -> Any:
    """A dataclass from a mapping, with errors that say where."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {shown(values)}; wanted: a mapping")
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has an unknown key {shown(key)}; allowed: {', '.join(known)}")
    for name, f in known.items():
        if name not in values and f.default is f.default_factory is MISSING:
            raise ValueError(f"{where} lacks {name!r}")
    return cls(**values)
