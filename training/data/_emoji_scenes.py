"""Scenes of two or three emoji: what stands where, the picture, the captions and what is held out."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import _emoji_phrases as phrases
import numpy as np
from _emoji_drawing import webp
from _emoji_iconify import plain
from _emoji_layout import BIG, PIXELS, SMALL, THREE, TWO, Square, in_place, in_row, scattered
from _emoji_names import fraction, spoken
from datasets import Dataset, Features, Image, List, Value
from numpy.random import Generator
from PIL import Image as Pillow
from PIL import ImageChops

HELD_OUT = 0.05
KINDS = {"count": 0.3, "place": 0.35, "size": 0.2, "row": 0.075, "two kinds": 0.075}
"""The kinds of scenes and how often each is drawn."""

_TEXT, _TEXTS = Value("string"), List(Value("string"))
FEATURES = Features(
    image=Image(), text=_TEXTS, kind=_TEXT, place=_TEXT, style=_TEXT, names=_TEXTS, colours=_TEXTS,
    hexcodes=_TEXTS, boxes=List(List(Value("int32"))), combinations=_TEXTS, licence=_TEXT, attribution=_TEXT,
)  # fmt: skip
"""`names`, `colours`, `hexcodes` and `boxes` (left, top, right, bottom in pixels) are those of each thing."""


def held_out(combination: str) -> bool:
    """Whether a combination, such as "2 1F34E" or "1F34E 1F431", is kept from training."""
    return fraction("held-out combination", combination) < HELD_OUT


def combinations_of(codes: list[str]) -> list[str]:
    """What stands together in a scene of these hexcodes: counts above one, and pairs of different emoji."""
    counts = Counter(codes)
    pairs = [" ".join(pair) for pair in combinations(sorted(counts), 2)]
    return [f"{count} {code}" for code, count in sorted(counts.items()) if count > 1] + pairs


class Scenes:
    """Scenes of the countable emoji among a dataset's training rows."""

    def __init__(self, rows: Dataset, seed: int) -> None:
        """Takes training rows of `emoji.py --size 256`."""
        self._seed, self._rows = seed, rows.cast_column("image", Image(decode=False))
        words = rows.select_columns(["name", "category", "style"])
        self._styles = words["style"]
        self._countable, self._of_style = [], defaultdict(list)
        for number, row in enumerate(words):
            if phrases.countable(row["name"], row["category"]):
                self._countable.append(number)
                self._of_style[row["style"]].append(number)

    def row(self, number: int, size: int = PIXELS) -> dict[str, Any]:
        """Scene `number`, its picture of `size` pixels, with the columns of FEATURES."""
        generator = np.random.default_rng([self._seed, number])
        kind = str(generator.choice(list(KINDS), p=list(KINDS.values())))
        place = str(generator.choice(list(phrases.PLACES))) if kind in ("place", "size") else ""
        style = self._styles[int(generator.choice(self._countable))]
        rows = self._things(kind, style, generator)
        squares = _squares(kind, len(rows), place, generator)
        picture, boxes = _painted([row["image"]["bytes"] for row in rows], squares)
        small = picture if size == PIXELS else picture.resize((size, size), Pillow.Resampling.BOX)
        codes = [plain(row["hexcode"]) for row in rows]
        return {
            "image": {"bytes": webp(small), "path": f"{self._seed}-{number}.webp"},
            "text": _captions(kind, [_thing(row) for row in rows], place, style),
            "kind": kind, "place": place, "style": style,
            "names": [row["name"] for row in rows], "colours": [row["colour"] for row in rows],
            "hexcodes": codes, "combinations": combinations_of(codes),
            "boxes": [[round(edge * size / PIXELS) for edge in box] for box in boxes],
            "licence": rows[0]["licence"], "attribution": rows[0]["attribution"],
        }  # fmt: skip

    def _things(self, kind: str, style: str, generator: Generator) -> list[dict]:
        """The rows of a scene's things, in the order of its captions: AA or AAA, AB, ABC, AAB."""
        different = {"count": 1, "place": 2, "size": 2, "row": 3, "two kinds": 2}[kind]
        chosen = generator.choice(self._of_style[style], different, replace=False).tolist()
        if kind == "count":
            chosen = chosen * int(generator.choice(list(phrases.COUNTS)))
        elif kind == "two kinds":
            chosen = [chosen[0], *chosen]
        return [self._rows[number] for number in chosen]


def _squares(kind: str, count: int, place: str, generator: Generator) -> list[Square]:
    """Where the things lie; all of one side but in a size scene."""
    side = int(generator.integers(*(TWO if count == 2 else THREE), endpoint=True))
    if kind == "place":
        return in_place(side, side, place, generator)
    if kind == "size":
        sides = (int(generator.integers(*limits, endpoint=True)) for limits in (BIG, SMALL))
        return in_place(*sides, place, generator)
    return in_row((side,) * 3, generator) if kind == "row" else scattered([side] * count, generator)


def _thing(row: dict) -> phrases.Thing:
    return phrases.Thing(noun=spoken(row["name"]), subgroup=row["subgroup"], colour=row["colour"])


def _painted(pictures: list[bytes], squares: list[Square]) -> tuple[Pillow.Image, list[list[int]]]:
    """A white picture with each emoji, less its border, in the middle of its square; and the boxes."""
    canvas, boxes = Pillow.new("RGB", (PIXELS, PIXELS), "white"), []
    filters = (Pillow.Resampling.BOX, Pillow.Resampling.BICUBIC)
    for data, (left, top, side) in zip(pictures, squares, strict=True):
        with Pillow.open(io.BytesIO(data)) as image:
            image = image.convert("RGB")
        image = image.crop(ImageChops.difference(image, Pillow.new("RGB", image.size, "white")).getbbox())
        scale = side / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        x, y = left + (side - width) // 2, top + (side - height) // 2
        canvas.paste(image.resize((width, height), filters[scale > 1]), (x, y))
        boxes.append([x, y, x + width, y + height])
    return canvas, boxes


def _captions(kind: str, things: list[phrases.Thing], place: str, style: str) -> list[str]:
    match kind:
        case "count":
            return phrases.of_count(things[0], len(things), style)
        case "place":
            return phrases.of_place(*things, place, style)
        case "size":
            return phrases.of_size(*things, place, style)
        case "row":
            return phrases.of_row(*things, style)
    return phrases.of_two_kinds(things[0], things[2], style)
