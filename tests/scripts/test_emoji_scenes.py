"""Scenes of emoji: what a caption says of count, place and size is so in the picture; what is held out."""

import io
import sys
from collections import Counter

import numpy as np
import pytest
from data_scripts import load, pixels, run
from datasets import Dataset
from PIL import Image

THINGS = [
    ("1F697", "automobile", "travel-places", "transport-ground", "blue"),
    ("1F431", "cat", "animals-nature", "animal-mammal", "orange"),
    ("1F34E", "red apple", "food-drink", "food-fruit", "red"),
    ("2B50", "star", "travel-places", "sky-weather", "yellow"),
    ("1F401", "mouse", "animals-nature", "animal-mammal", "grey"),
    ("1F347", "grapes", "food-drink", "food-fruit", "purple"),  # takes no "a": in no scene
    ("1F9D4", "man: beard", "people-body", "person", ""),
]
NOUNS = {"1F697": "automobile", "1F431": "cat", "1F34E": "red apple", "2B50": "star", "1F401": "mouse"}
STYLES = {"noto": "noto emoji", "streamline": "streamline emoji"}


@pytest.fixture(scope="module")
def script():
    return load("emoji_scenes")


def picture(colour):
    """A rectangle, wider than high, somewhere on white."""
    image = Image.new("RGB", (256, 256), "white")
    image.paste(colour, (30, 80, 230, 180))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def emoji(script, tmp_path_factory):
    """A folder of `emoji.py --size 256` with seven emoji in two styles."""
    folder = tmp_path_factory.mktemp("emoji-256")
    rows = [
        {"image": picture(colour or "black"), "name": name, "category": category, "subgroup": subgroup,
         "style": style, "colour": colour, "hexcode": code, "licence": "MIT", "attribution": "somebody"}
        for code, name, category, subgroup, colour in THINGS for style in STYLES
    ]  # fmt: skip
    features = {key: value for key, value in sys.modules["_emoji_scenes"].FEATURES.items() if key == "image"}
    Dataset.from_list(rows).cast_column("image", features["image"]).to_parquet(folder / "train.parquet")
    (folder / "LICENCES").mkdir()
    (folder / "LICENCES" / "noto.txt").write_text("a licence")
    return folder


@pytest.fixture(scope="module")
def scenes(script, emoji):
    return script.Scenes(Dataset.from_parquet(str(emoji / "train.parquet")), seed=3)


@pytest.fixture(scope="module")
def rows(scenes):
    return [scenes.row(number) for number in range(80)]


def middles(row):
    return [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in row["boxes"]]


def a(code):
    return f"a{'n' if NOUNS[code][0] in 'aeiou' else ''} {NOUNS[code]}"


def test_each_thing_is_where_its_box_is_and_nothing_else_is(rows):
    for row in rows:
        image, covered = pixels(row), np.zeros((256, 256), int)
        for (left, top, right, bottom), code in zip(row["boxes"], row["hexcodes"], strict=True):
            covered[top:bottom, left:right] += 1
            colour = next(colour for found, *_, colour in THINGS if found == code)
            middle = image[(top + bottom) // 2, (left + right) // 2]
            assert tuple(middle) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        assert covered.max() == 1 and (image[covered == 0] == 255).all()
        assert set(row["hexcodes"]) <= set(NOUNS)


def test_captions_of_count(rows):
    many = {"1F697": "automobiles", "1F431": "cats", "1F34E": "red apples", "2B50": "stars", "1F401": "mice"}
    found = [row for row in rows if row["kind"] == "count"]
    assert {len(row["boxes"]) for row in found} == {2, 3}
    for row in found:
        (code,) = set(row["hexcodes"])
        count = {2: "two", 3: "three"}[len(row["boxes"])]
        assert row["text"][0] == f"{count} {many[code]}, {STYLES[row['style']]}"
        colour = row["colours"][0]
        coloured = f"{count} {colour} {many[code]}, {STYLES[row['style']]}"
        assert (coloured in row["text"]) == (code != "1F34E")  # "red red apples"


@pytest.mark.parametrize("kind", ["place", "size"])
def test_captions_of_place_and_size(rows, kind):
    found = [row for row in rows if row["kind"] == kind]
    assert {row["place"] for row in found} == {"left", "right", "above", "below"}
    words = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
    inverse = {"left": "right", "right": "left", "above": "below", "below": "above"}
    for row in found:
        (x, y), (other_x, other_y) = middles(row)
        aside, down = x - other_x, y - other_y
        seen = {"left": aside < 0, "right": aside > 0, "above": down < 0, "below": down > 0}[row["place"]]
        across = row["place"] in ("left", "right")
        assert seen and abs(aside if across else down) > 2 * abs(down if across else aside)
        widths = [right - left for left, _, right, _ in row["boxes"]]
        one, other = (
            f"a {size} {NOUNS[code]}" for size, code in zip(("big", "small"), row["hexcodes"], strict=True)
        )
        if kind == "place":
            assert widths[0] == widths[1]
            one, other = map(a, row["hexcodes"])
        else:
            assert widths[0] > 1.8 * widths[1]
        style = STYLES[row["style"]]
        assert row["text"][0] == f"{one} {words[row['place']]} {other}, {style}"
        assert f"{other} {words[inverse[row['place']]]} {one}, {style}" in row["text"]


def test_captions_of_three_and_of_two_kinds(rows):
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("row", "two kinds")}
    assert all(by_kind.values())
    for row in by_kind["row"]:
        left, middle, right = (x for x, _ in middles(row))
        names = [a(code) for code in row["hexcodes"]]
        assert left < middle < right
        assert row["text"][0].startswith(f"{names[1]} between {names[0]} and {names[2]}, ")
        assert any(
            text.startswith(f"{names[0]}, {names[1]} and {names[2]} from left") for text in row["text"]
        )
    for row in by_kind["two kinds"]:
        counts = Counter(row["hexcodes"])
        assert sorted(counts.values()) == [1, 2]
        assert row["text"][0].startswith("two ") and f" and {a(row['hexcodes'][2])}, " in row["text"][0]


