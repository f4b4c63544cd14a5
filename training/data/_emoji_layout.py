"""Where the things of a scene lie: squares in a picture of 256 pixels, by a random generator.

A square is (left, top, side); no two come nearer than `GAP`, none nearer to the border than `MARGIN`.
"""

from __future__ import annotations

from itertools import combinations

from numpy.random import Generator

PIXELS = 256
GAP, MARGIN = 8, 6
BIG, SMALL = (124, 150), (54, 66)
TWO, THREE = (92, 112), (60, 72)
"""Sides of squares, least and largest: of size scenes, of two and of three things."""

Square = tuple[int, int, int]


def scattered(sides: list[int], generator: Generator) -> list[Square]:
    """Squares anywhere."""
    while True:
        corners = [generator.integers(MARGIN, PIXELS - MARGIN - side + 1, 2).tolist() for side in sides]
        squares = [(left, top, side) for (left, top), side in zip(corners, sides, strict=True)]
        if all(_apart(one, other) for one, other in combinations(squares, 2)):
            return squares


def in_place(first: int, second: int, place: str, generator: Generator) -> list[Square]:
    """Two squares of these sides, the first where `place` says as seen from the second: hardly aslant."""
    sides = (first, second) if place in ("left", "above") else (second, first)
    squares = in_row(sides, generator)
    if place in ("above", "below"):
        squares = [(top, left, side) for left, top, side in squares]
    return squares if place in ("left", "above") else squares[::-1]


def in_row(sides: tuple[int, ...], generator: Generator) -> list[Square]:
    """Squares from left to right, their middles at about the same height."""
    gap = int(generator.integers(GAP, 1 + min(40, (PIXELS - 2 * MARGIN - sum(sides)) // (len(sides) - 1))))
    left = int(generator.integers(MARGIN, 1 + PIXELS - MARGIN - sum(sides) - gap * (len(sides) - 1)))
    largest = max(sides)
    middle = generator.uniform(MARGIN + largest / 2, PIXELS - MARGIN - largest / 2)
    squares = []
    for side in sides:
        aslant = generator.uniform(-0.15, 0.15) * min(sides)
        top = round(min(max(middle + aslant - side / 2, MARGIN), PIXELS - MARGIN - side))
        squares.append((left, top, side))
        left += side + gap
    return squares


def _apart(one: Square, other: Square) -> bool:
    """Whether two squares have a gap between them, across or down."""
    pairs = ((one, other), (other, one))
    return any(first[axis] + first[2] + GAP <= last[axis] for first, last in pairs for axis in (0, 1))
