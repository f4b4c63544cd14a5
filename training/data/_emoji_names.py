"""From an emoji's name to captions: articles, styles in words, templates, and the hash that chooses.

Names are CLDR's short names, such as "grinning face", "man: beard" or "flag: Norway". How they stand in a
sentence is a matter of rules and exceptions; what they get wrong costs a stray article.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from _emoji_styles import STYLES_IN_WORDS

TEMPLATES = (
    "{style} of {a_name} on white",
    "{style} showing {a_name}",
    "{a_name} as {style}",
    "{style}: {name}",
    "{name}, {style}",
    "{name}",
)
"""What two of a row's captions are chosen from."""

_BARE = set(
    """american football|bacon|badminton|baggage claim|baguette bread|baseball|basketball|biohazard|
    bowling|bread|breast-feeding|broccoli|building construction|butter|camping|candy|canned food|
    children crossing|cinema|construction|cooked rice|cooking|copyright|coral|curry rice|custard|
    customs|dango|dashing away|divide|dna|field hockey|fire|fog|foggy|fried shrimp|garlic|ginger root|
    high voltage|horse racing|ice|ice hockey|infinity|information|khanda|lacrosse|leafy green|
    left luggage|locked|minus|money with wings|mount fuji|multiply|Mrs. Claus|Mx Claus|
    non-potable water|oden|om|passport control|performing arts|ping pong|plus|popcorn|potable water|
    pouring liquid|radioactive|registered|rolling on the floor laughing|rugby football|sake|salt|
    Santa Claus|shaved ice|skis|soap|soft ice cream|softball|spaghetti|sushi|tennis|thread|trade mark|
    unlocked|vibration mode|volleyball|wireless|wood|yarn|yin yang|ZZZ""".replace("\n    ", "").split("|")
)
"""Names that take no article though they are no plurals."""


def spoken(name: str) -> str:
    """A name as one says it: "man with beard" for "man: beard"; typographic quotes become plain ones."""
    name = name.translate(str.maketrans("\u2019\u201c\u201d", '\'""'))
    head, colon, rest = name.partition(": ")
    if not colon:
        return name
    if head in ("person", "man", "woman"):
        return f"bald {head}" if rest == "bald" else f"{head} with {'a ' if rest == 'beard' else ''}{rest}"
    if head == "keycap":
        return f"keycap {rest}"
    joint = " of " if head in ("flag", "family", "kiss") else ", "
    return head + joint + (rest if head == "flag" else re.sub(r", (\w+)$", r" and \1", rest))


def with_article(name: str) -> str:
    """A spoken name with "a", "an" or "the", or none before plurals, proper names and what has no number."""
    first = name.split()[0]
    if name.startswith(("flag of ", "Statue of")):
        return f"the {name}"
    if name in _BARE or first in ("no", "men", "women", "people") or re.search(r"o'clock$|-thirty$", name):
        return name
    head = re.split(r" (?:with|of|in|on|and|over|showing) |, ", name)[0]
    if first not in ("person", "man", "woman") and re.search(r"(?<![suio])s$", head):
        return name
    vowel = re.match(r"[aeiou]|hourglass|x-ray|SOS|NG ", name, re.IGNORECASE)
    return ("an " if vowel and not re.match(r"unicorn|one-|ewe|euro", name) else "a ") + name


def captions(name: str, subgroup: str, keywords: Sequence[str], style: str, key: str) -> list[str]:
    """The captions of a row, all different.

    Args:
        name: The emoji's name.
        subgroup: Its subgroup; signs of the zodiac take no article.
        keywords: Its keywords; up to three of them stand in the last caption.
        style: A key of STYLES_IN_WORDS.
        key: What the choice is a function of, such as "1F600 noto".

    Returns:
        "a 3d emoji of a grinning face", then two made from TEMPLATES, then one with keywords where there are
        any.
    """
    name = spoken(name)
    a_name = name if subgroup == "zodiac" else with_article(name)
    words = STYLES_IN_WORDS[style]
    texts = [f"{words[0]} of {a_name}"]
    for number, template in enumerate(ranked(TEMPLATES, key)[:2]):
        chosen = words[int(fraction(f"style {number}", key) * len(words))]
        texts.append(template.format(style=chosen, name=name, a_name=a_name))
    chosen = ranked([word for word in keywords if word not in name.split()], key)[:3]
    return texts + [f"{words[0]} of {a_name}: {', '.join(chosen)}"] * bool(chosen)


_COLOURLESS = re.compile(
    r"\b(red|orange|yellow|green|blue|purple|pink|brown|black|grey|gray|white|golden|dark|light|bright|blond|"
    r"rainbow|colou?rs?|no|men|women|people)\b|o'clock$|-thirty$"
)
"""Names that say a colour already, or that read badly behind one."""

_PEOPLE = set(
    """person person-role person-gesture person-activity person-sport person-resting person-fantasy family
    person-symbol country-flag subdivision-flag skin-tone hair-style""".split()
)
"""Subgroups of pictures whose main colour is that of hair, clothes or a flag."""


def with_colour(name: str, subgroup: str, colour: str | None) -> str | None:
    """A spoken name with article and colour, such as "an orange car"; None where no colour is to be said."""
    if colour is None or subgroup in _PEOPLE or _COLOURLESS.search(name):
        return None
    article = with_article(name).removesuffix(name)
    if article not in ("", "a ", "an ") or subgroup == "zodiac":
        return None
    return (article and ("an " if colour == "orange" else "a ")) + f"{colour} {name}"


def in_style(style: str) -> str:
    """What stands behind a comma to say the style: "noto emoji"."""
    return STYLES_IN_WORDS[style][0].split(" ", 1)[1]


def large_captions(
    name: str, subgroup: str, keywords: Sequence[str], style: str, key: str, colour: str | None
) -> list[str]:
    """The captions of a row of the large set: "a car, noto emoji" first, then those of `captions`.

    Where `colour` is to be said there are "a blue car, noto emoji" and two more with it. Arguments otherwise
    as those of `captions`.
    """
    spoken_name = spoken(name)
    a_name = spoken_name if subgroup == "zodiac" else with_article(spoken_name)
    texts = [f"{a_name}, {in_style(style)}"]
    if (coloured := with_colour(spoken_name, subgroup, colour)) is not None:
        words = STYLES_IN_WORDS[style][int(fraction("style of colour", key) * 2)]
        texts += [f"{coloured}, {in_style(style)}", f"{words} of {coloured}"]
        third = ranked(("{a_name} in {colour}, {style}", "{style}: {coloured}", "{coloured}"), key)[0]
        texts.append(third.format(a_name=a_name, colour=colour, coloured=coloured, style=in_style(style)))
    return list(dict.fromkeys(texts + captions(name, subgroup, keywords, style, key)))


def fraction(purpose: str, key: str) -> float:
    """A number in [0, 1) that is a function of the two strings alone: the same everywhere, for ever."""
    digest = hashlib.sha256(f"{purpose}: {key}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def ranked(items: Sequence[str], key: str) -> list[str]:
    """The items in an order that is a function of each and of the key."""
    return sorted(items, key=lambda item: fraction(item, key))
