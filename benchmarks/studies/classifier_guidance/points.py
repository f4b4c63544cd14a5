"""The points of the comparison of classifier guidance: which there are, and which become finals.

A point is what the JSON says of it: `denoiser` (one of `DENOISERS`), `form`, `scale` (s of the classifier; 0
is without it), `gamma` (of classifier-free guidance; 1 is without it), `steps`, `images`, and `interval`,
where the classifier guides, in sigma / alpha (None is everywhere).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from guided_diffusers.evaluation.sweep import OWN_SCHEDULER, Point, best
from guided_diffusers.guidance.classifier import FORMS

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

Values = Mapping[str, Any]


def point_of(values: Values, seed: int) -> Point:
    """The point of a sweep over one denoiser, with the classifier's term and the classifier-free one."""
    form, gamma = values["form"], values["gamma"]
    classifier = {name: values[name] for name in ("form", "scale", "interval")}
    return Point(
        arm=f"{form.replace('_', '-')}-gamma{gamma:g}",
        guidance=[
            {"term": "ClassifierGuidance", **classifier},
            {"term": "ClassifierFreeGuidance", "scale": gamma},
        ],
        scheduler=OWN_SCHEDULER,
        steps=values["steps"],
        images=values["images"],
        seed=seed,
    )


def first_round(
    steps: Sequence[int], long_steps: int, images: int, interval: Sequence[float]
) -> tuple[list[Values], list[Values]]:
    """The points from which the finals are chosen, and the others; what is equal in two forms stands once.

    Args:
        steps: Numbers of steps at which the forms are compared over all scales; the grid has the first.
        long_steps: One more, at few scales.
        images: Images a point.
        interval: Where the classifier guides.
    """

    def point(denoiser: str, form: str, scale: float, gamma: float, count: int, **changes: Any) -> Values:
        common = {"denoiser": denoiser, "form": form, "scale": scale, "gamma": gamma, "steps": count}
        return {**common, "images": images, "interval": list(interval), **changes}

    def forms(scales: Sequence[float], count: int, **changes: Any) -> list[Values]:
        return [
            point(UNCONDITIONAL, form, scale, 1.0, count, **changes)
            for form, scale in product(FORMS, scales)
            if scale or form == FORMS[0]
        ]

    first, *rest = (forms(SCALES, count) for count in steps)
    grid = [
        point(CONDITIONAL, FORMS[0], scale, gamma, steps[0])
        for scale, gamma in product(GRID_SCALES, GRID_GAMMAS)
    ]
    others = [*forms([EVERYWHERE_SCALE], steps[0], interval=None), *forms(LONG_SCALES, long_steps)]
    return [*first, *grid, *(values for group in rest for values in group)], others


def role_of(point: Values) -> str:
    """For which of `ROLES` a point is a candidate."""
    return "grid" if point["denoiser"] == CONDITIONAL else point["form"]


def chosen_finals(records: Sequence[Mapping[str, Any]], distance: str, images: int) -> list[Values]:
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
        chosen.append({**found["point"], "images": images})
    return chosen


def best_guided(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The unconditional denoiser's nearest final that is accurate enough, or else its most accurate."""
    own = [record for record in results["finals"] if record["point"]["denoiser"] == UNCONDITIONAL]
    return _nearest_of_the_able(own, results["distance"], "value")


def _nearest_of_the_able(
    records: Sequence[Mapping[str, Any]], distance: str, which: str
) -> Mapping[str, Any]:
    able = [record for record in records if record["figures"]["agreement"][which] >= MIN_ACCURACY]
    return best(able, distance) if able else max(records, key=lambda r: r["figures"]["agreement"]["value"])
