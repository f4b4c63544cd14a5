"""What a sweep's figures say: the Pareto front, the best point of an arm, and who wins at equal compute.

A ranking is claimed only beyond the spread of one point over seed sets: everything nearer is a draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def best(records: Sequence[Record], distance: str) -> Record:
    """The record of the smallest distance; the first of equals."""
    return min(records, key=lambda record: record["figures"][distance]["value"])


def pareto_front(records: Sequence[Record], smaller: str, larger: str) -> list[int]:
    """Indices of the records that no other beats in both: `smaller` (a distance) and `larger` (agreement).

    Sorted by the distance. A record that equals another in both is on the front with it.
    """
    values = [(r["figures"][smaller]["value"], r["figures"][larger]["value"]) for r in records]
    front = [
        index
        for index, (a, b) in enumerate(values)
        if not any(c <= a and d >= b and (c < a or d > b) for c, d in values)
    ]
    return sorted(front, key=lambda index: values[index])


def finalists(
    records: Sequence[Record], baseline: str, arms: int, distance: str, min_agreement: float = 0.0
) -> list[Record]:
    """The baseline's best point, then the best points of the best other arms.

    Args:
        records: Of the first round.
        baseline: The arm that the others are compared with.
        arms: How many others.
        distance: The figure that ranks.
        min_agreement: Points of less agreement do not count.

    Raises:
        ValueError: No point of the baseline has the agreement asked for.
    """
    able = [r for r in records if min_agreement == 0 or r["figures"]["agreement"]["value"] >= min_agreement]
    names = list(dict.fromkeys(record["point"]["arm"] for record in able))
    if baseline not in names:
        raise ValueError(f"no point of {baseline} has an agreement of {min_agreement}: lower min_agreement")
    tops = {name: best([r for r in able if r["point"]["arm"] == name], distance) for name in names}
    others = [tops[name] for name in names if name != baseline]
    others.sort(key=lambda record: record["figures"][distance]["value"])
    return [tops[baseline], *others[:arms]]


def spread(records: Sequence[Record], distance: str) -> dict[str, Any]:
    """One point over seed sets: the values, and their range (largest - smallest)."""
    values = [record["figures"][distance]["value"] for record in records]
    return {
        "point": records[0]["point"],
        "seeds": [record["point"]["seed"] for record in records],
        "values": values,
        "range": max(values) - min(values),
    }


def verdict(finals: Sequence[Record], baseline: str, distance: str, seed_range: float) -> dict[str, Any]:
    """Who wins at equal compute.

    The baseline's best final is compared with every final that costs no more FLOPs an image. The nearest
    wins; the win is claimed only if it is nearer by more than `seed_range`.
    """
    own = best([record for record in finals if record["point"]["arm"] == baseline], distance)
    budget = own["compute"]["flops"]
    affordable = [record for record in finals if record["compute"]["flops"] <= budget * (1 + 1e-9)]
    winner = best(affordable, distance)
    gain = own["figures"][distance]["value"] - winner["figures"][distance]["value"]
    return {
        "baseline": own["point"],
        "winner": winner["point"],
        "distance": distance,
        "gain": gain,
        "seed_range": seed_range,
        "flops_ratio": winner["compute"]["flops"] / budget,
        "claimed": winner is not own and gain > seed_range,
    }
