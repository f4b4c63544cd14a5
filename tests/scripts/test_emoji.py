"""The emoji script: package folders in, an image-text dataset with two kinds of held-out rows out."""

import importlib.util
import sys

import numpy as np
import pytest
from data_scripts import load, pixels, run, write, write_names
from datasets import load_dataset
from PIL import Image

from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset

CAIRO = importlib.util.find_spec("cairosvg") is not None

GROUPS = {
    "groups": {"0": "smileys-emotion", "2": "component", "6": "food-drink", "9": "flags"},
    "subgroups": {
        "0": "face-smiling",
        "31": "person-symbol",
        "32": "skin-tone",
        "45": "food-fruit",
        "98": "country-flag",
    },
}
EMOJI = [
    ("1F600", "grinning face", 0, 0, ["cheerful", "grin"]),
    ("1F353", "strawberry", 6, 45, ["berry", "fruit", "red"]),
    ("1F34E", "red apple", 6, 45, []),
    ("263A-FE0F", "smiling face", 0, 0, ["happy"]),
    ("1F1F3-1F1F4", "flag: Norway", 9, 98, ["NO"]),
    ("1F1E7-1F1FB", "flag: Bouvet Island", 9, 98, ["BV"]),
    ("1F46A", "family", 0, 31, []),
    ("1F3FB", "light skin tone", 2, 32, []),
    ("1F1E6", "regional indicator A", None, None, []),
]
GOLDEN_TEST = ["1F321", "1F334", "1F339"]
GOLDEN_PAIRS = ["1F32C", "1F32F", "1F33D", "1F341", "1F352"]
COLOURS = {"1F600": "gold", "1F353": "red", "1F34E": "brown", "263A": "orange"}


@pytest.fixture(scope="module")
def script():
    return load("emoji")


@pytest.fixture
def sources(script):
    return sys.modules["_emoji_sources"]


@pytest.fixture
def names(script):
    return sys.modules["_emoji_names"]


def codes(count):
    """Hexcodes that an emoji could have."""
    return [f"{0x1F300 + number:X}" for number in range(count)]


