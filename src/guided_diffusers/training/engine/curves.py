"""A chart of lines as SVG text, for a page that stands alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 26  # margins, in pixels as the sizes
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#65a30d")
MOST = 300  # points a line, beyond which neighbours are averaged
SPREAD = 50.0  # largest over smallest value from which the axis is logarithmic


def chart(lines: Mapping[str, Points]) -> str:
    """An SVG of lines by name, over images seen; the vertical axis is logarithmic where values spread wide.

    Args:
        lines: the points of each, whose values are finite.

    Returns:
        The element's text; names are escaped.
    """
    lines = {name: _thinned(points) for name, points in lines.items() if points}
    values = [y for points in lines.values() for _, y in points]
    if not values:
        return ""
    logarithmic = min(values) > 0 and max(values) > SPREAD * min(values)
    scaled = math.log10 if logarithmic else float
    last = max(x for points in lines.values() for x, _ in points) or 1
    ticks = _ticks(scaled(min(values)), scaled(max(values)))
    low, high = min(ticks[0], scaled(min(values))), max(ticks[-1], scaled(max(values)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / last * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for tick in ticks:
        _, y = place(0, tick)
        text = f"{10**tick if logarithmic else tick:.4g}"
        drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in _ticks(0, last):
        if tick <= last:
            x, _ = place(tick, low)
            drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_short(tick)}</text>')
    for number, points in enumerate(lines.values()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*place(x, scaled(y))) for x, y in points)
        dot = '<circle cx="{:.1f}" cy="{:.1f}" r="2.5" fill="{}"/>'
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        drawn.append(dot.format(*place(points[-1][0], scaled(points[-1][1])), colour))
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(drawn)}</svg>'
    return svg + (_legend(lines) if len(lines) > 1 else "")


def _legend(lines: Mapping[str, Points]) -> str:
    parts = [
        f'<span style="color:{COLOURS[number % len(COLOURS)]}">{escape(name)} {points[-1][1]:.4g}</span>'
        for number, (name, points) in enumerate(lines.items())
    ]
    return f'<p class="legend">{" ".join(parts)}</p>'


def _thinned(points: Points) -> Points:
    """At most MOST points, each the mean of its neighbours."""
    size = math.ceil(len(points) / MOST)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from just below `low` to just above `high`; two at least."""
    span = high - low or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / about))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * about >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _short(images: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if images >= size:
            return f"{images / size:g}{unit}"
    return f"{images:g}"
