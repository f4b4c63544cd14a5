"""The points of the comparison of classifier guidance: which there are, and which become finals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from guided_diffusers.evaluation.sweep import best
from guided_diffusers.guidance import ClassifierFreeGuidance, ClassifierGuidance, Guidance
from guided_diffusers.guidance.classifier import FORMS, LogProb

UNCONDITIONAL, CONDITIONAL = DENOISERS = ("unconditional", "conditional")
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
LONG_SCALES = (0.0, 2.0)
GRID_SCALES, GRID_GAMMAS = (0.0, 1.0, 2.0), (1.0, 2.0, 3.0)
EVERYWHERE_SCALE = 2.0
MIN_ACCURACY = 0.85
ROLES = (*FORMS, "grid")
RULE = (
    "of the score form, of the mean-shift form (unconditional denoiser, all but the largest number of steps) "
    "and of the conditional denoiser's grid, the point of the smallest kernel distance among those whose "
    f"accuracy has its whole 95% interval at {MIN_ACCURACY:.0%} or above; where there is none, the point of "
    "the highest accuracy"
)


@dataclass(frozen=True, kw_only=True)
class GuidedPoint:
    """What is drawn, and how.

    Attributes:
        denoiser: One of `DENOISERS`.
        form: Of the classifier's guidance.
        scale: s, of the classifier; 0 is without it.
        gamma: Of classifier-free guidance; 1 is without it.
        steps: Of the scheduler.
        images: How many.
        interval: Where the classifier guides, in sigma / alpha; None is everywhere.
    """

    denoiser: str
    form: str
    scale: float
    gamma: float
    steps: int
    images: int
    interval: tuple[float, float] | None

    @property
    def name(self) -> str:
        """For files."""
        parts = [self.denoiser, *([self.form.replace("_", "-")] if self.scale else []), f"s{self.scale:g}"]
        parts += [f"gamma{self.gamma:g}"] if self.denoiser == CONDITIONAL else []
        parts += ["everywhere"] if self.scale and self.interval is None else []
        return "-".join([*parts, f"{self.steps}steps", f"{self.images}images"])

    def guidance(self, log_prob: LogProb) -> Guidance:
        """The classifier's term and the classifier-free one; neutral ones cost nothing."""
        classifier = ClassifierGuidance(log_prob, self.scale, self.interval, form=self.form)
        return classifier + ClassifierFreeGuidance(self.gamma)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "interval": None if self.interval is None else list(self.interval)}


def point_of(values: Mapping[str, Any]) -> GuidedPoint:
    """The point of `to_dict`'s values."""
    interval = values["interval"]
    return GuidedPoint(**{**values, "interval": None if interval is None else tuple(interval)})


def first_round(
    steps: Sequence[int], long_steps: int, images: int, interval: tuple[float, float] | None
) -> dict[str, list[GuidedPoint]]:
    """The points by group, what matters most first; those that are equal in two forms stand once.

    Args:
        steps: Numbers of steps at which the forms are compared over all scales; the grid has the first.
        long_steps: One more, at few scales.
        images: Images a point.
        interval: Where the classifier guides.
    """
    common = {"images": images, "interval": interval}

    def unconditional(scales: Sequence[float], count: int) -> list[GuidedPoint]:
        return [
            GuidedPoint(denoiser=UNCONDITIONAL, form=form, scale=scale, gamma=1.0, steps=count, **common)
            for form, scale in product(FORMS, scales)
            if scale or form == FORMS[0]
        ]

    grid = [
        GuidedPoint(denoiser=CONDITIONAL, form="score", scale=scale, gamma=gamma, steps=steps[0], **common)
        for scale, gamma in product(GRID_SCALES, GRID_GAMMAS)
    ]
    first, *rest = ({f"steps-{count}": unconditional(SCALES, count)} for count in steps)
    everywhere = unconditional([EVERYWHERE_SCALE], steps[0]) if interval is not None else []
    groups = first | {"grid": grid}
    for group in rest:
        groups |= group
    groups["everywhere"] = [replace(point, interval=None) for point in everywhere]
    return groups | {f"steps-{long_steps}": unconditional(LONG_SCALES, long_steps)}


def role_of(point: Mapping[str, Any]) -> str:
    """For which of `ROLES` a point is a candidate."""
    return "grid" if point["denoiser"] == CONDITIONAL else point["form"]


def chosen_finals(records: Sequence[Mapping[str, Any]], distance: str, images: int) -> list[GuidedPoint]:
    """One point a role by `RULE`, with more images.

    Args:
        records: Of the candidates; unguided points of the unconditional denoiser are none.
        distance: The figure that ranks.
        images: Images a final.
    """
    chosen = []
    for role in ROLES:
        own = [
            record
            for record in records
            if role_of(record["point"]) == role and (role == "grid" or record["point"]["scale"])
        ]
        found = _nearest_of_the_able(own, distance, "low")
        chosen.append(replace(point_of(found["point"]), images=images))
    return chosen


def best_guided(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the unconditional denoiser's finals the nearest that is accurate enough, or else the most accurate.

    Raises:
        ValueError: The results have no finals.
    """
    own = [record for record in results["finals"] if record["point"]["denoiser"] == UNCONDITIONAL]
    if not own:
        raise ValueError("the results have no finals of the unconditional denoiser: measure them (--only)")
    return _nearest_of_the_able(own, results["distance"], "value")


def _nearest_of_the_able(
    records: Sequence[Mapping[str, Any]], distance: str, which: str
) -> Mapping[str, Any]:
    able = [record for record in records if record["figures"]["agreement"][which] >= MIN_ACCURACY]
    return best(able, distance) if able else max(records, key=lambda r: r["figures"]["agreement"]["value"])