def disc(colour, size=(64, 64)):
    """A coloured square in the middle of a transparent picture, its edge half transparent."""
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    top, left = size[1] // 4, size[0] // 4
    pixels[top:-top, left:-left] = (*Image.new("RGB", (1, 1), colour).getpixel((0, 0)), 128)
    pixels[top + 4 : -top - 4, left + 4 : -left - 4, 3] = 255
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder shaped as --source is, with a few real emoji and made-up pictures."""
    source = tmp_path_factory.mktemp("source")

    rows = [
        {"hexcode": code, "emoji": "x", "label": name, "order": 10 * place, "tags": tags}
        | ({} if group is None else {"group": group, "subgroup": subgroup})
        for place, (code, name, group, subgroup, tags) in enumerate(EMOJI)
    ]
    for row in rows:
        if row.get("group") is None:
            del row["order"]  # as emojibase has it
    write_names(source, rows[::-1], GROUPS)
    write(source / "openmoji" / "LICENSE.txt", "the licence of OpenMoji")
    for vendor in ("google", "twitter"):
        at = source / f"emoji-datasource-{vendor}"
        listed = []
        for code, name, *_ in EMOJI:
            image = f"{code.lower()}.png"
            listed.append({"unified": code, "image": image, f"has_img_{vendor}": name != "red apple"})
            (at / "img" / vendor / "64").mkdir(parents=True, exist_ok=True)
            colour = "blue" if "flag" in name else COLOURS.get(code.split("-")[0], "black")
            disc(colour).save(at / "img" / vendor / "64" / image)
        write(at / "emoji.json", listed)
    (source / "fluent-emoji-3d" / "assets").mkdir(parents=True)
    for code, name, *_ in EMOJI:
        colour = "green" if "flag" in name else COLOURS.get(code.split("-")[0], "black")
        picture = disc(colour, (256, 264) if name == "strawberry" else (256, 256))
        path = source / "fluent-emoji-3d" / "assets" / f"{code.lower().replace('-fe0f', '')}.webp"
        picture.save(path, lossless=True)
    shape = '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg"><rect x="18" y="18" width="36" '
    for code, *_ in EMOJI:
        write(source / "openmoji" / "color" / "svg" / f"{code}.svg", f'{shape}height="36" fill="red"/></svg>')
    return source


PNG_STYLES = ("noto", "twemoji", "fluent 3d")


@pytest.fixture
def rows(script, packages):
    splits, dropped = script.build(packages, PNG_STYLES)
    return splits, dropped, [row for split in splits.values() for row in split]


def test_about_five_per_cent_are_held_out_and_no_emoji_of_test_is_elsewhere(script):
    styles = ["noto", "twemoji", "fluent 3d", "openmoji"]
    splits = {code: [script.split_of(code, style) for style in styles] for code in codes(4000)}
    held_out = [code for code, found in splits.items() if "test" in found]
    assert all(set(splits[code]) == {"test"} for code in held_out)
    assert 0.04 < len(held_out) / len(splits) < 0.06
    others = [split for code, found in splits.items() if code not in held_out for split in found]
    assert 0.04 < others.count("test_pairs") / len(others) < 0.06
    by_style = [sum(found[place] == "test_pairs" for found in splits.values()) for place in range(4)]
    assert min(by_style) > 0.7 * max(by_style)
    both = sum(found[:2] == ["test_pairs"] * 2 for found in splits.values())
    assert both < 0.01 * len(splits)  # independent: 0.25%


def test_a_split_is_a_function_of_the_hexcode_and_style_and_stays_what_it_is(script):
    """Spelling does not matter; the values are those of the first release, whose test set must not change."""
    assert script.split_of("263A-FE0F", "noto") == script.split_of("263a", "noto")
    found = [code for code in codes(100) if script.split_of(code, "noto") == "test"]
    assert found == GOLDEN_TEST
    assert [code for code in codes(100) if script.split_of(code, "noto") == "test_pairs"] == GOLDEN_PAIRS


def test_rows_are_emoji_with_pictures_of_their_own_set(rows):
    everything = rows[2]
    found = {(row["hexcode"], row["style"]) for row in everything}
    assert not {code for code, _ in found} & {"1F3FB", "1F1E6"}  # a skin tone, a letter
    assert ("1F34E", "noto") not in found and ("1F34E", "fluent 3d") in found  # has_img_google is false
    assert ("263A-FE0F", "fluent 3d") in found  # a file without FE0F
    assert not any(style == "fluent 3d" and code.startswith("1F1") for code, style in found)
    assert ("1F46A", "noto") in found and ("1F46A", "fluent 3d") not in found
    for row in everything:
        assert row["licence"] and row["attribution"] and row["category"] and row["subgroup"]
        assert (
            all(text == text.strip() for text in row["text"])
            and len(set(row["text"])) == len(row["text"]) >= 3
        )


def test_pictures_stand_on_white_and_are_resized_whole(rows):
    by_key = {(row["hexcode"], row["style"]): pixels(row) for row in rows[2]}
    assert {image.shape for image in by_key.values()} == {(64, 64, 3)}
    noto = by_key["1F353", "noto"]
    assert (noto[:16] == 255).all() and (noto[32, 32] == (255, 0, 0)).all()
    assert (noto[32, 17] == (255, 127, 127)).all()  # half transparent red over white
    fluent = by_key["1F600", "fluent 3d"]
    assert (fluent[32, 32] == (255, 215, 0)).all() and (fluent[0, 0] == 255).all()
    assert abs((fluent < 150).any(-1).mean() - 0.25) < 0.04
    tall = (by_key["1F353", "fluent 3d"] < 250).any(-1)  # 256 x 264: padded at both sides, not squeezed
    across, down = np.flatnonzero(tall.any(0)), np.flatnonzero(tall.any(1))
    assert abs((across[0] + across[-1]) / 2 - 31.5) <= 0.5 and abs((down[0] + down[-1]) / 2 - 31.5) <= 0.5


def test_a_training_row_with_the_picture_of_a_held_out_row_is_left_out(script, packages, monkeypatch):
    """Bouvet Island's flag is Norway's: whichever is held out, the other is not trained on."""
    held_out = lambda code, style: "test" if code == "1F1F3-1F1F4" else "train"  # noqa: E731
    monkeypatch.setattr(script, "split_of", held_out)
    splits, dropped = script.build(packages, PNG_STYLES)
    assert {row["hexcode"] for row in splits["test"]} == {"1F1F3-1F1F4"} and dropped == 2
    assert "1F1E7-1F1FB" not in {row["hexcode"] for row in splits["train"]}
    assert len(splits["train"]) == 4 + 4 + 4  # red apple is in one style only


def test_the_same_packages_give_the_same_bytes(script, packages, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")  # blind to rebuilt files
    monkeypatch.setattr(script.build, "__defaults__", (PNG_STYLES,))
    monkeypatch.setattr(
        script, "split_of", lambda code, style: {"1F353": "test", "1F34E": "test_pairs"}.get(code, "train")
    )
    for name in ("one", "two"):
        run(script, "--source", packages, "--output", tmp_path / name)
    names = ["README.md", "test.parquet", "test_pairs.parquet", "train.parquet", "LICENCES/openmoji.txt"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    card = (tmp_path / "one" / "README.md").read_text()
    assert "cc-by-sa-4.0" in card and "Twitter" in card and "| test | 3 |" in card
    licences = {path.name for path in (tmp_path / "one" / "LICENCES").iterdir()}
    assert licences >= {"noto.txt", "twemoji.txt", "fluent-3d.txt", "openmoji.txt"}
    for split, count in (("train", 12), ("test", 3), ("test_pairs", 1)):
        config = DataConfig(
            path=str(tmp_path / "one"), split=split, resolution=64, cache_dir=str(tmp_path / "cache")
        )
        data = ImageTextDataset(config)
        assert len(data) == count and data.shape == (3, 64, 64)
        assert data.captions([0], [0])[0] and data.pixels([0]).max() == 1
    again = load_dataset(str(tmp_path / "one"), split="test", cache_dir=str(tmp_path / "cache"))
    assert again[0]["image"].size == (64, 64) and again[0]["keywords"] == ["berry", "fruit", "red"]


def test_captions_name_the_emoji_and_its_style(names):
    for style, first in (
        ("fluent 3d", "a 3d emoji of"),
        ("openmoji", "an openmoji of"),
        ("noto", "a noto emoji of"),
    ):
        texts = names.captions("grinning face", "face-smiling", ["grin", "face"], style, f"1F600 {style}")
        assert texts[0] == f"{first} a grinning face" and texts[-1] == f"{first} a grinning face: grin"
        assert len(set(texts)) == 4 and all("grinning face" in text for text in texts)
    keys = [f"{code} noto" for code in codes(200)]
    chosen = {tuple(names.captions("cat", "animal-mammal", [], "noto", key)) for key in keys}
    assert len(chosen) > 30  # templates and words are chosen key by key
    assert names.captions("cat", "animal-mammal", [], "noto", keys[3]) in map(list, chosen)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grinning face", "a grinning face"),
        ("alien", "an alien"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass done"),
        ("SOS button", "an SOS button"),
        ("grapes", "grapes"),
        ("bus", "a bus"),
        ("kiss", "a kiss"),
        ("person lifting weights", "a person lifting weights"),
        ("women with bunny ears", "women with bunny ears"),
        ("face with tears of joy", "a face with tears of joy"),
        ("one o’clock", "one o'clock"),
        ("Santa Claus", "Santa Claus"),
        ("flag: Norway", "the flag of Norway"),
        ("flag: Turks & Caicos Islands", "the flag of Turks & Caicos Islands"),
        ("man: beard", "a man with a beard"),
        ("woman: red hair", "a woman with red hair"),
        ("person: bald", "a bald person"),
        ("keycap: 1", "a keycap 1"),
        ("family: man, woman, boy", "a family of man, woman and boy"),
        ("person running: facing right", "a person running, facing right"),
        ("Japanese “here” button", 'a Japanese "here" button'),
    ],
)
def test_names_in_a_sentence(names, name, expected):
    assert names.with_article(names.spoken(name)) == expected


@pytest.mark.parametrize("name", ["emojibase-data", "emoji-datasource-google", "fluent-emoji-3d", "openmoji"])
def test_a_missing_package_says_what_to_fetch(script, sources, packages, tmp_path, name):
    for package in packages.iterdir():
        if package.name != name:
            (tmp_path / package.name).symlink_to(package)
    wanted = {style for style, found in sources.STYLES.items() if found.package == name} or {"noto"}
    with pytest.raises(
        FileNotFoundError, match=rf"no folder {name}: run with --fetch, or `npm pack .*{name}@"
    ):
        script.build(tmp_path, tuple(wanted))


@pytest.mark.skipif(not CAIRO, reason="cairosvg (the extra data) is not installed")
def test_openmoji_is_drawn_from_svg(script, packages):
    row = next(row for split in script.build(packages, ("openmoji",))[0].values() for row in split)
    drawn = pixels(row)
    assert drawn.shape == (64, 64, 3)
    assert (drawn[32, 32] == (255, 0, 0)).all() and (drawn[:12] == 255).all()
    assert row["licence"] == "CC-BY-SA-4.0" and "OpenMoji" in row["attribution"]


@pytest.mark.skipif(CAIRO, reason="cairosvg is installed")
def test_without_cairosvg_the_error_says_what_to_install(script, packages):
    with pytest.raises(ImportError, match=r"pip install guided-diffusers\[data\]"):
        script.build(packages, ("openmoji",))