def test_a_colour_stands_in_a_caption_of_a_place(rows):
    row = next(row for row in rows if row["kind"] == "place" and row["hexcodes"] == ["1F697", "1F431"])
    assert any("a blue automobile" in text and "an orange cat" in text for text in row["text"])


def test_a_scene_is_a_function_of_its_number_and_small_ones_are_area_means(script, emoji, scenes, rows):
    again = script.Scenes(Dataset.from_parquet(str(emoji / "train.parquet")), seed=3)
    assert again.row(41) == rows[41]
    other = script.Scenes(Dataset.from_parquet(str(emoji / "train.parquet")), seed=4).row(41)
    assert other["image"] != rows[41]["image"]
    small = scenes.row(41, 64)
    means = pixels(rows[41]).reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(means - pixels(small)).max() <= 1 and small["text"] == rows[41]["text"]
    assert np.abs(np.array(small["boxes"]) * 4 - rows[41]["boxes"]).max() <= 2


def test_held_out_are_five_per_cent_of_what_stands_together_and_stay(script):
    assert sys.modules["_emoji_scenes"].combinations_of(["B", "A", "A"]) == ["2 A", "A B"]
    assert sys.modules["_emoji_scenes"].combinations_of(["C", "A", "B"]) == ["A B", "A C", "B C"]
    found = [f"2 {code:X}" for code in range(0x1F300, 0x1F300 + 2000) if script.held_out(f"2 {code:X}")]
    assert 0.04 < len(found) / 2000 < 0.06
    assert found[:3] == ["2 1F303", "2 1F317", "2 1F32E"]  # and stay what they are


def test_the_command_keeps_held_out_combinations_from_training(script, emoji, tmp_path, monkeypatch):
    held_out = {"2 1F431", "1F431 2B50"}
    monkeypatch.setattr(script, "held_out", held_out.__contains__)
    run(script, "--emoji", emoji, "--output", tmp_path / "scenes", "--count", 60, "--size", 64)
    train, test = (
        Dataset.from_parquet(str(tmp_path / "scenes" / f"{name}.parquet")) for name in ("train", "test")
    )
    assert len(train) + len(test) == 60 and len(test) > 3
    assert not any(held_out & set(combined) for combined in train["combinations"])
    assert all(held_out & set(combined) for combined in test["combinations"])
    assert train[0]["image"].size == (64, 64) and (tmp_path / "scenes" / "LICENCES" / "noto.txt").is_file()


def test_a_folder_without_emoji_is_refused(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(script, "--emoji", tmp_path, "--output", tmp_path / "out")
    assert "--emoji" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("noun", "several"),
    [("cherry", "cherries"), ("key", "keys"), ("bus", "buses"), ("peach", "peaches"), ("fox", "foxes"),
     ("green leaf", "green leaves"), ("tropical fish", "tropical fish"), ("wolf", "wolves")],
)  # fmt: skip
def test_plurals(script, noun, several):
    assert sys.modules["_emoji_phrases"].plural(noun) == several


@pytest.mark.parametrize(
    ("name", "category", "taken"),
    [
        ("cat", "animals-nature", True),
        ("grapes", "food-drink", False),
        ("sun behind cloud", "travel-places", False),
        ("face with tears of joy", "smileys-emotion", False),
        ("man: beard", "people-body", False),
        ("hourglass done", "travel-places", False),
        ("left speech bubble", "smileys-emotion", False),
        ("one o’clock", "travel-places", False),
    ],
)
def test_what_can_stand_in_a_scene(script, name, category, taken):
    assert sys.modules["_emoji_phrases"].countable(name, category) == taken
