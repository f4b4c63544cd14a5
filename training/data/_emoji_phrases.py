"""What scenes of emoji are called: plurals, sizes, places, and the captions of each kind of scene."""

from __future__ import annotations

import re
from dataclasses import dataclass

from _emoji_names import in_style, spoken, with_article, with_colour
from _emoji_styles import STYLES_IN_WORDS

PLACES = {
    "left": ("to the left of", "to the right of"),
    "right": ("to the right of", "to the left of"),
    "above": ("above", "below"),
    "below": ("below", "above"),
}
"""A place of the first thing in words, and that of the second as seen from the first."""
COUNTS = {2: "two", 3: "three"}

_CATEGORIES = {"smileys-emotion", "animals-nature", "food-drink", "travel-places", "activities", "objects"}
_NOT_A_NOUN = set("done up down open on off increasing decreasing volume star-struck dizzy".split())
_NOT_ALONE = re.compile(
    r"^(face|head) .|\b(with|without|of|in|on|at|and|over|behind|not|button|showing|left|right|small|large)\b"
)
_IRREGULAR = {
    "bison": "bison", "blowfish": "blowfish", "deer": "deer", "die": "dice", "fish": "fish", "goose": "geese",
    "jellyfish": "jellyfish", "knife": "knives", "leaf": "leaves", "mango": "mangoes", "moose": "moose",
    "mosquito": "mosquitoes", "mouse": "mice", "ox": "oxen", "potato": "potatoes", "scarf": "scarves",
    "snowman": "snowmen", "tomato": "tomatoes", "volcano": "volcanoes", "wolf": "wolves",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One emoji of a scene in words: its spoken name, its subgroup and its main colour, "" for none."""

    noun: str
    subgroup: str
    colour: str

    def one(self, size: str = "", coloured: bool = False) -> str:
        """Such as "a car", "a blue car", "a big car" or "a big blue car"."""
        phrase = (coloured and self._coloured()) or with_article(self.noun)
        return f"a {size} {phrase.split(' ', 1)[1]}" if size else phrase

    def many(self, count: int, coloured: bool = False) -> str:
        """Such as "two cars" or "two blue cars"."""
        noun = self._coloured().split(" ", 1)[1] if coloured and self._coloured() else self.noun
        return f"{COUNTS[count]} {plural(noun)}"

    def _coloured(self) -> str | None:
        return with_colour(self.noun, self.subgroup, self.colour or None)


def countable(name: str, category: str) -> bool:
    """Whether an emoji can stand in a scene: a thing, of at most three words, that takes "a" and a plural."""
    noun = spoken(name)
    words = noun.split()
    return (
        category in _CATEGORIES
        and len(words) <= 3
        and re.fullmatch(r"[A-Za-z' -]+", noun) is not None
        and not _NOT_ALONE.search(noun)
        and words[-1] not in _NOT_A_NOUN
        and with_article(noun) in (f"a {noun}", f"an {noun}")
    )


def plural(noun: str) -> str:
    """Several of a noun: "red apples", "mice", "cherries"."""
    head, space, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        return head + space + _IRREGULAR[last]
    if re.search(r"(s|x|z|ch|sh)$", last):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", last) else f"{noun}s"


def _in_its_style(phrases: list[str], style: str) -> list[str]:
    """Each phrase with its style, the first in another way too; no two the same."""
    words = STYLES_IN_WORDS[style][1].split(" ", 1)[1]
    texts = [f"{phrase}, {in_style(style)}" for phrase in phrases]
    return list(dict.fromkeys([*texts, f"{words}: {phrases[0]}"]))


def of_count(thing: Thing, count: int, style: str) -> list[str]:
    """Such as "two apples, noto emoji"."""
    return _in_its_style([thing.many(count), thing.many(count, True)], style)


def of_place(first: Thing, second: Thing, place: str, style: str) -> list[str]:
    """Such as "a cat to the left of a tree, noto emoji", and as seen from the tree."""
    here, there = PLACES[place]
    return _in_its_style(
        [
            f"{first.one()} {here} {second.one()}",
            f"{first.one(coloured=True)} {here} {second.one(coloured=True)}",
            f"{second.one()} {there} {first.one()}",
            f"{first.one()} and {second.one()}",
        ],
        style,
    )


def of_size(big: Thing, small: Thing, place: str, style: str) -> list[str]:
    """Such as "a big star above a small moon, noto emoji", and as seen from the moon."""
    here, there = PLACES[place]
    return _in_its_style(
        [
            f"{big.one('big')} {here} {small.one('small')}",
            f"{big.one('big', True)} {here} {small.one('small', True)}",
            f"{small.one('small')} {there} {big.one('big')}",
            f"{big.one('big')} and {small.one('small')}",
        ],
        style,
    )


def of_row(left: Thing, middle: Thing, right: Thing, style: str) -> list[str]:
    """Such as "a dog between a cat and a tree, noto emoji", and from left to right."""
    names = [thing.one() for thing in (left, middle, right)]
    coloured = [thing.one(coloured=True) for thing in (left, middle, right)]
    return _in_its_style(
        [
            f"{names[1]} between {names[0]} and {names[2]}",
            f"{coloured[1]} between {coloured[0]} and {coloured[2]}",
            f"{names[0]}, {names[1]} and {names[2]} from left to right",
        ],
        style,
    )


def of_two_kinds(several: Thing, single: Thing, style: str) -> list[str]:
    """Such as "two cats and a dog, noto emoji"."""
    return _in_its_style(
        [
            f"{several.many(2)} and {single.one()}",
            f"{several.many(2, True)} and {single.one(coloured=True)}",
            f"{single.one()} and {several.many(2)}",
        ],
        style,
    )
