"""Draws the floors of the package from its import statements.

    python docs/architecture.py

A room is a folder or a module of `src/guided_diffusers`; of `training`, its three folders. Its floor is the
longest chain of imports below it. An arrow is an import that no chain of other arrows stands for.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import textwrap
from collections.abc import Mapping
from functools import cache
from itertools import combinations
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "guided_diffusers"
Graph = Mapping[str, set[str]]
LINE, BOX, EDGE, BAND = "#6b7a90", "#e3ecf9", "#35507a", "#f4f5f7"


def modules_under(folder: Path) -> list[Path]:
    """Every module of a folder, in order."""
    return sorted(folder.rglob("*.py"))


def dotted(path: Path) -> str:
    """A module's name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, module: str = "") -> set[str]:
    """Every imported name in dotted form, `from a import b` as a.b; relative ones from `module`."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def ours(names: set[str]) -> set[str]:
    """Those of our package, `from guided_diffusers import Name` resolved to the module that has the name."""
    import guided_diffusers

    result = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != "guided_diffusers":
            continue
        home = guided_diffusers._HOME.get(parts[1]) if len(parts) > 1 else None
        if len(parts) > 2 or home is None:
            home = name
        if home.startswith("guided_diffusers.") and home != "guided_diffusers.__version__":
            result.add(home)
    return result


def room_of(name: str) -> str:
    """The room of a module."""
    first, *rest = name.split(".")[1:]
    inner = rest and first == "training" and (PACKAGE / first / rest[0]).is_dir()
    return f"{first}.{rest[0]}" if inner else first


def rooms() -> Graph:
    """What each room imports of the others; those that only wire the package up are left out."""
    graph: dict[str, set[str]] = {}
    for path in modules_under(PACKAGE):
        name = dotted(path)
        if name.count(".") and not room_of(name).startswith("_") and room_of(name) != "training":
            found = {room_of(imported) for imported in ours(imports_of(path, name))}
            graph.setdefault(room_of(name), set()).update(found - {room_of(name)})
    return graph


def arrows(graph: Graph) -> list[tuple[str, str]]:
    """The imports that no chain of other imports stands for."""

    @cache
    def below(room: str) -> frozenset[str]:
        return frozenset(graph[room]).union(*(below(other) for other in graph[room]))

    return sorted(
        (room, other)
        for room, found in graph.items()
        for other in found
        if not any(other in below(between) for between in found - {other})
    )


def floors(graph: Graph) -> dict[str, int]:
    """The longest chain of imports below each room."""

    @cache
    def floor(room: str) -> int:
        return 1 + max(map(floor, graph[room]), default=-1)

    return {room: floor(room) for room in sorted(graph)}


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = PACKAGE / room.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].partition(". ")[0].rstrip(".").replace("`", "").replace("\n", " ")


Node = tuple[str, int]  # a room on its floor, or an arrow's target on a floor that the arrow crosses
Piece = tuple[Node, Node]


def pieces(graph: Graph) -> list[Piece]:
    """The arrows, a floor at a time; those to one room join on their way."""
    floor, found = floors(graph), set()
    for above, below in arrows(graph):
        way = [(above, floor[above])]
        way += [(below, at) for at in range(floor[above] - 1, floor[below] - 1, -1)]
        found |= set(zip(way, way[1:], strict=False))
    return sorted(found)


def places(graph: Graph, links: list[Piece], seed: int = 0, tries: int = 20_000) -> dict[Node, float]:
    """Where each node stands on its floor: two change places as long as arrows cross less or lean less."""
    nodes = {node for piece in links for node in piece} | set(floors(graph).items())
    height = 1 + max(at for _, at in nodes)
    layers = [[node for node in sorted(nodes) if node[1] == at] for at in range(height)]
    width = max(map(len, layers))
    slots: list[list[Node | None]] = [[*layer, *[None] * (width - len(layer))] for layer in layers]
    gaps = [[piece for piece in links if piece[1][1] == at] for at in range(height)]
    x = {node: float(index) for layer in slots for index, node in enumerate(layer) if node}

    def cost(at: int) -> float:
        """Of the gaps above and below a floor."""
        total = 0.0
        for gap in gaps[max(at - 1, 0) : at + 1]:
            total += sum((x[a] - x[b]) ** 2 for a, b in gap)
            total += 6 * sum((x[a] - x[c]) * (x[b] - x[d]) < 0 for (a, b), (c, d) in combinations(gap, 2))
        return total

    draw = random.Random(seed)
    for attempt in range(tries):
        at = draw.randrange(height)
        one, other = draw.sample(range(width), 2)
        before, layer = cost(at), slots[at]
        for _ in range(2):  # the second time back
            layer[one], layer[other] = layer[other], layer[one]
            x |= {layer[index]: float(index) for index in (one, other) if layer[index]}
            if cost(at) <= before + 8 * draw.random() * (1 - attempt / tries) ** 3:
                break
    return x


def picture(graph: Graph) -> Figure:
    """Floors from top to bottom, rooms as boxes, imports as arrows."""
    links, floor = pieces(graph), floors(graph)
    x = places(graph, links)
    left, right, top = min(x.values()) - 0.55, max(x.values()) + 0.55, max(floor.values())
    figure = Figure(figsize=(2.5 * (right - left), 1.3 * (top + 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(left, right), ylim=(-0.5, top + 0.5))
    axes.axis("off")
    for at in range(top + 1):
        axes.axhspan(at - 0.5, at + 0.5, color=BAND if at % 2 else "white", linewidth=0)
    ends = {node for node in x if floor[node[0]] == node[1]}
    for above, below in links:
        high, low = above[1] - 0.28, below[1] + 0.28
        middle = (high + low) / 2
        way = [(x[above], high), (x[above], middle), (x[below], middle), (x[below], low)]
        style = "-|>,head_length=5,head_width=2.5" if below in ends else "-"
        curve = Curve(way, [Curve.MOVETO, *[Curve.CURVE4] * 3])
        axes.add_patch(FancyArrowPatch(path=curve, arrowstyle=style, color=LINE, linewidth=1.1))
    for node in x.keys() - ends:
        axes.plot([x[node]] * 2, [node[1] - 0.28, node[1] + 0.28], color=LINE, linewidth=1.1)
    for room, at in ends:
        corner, style = (x[room, at] - 0.45, at - 0.28), "round,pad=0,rounding_size=0.05"
        axes.add_patch(FancyBboxPatch(corner, 0.9, 0.56, boxstyle=style, facecolor=BOX, edgecolor=EDGE))
        axes.text(x[room, at], at + 0.16, room, ha="center", va="center", fontsize=11, weight="bold")
        words = textwrap.fill(purpose(room), 37, max_lines=3, placeholder=" ...")
        axes.text(x[room, at], at - 0.07, words, ha="center", va="center", fontsize=7.5, color="#333333")
    return figure


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "architecture.png")
    arguments = parser.parse_args()
    graph = rooms()
    metadata = {"Description": json.dumps(arrows(graph)), "Software": None}
    picture(graph).savefig(arguments.output, dpi=110, metadata=metadata)


if __name__ == "__main__":
    main()
