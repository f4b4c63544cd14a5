"""A sweep's results as a section of a model card: best points, finals, the spread over seeds, the verdict."""

from __future__ import annotations

from typing import Any

from guided_diffusers.evaluation.cards import interval
from guided_diffusers.evaluation.sweep import best

_FIGURES = ("precision", "recall", "density", "coverage")


def section(results: dict[str, Any], name: str, pictures: str) -> str:
    """The section as Markdown.

    Args:
        results: results.json of `guided-diffusers sweep`.
        name: The file's name beside the card.
        pictures: How the links of the sweep's figures begin, before -trade-off.png and, where there were
            finals, -compute.png, -steps.png and -scales.png (of the winning arm).
    """
    spec, distance = results["spec"], results["distance"]
    scheduler = ", ".join(spec["schedulers"]).upper()
    parts = [
        "## Guidance compared",
        f"{len(results['points'])} settings of {spec['images']:,} images each, under {scheduler} with "
        f"{', '.join(map(str, spec['steps']))} steps, all with the same prompts and seeds, against the "
        f"10,000 real test images. Distances are in features of {spec['features']} (not Inception: no FID); "
        f"{distance} is unbiased and ranks, the Frechet distance is biased upwards at so few images. Each "
        f"arm's best point in {distance}, with 95% intervals of resampling the generated images "
        f"([all points]({name})):",
        _table(_best_points(results), distance),
        f"The arms: {'; '.join(arm_text(name, arm) for name, arm in spec['arms'].items())}.",
        f"![{distance} against agreement, an arm a line]({pictures}-trade-off.png)",
    ]
    if "verdict" in results:
        parts += _finals(results, pictures)
    else:
        parts.append("The second round (more images, other numbers of steps) has not been run.")
    return "\n\n".join(parts)


def sampler_section(results: dict[str, Any], name: str, default: str) -> str:
    """A small sweep under the checkpoint's own sampler, from which the default's scale was taken.

    Args:
        results: results.json of that sweep.
        name: The file's name beside the card.
        default: The checkpoint's default guidance in words.
    """
    spec = results["spec"]
    return (
        f"**The default** is {default}. The arms above were compared under a deterministic sampler; the "
        f"checkpoint ships with {', '.join(spec['schedulers']).upper()}, under which its scale was chosen "
        f"anew ([points]({name}), {spec['images']:,} images each): the winning arm's at which agreement is "
        "at least 97% and sharpness within 10% of real images'.\n\n"
        f"{_table(results['points'], results['distance'])}"
    )


def _best_points(results: dict[str, Any]) -> list[dict[str, Any]]:
    arms = dict.fromkeys(record["point"]["arm"] for record in results["points"])
    return [
        best([r for r in results["points"] if r["point"]["arm"] == arm], results["distance"]) for arm in arms
    ]


def _table(records: list[dict[str, Any]], distance: str) -> str:
    frechet = next(name for name in records[0]["figures"] if name.startswith("F"))
    heads = ["guidance", "steps", f"{distance} x 1000", frechet, "agreement", *_FIGURES, "GFLOPs an image"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for record in sorted(records, key=lambda record: record["figures"][distance]["value"]):
        figures = record["figures"]
        cells = [
            point_text(record["point"]),
            str(record["point"]["steps"]),
            interval(figures[distance], ".1f", 1000),
            f"{figures[frechet]['value']:.1f}",
            interval(figures["agreement"], ".1f", 100) + "%",
            *(f"{figures[name]['value']:.2f}" for name in _FIGURES),
            f"{record['compute']['flops'] / 1e9:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def arm_text(name: str, arm: dict[str, Any]) -> str:
    """An arm in words: its terms with their options, which are not swept."""
    terms = []
    for term in arm["guidance"]:
        options = ", ".join(f"{key} {value}" for key, value in term.items() if key not in ("term", "scale"))
        terms.append(f"`{term['term']}`" + (f" ({options})" if options else ""))
    return f"{name} is {' + '.join(terms)}"


def point_text(point: dict[str, Any]) -> str:
    """A point in words: its arm, its scale, and its interval."""
    first = point["guidance"][0]
    text = f"{point['arm']}, scale {first['scale']:g}"
    if first.get("interval") is not None:
        low, high = first["interval"]
        text += f" for σ/α in ({low:g}, {'∞' if high is None else format(high, 'g')}]"
    return text


def _finals(results: dict[str, Any], pictures: str) -> list[str]:
    distance, verdict, seeds = results["distance"], results["verdict"], results["seeds"]
    count = results["finals"][0]["point"]["images"]
    values = ", ".join(f"{1000 * value:.1f}" for value in seeds["values"])
    least = results["spec"]["finals"].get("min_agreement", 0)
    best = f"best points of at least {100 * least:g}% agreement" if least else "best points"
    parts = [
        f"The second round, {count:,} images a point: the best arms and plain guidance at their {best}.",
        _table(results["finals"], distance),
        f"![Distance and agreement against compute]({pictures}-compute.png)",
        f"![The same prompts and seeds, a row an arm and number of steps]({pictures}-steps.png)",
    ]
    parts.append(
        f"**How far seeds alone carry**: {point_text(seeds['point'])} with {len(seeds['seeds'])} seed sets "
        f"of {seeds['point']['images']:,} images: {distance} x 1000 = {values}, a range of "
        f"{1000 * seeds['range']:.1f}. Differences within it rank nothing."
    )
    parts.append(_verdict(verdict, distance))
    parts.append(
        f"![{verdict['winner']['arm']} over its scales, the same prompts and seeds]({pictures}-scales.png)"
    )
    return parts


def _verdict(verdict: dict[str, Any], distance: str) -> str:
    baseline = f"{point_text(verdict['baseline'])} at {verdict['baseline']['steps']} steps"
    winner = f"{point_text(verdict['winner'])} at {verdict['winner']['steps']} steps"
    if winner == baseline:
        return f"**Verdict**: nothing at no more FLOPs comes nearer than plain guidance's best ({baseline})."
    gain = f"{1000 * verdict['gain']:.1f} of {distance} x 1000, at {verdict['flops_ratio']:.2f} of its FLOPs"
    if verdict["claimed"]:
        return f"**Verdict**: {winner} is nearer than plain guidance's best point ({baseline}) by {gain}."
    return (
        f"**Verdict**: no win. {winner} comes nearest, but nearer than plain guidance's best ({baseline}) "
        f"by only {gain}, within what seeds alone do."
    )
