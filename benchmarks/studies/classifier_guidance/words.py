"""What the points of classifier guidance say, in words: sentences of the card, from the figures alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures import FORM_NAMES
from points import CONDITIONAL, UNCONDITIONAL, best_guided, role_of

from guided_diffusers.evaluation.cards import interval, percent

Record = Mapping[str, Any]


def records_of(results: Mapping[str, Any], denoiser: str) -> list[Record]:
    """The points of a denoiser."""
    return [record for record in results["points"] if record["point"]["denoiser"] == denoiser]


def unconditional(results: Mapping[str, Any]) -> list[Record]:
    """The unconditional denoiser's, by steps, unguided first, then form by form; guided everywhere last."""
    order = list(FORM_NAMES)

    def place(record: Record) -> tuple[Any, ...]:
        point = record["point"]
        form = order.index(point["form"]) if point["scale"] else -1
        return point["steps"], is_everywhere(record), form, point["scale"]

    return sorted(records_of(results, UNCONDITIONAL), key=place)


def is_everywhere(record: Record) -> bool:
    """Whether the classifier guides at every noise level."""
    return bool(record["point"]["scale"]) and record["point"]["interval"] is None


def point_text(point: Mapping[str, Any]) -> str:
    """A point's guidance in words."""
    parts = [f"{FORM_NAMES[point['form']]}, s = {point['scale']:g}"] if point["scale"] else []
    if point["scale"] and point["interval"] is None:
        parts.append("at every noise level")
    if point["denoiser"] == CONDITIONAL:
        parts = ["conditional", *parts, f"γ = {point['gamma']:g}"]
    return ", ".join(parts) or "unguided"


def goal(results: Mapping[str, Any]) -> str:
    """How accurate the guided unconditional denoiser is, and how near, in words."""
    best, wanted, distance = best_guided(results), results["min_accuracy"], results["distance"]
    figures, point = best["figures"], best["point"]
    reached = "reaches" if figures["agreement"]["value"] >= wanted else "does not reach"
    text = (
        f"**The classifier makes a denoiser that knows no classes draw the one asked for on "
        f"{percent(figures['agreement'])} of {point['images']:,} images** ({point_text(point)}, "
        f"{point['steps']} steps), which {reached} the {wanted:.0%} that was wanted."
    )
    unguided = [
        r for r in unconditional(results)
        if not r["point"]["scale"] and r["point"]["steps"] == point["steps"]
    ]  # fmt: skip
    if unguided:
        plain = unguided[0]["figures"]
        text += (
            f" Unguided it is {percent(plain['agreement'])}. The guided images are "
            f"{nearness(figures[distance], plain[distance])} the unguided ones ({distance} x 1000: "
            f"{thousandths(figures[distance])} and {thousandths(plain[distance])})."
        )
    return text


def forms(results: Mapping[str, Any]) -> str:
    """The two forms at equal scales and steps, and at their best, in words."""
    texts = []
    own = [record for record in unconditional(results) if not is_everywhere(record)]
    for steps in sorted({record["point"]["steps"] for record in own}):
        values: dict[str, dict[float, float]] = {form: {} for form in FORM_NAMES}
        for record in own:
            point = record["point"]
            if point["steps"] == steps and point["scale"]:
                values[point["form"]][point["scale"]] = record["figures"]["agreement"]["value"]
        score, shift = values.values()
        scales = sorted(score.keys() & shift.keys())
        if scales:
            gaps = [score[scale] - shift[scale] for scale in scales]
            mean, low, high = (f"{100 * gap:+.1f}" for gap in (sum(gaps) / len(gaps), min(gaps), max(gaps)))
            several = f" on average over {len(gaps)} scales" if len(gaps) > 1 else ""
            texts.append(f"{mean} points{several} at {steps} steps{f' ({low} to {high})' if several else ''}")
    finals = {role_of(record["point"]): record for record in results["finals"]}
    text = f"Accuracy of the score form less that of the mean shift, at equal scales: {'; '.join(texts)}."
    if not set(FORM_NAMES) <= set(finals):
        return text
    score, shift = (finals[form] for form in FORM_NAMES)
    distance = results["distance"]
    between = nearness(score["figures"][distance], shift["figures"][distance])
    return (
        f"{text} Each at its own best point, with {score['point']['images']:,} images, the score form is "
        f"{between} the mean shift."
    )


def beside(results: Mapping[str, Any]) -> str:
    """What the classifier adds to classifier-free guidance, in words."""
    grid, distance = records_of(results, CONDITIONAL), results["distance"]
    alone = [record for record in grid if not record["point"]["scale"]]
    both = [record for record in grid if record["point"]["scale"]]
    if not alone or not both:
        return ""
    best = [min(part, key=lambda r: r["figures"][distance]["value"]) for part in (alone, both)]
    first, second = (f"{point_text(record['point'])}" for record in best)
    between = nearness(*(record["figures"][distance] for record in reversed(best)))
    accuracies = [percent(record["figures"]["agreement"]) for record in best]
    return (
        f"The nearest point with the classifier ({second}; accuracy {accuracies[1]}) is {between} the "
        f"nearest without ({first}; accuracy {accuracies[0]})."
    )


def everywhere(results: Mapping[str, Any]) -> str:
    """What the interval is good for, in words."""
    own, distance, texts = unconditional(results), results["distance"], []
    inside = {_place(record): record["figures"] for record in own if not is_everywhere(record)}
    for record in own:
        if is_everywhere(record) and _place(record) in inside:
            point, figures, within = record["point"], record["figures"], inside[_place(record)]
            texts.append(
                f"{FORM_NAMES[point['form']]} (s = {point['scale']:g}, {point['steps']} steps): accuracy "
                f"{percent(figures['agreement'])} for {percent(within['agreement'])} within the interval, "
                f"{distance} x 1000 {thousandths(figures[distance])} for {thousandths(within[distance])}"
            )
    levels = results["settings"]["first_levels"]
    first = ", ".join(f"{ratio:,.0f} at {steps} steps" for steps, ratio in levels.items())
    if len({round(ratio) for ratio in levels.values()}) == 1:
        first = f"{next(iter(levels.values())):,.0f} at any number of steps"
    text = f"The first step starts at σ/α = {first}."
    return f"{text} With the classifier active there too, {'; '.join(texts)}." if texts else text


def _place(record: Record) -> tuple[Any, ...]:
    return tuple(record["point"][key] for key in ("form", "scale", "steps"))


def nearness(own: Mapping[str, float], other: Mapping[str, float]) -> str:
    """How two distances compare, as far as their intervals say."""
    if own["high"] < other["low"]:
        return "nearer to the test images than"
    if own["low"] > other["high"]:
        return "farther from the test images than"
    return "as near to the test images, within the intervals, as"


def frechet_of(results: Mapping[str, Any]) -> str:
    """The name of the Frechet distance, which carries the feature network's."""
    return next(name for name in results["points"][0]["figures"] if name.startswith("F"))


def thousandths(estimate: Mapping[str, float]) -> str:
    """A distance times 1000 with its interval."""
    return interval(estimate, ".1f", 1000)
