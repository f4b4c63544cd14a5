"""The eight emoji sets at 256 pixels: names to hexcodes, colours, captions, sizes, rows that stay."""

import importlib.util
import sys

import numpy as np
import pytest
from data_scripts import load, pixels, run, write, write_names
from PIL import Image

from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset

RESVG = importlib.util.find_spec("resvg_py") is not None
GROUPS = {
    "groups": {"0": "smileys-emotion", "2": "animals-nature", "6": "food-drink", "9": "flags"},
    "subgroups": {
        "0": "face-smiling",
        "1": "animal-mammal",
        "2": "food-fruit",
        "3": "country-flag",
        "4": "flag",
    },
}
EMOJI = [
    ("1F600", "grinning face", 0, 0, ["cheerful", "grin"], "gold"),
    ("1F400", "rat", 2, 1, ["animal"], "grey"),
    ("1F43B", "bear", 2, 1, ["face"], "brown"),
    ("1F983", "turkey", 2, 1, [], "brown"),
    ("1F431", "cat face", 2, 1, [], "orange"),
    ("1F63A", "grinning cat", 0, 0, [], "gold"),
    ("1F34E", "red apple", 6, 2, ["fruit"], "red"),
    ("1F353", "strawberry", 6, 2, [], "red"),
    ("31-FE0F-20E3", "keycap: 1", 0, 0, [], "blue"),
    ("2A-FE0F-20E3", "keycap: *", 0, 0, [], "blue"),
    ("1F3F3-FE0F", "white flag", 9, 4, [], "white"),
    ("1F1F3-1F1F4", "flag: Norway", 9, 3, ["NO"], "red"),
    ("1F1E7-1F1FB", "flag: Bouvet Island", 9, 3, ["BV"], "red"),
    ("1F1E6-1F1FD", "flag: Åland Islands", 9, 3, [], "blue"),
    ("1F1F9-1F1F7", "flag: Türkiye", 9, 3, [], "red"),
]
BY_NAME = {
    "grinning-face": "1F600", "rat-1": "1F400", "rat-2": None, "bear-face": "1F43B", "turkey": "1F983",
    "flag-for-turkey": None, "cat-face": "1F431", "grinning-cat-face": "1F63A", "keycap-1": "31-20E3",
    "keycap-asterisk": "2A-20E3", "flag-for-white-flag": "1F3F3", "flag-for-norway": "1F1F3-1F1F4",
    "aland-islands": "1F1E6-1F1FD", "apple": "1F34E", "strawberry": "1F353", "rat-medium-skin-tone": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def script():
    return load("emoji")


def part(script, name):
    return sys.modules[f"_emoji_{name}"]


def drawing(colour, coloured=0.8):
    """A transparent picture of 256 pixels with a square of a colour, black lines through it."""
    pixels = np.zeros((256, 256, 4), np.uint8)
    pixels[40:216, 40:216] = (*Image.new("RGB", (1, 1), colour).getpixel((0, 0)), 255)
    pixels[40 : 40 + round(176 * (1 - coloured)), 40:216] = (0, 0, 0, 255)
    return Image.fromarray(pixels)


@pytest.fixture
def source(script, tmp_path):
    """Made-up packages of "noto" and "emojione", already drawn: nothing here needs resvg."""
    root = tmp_path / "source"
    rows = [
        {"hexcode": code, "emoji": "x", "label": name, "order": place, "tags": tags}
        | {"group": group, "subgroup": sub}
        for place, (code, name, group, sub, tags, _) in enumerate(EMOJI)
    ]
    write_names(root, rows, GROUPS)
    body = {"body": '<rect width="20" height="10" fill="red"/>'}
    chars = {code.lower(): f"icon-{code}" for code, *_ in EMOJI}
    icons = {"icons": {name: body for name in chars.values()}, "width": 20, "height": 10}
    write(root / "iconify-noto" / "icons.json", icons)
    write(root / "iconify-noto" / "chars.json", chars)
    write(root / "iconify-noto" / "package.json", {"license": "Apache-2.0"})
    icons = {"icons": dict.fromkeys(BY_NAME, body), "aliases": {"red-apple": {"parent": "apple"}}}
    write(root / "iconify-emojione" / "icons.json", icons | {"width": 64, "height": 64})
    write(root / "iconify-emojione" / "package.json", {"license": "CC-BY-4.0"})
    for package in ("@iconify-json+noto@1.2.9", "@iconify-json+emojione@1.2.3"):
        folder = root / "drawn" / package
        folder.mkdir(parents=True)
        for place, (code, name, *_, colour) in enumerate(EMOJI, start=8):
            plain = script.plain(code)
            empty = name == "rat" and "emojione" in package
            picture = Image.new("RGBA", (256, 256)) if empty else drawing(colour)
            if "flag: " not in name and not empty:  # so that no two pictures are the same
                picture.paste("black", (100, 6 * place, 120, 6 * place + 4))
            picture.save(folder / f"{plain}.png")
    return root


STYLES = ("noto", "emojione")


def test_names_find_their_emoji_and_not_another(script, source, monkeypatch):
    iconify = part(script, "iconify")
    monkeypatch.setattr(iconify, "_svg", lambda icons, name: name)
    found = iconify.drawings_by_name(source / "iconify-emojione")
    assert {name: code for code, name in found.items()} == {k: v for k, v in BY_NAME.items() if v is not None}


def test_what_is_not_square_stands_in_the_middle_of_a_square(script, source):
    svg = part(script, "iconify").drawings()(source / "iconify-noto")["1F3F3"]  # looked up without FE0F
    assert 'viewBox="0 -5 20 20"' in svg and '<rect width="20" height="10" fill="red"/></svg>' in svg


def test_a_package_of_another_licence_is_refused_by_name(script, source):
    (source / "iconify-noto" / "package.json").write_text('{"license": "CC-BY-NC-4.0"}')
    with pytest.raises(ValueError, match=r"@iconify-json/noto@.*'CC-BY-NC-4.0'.*'noto'.*'Apache-2.0'"):
        script.build_large(source, 64, STYLES)


@pytest.mark.parametrize(
    ("shares", "word"),
    [
        ({"#e53935": 1.0}, "red"),
        ({"#fbc02d": 1.0}, "yellow"),
        ({"#1e88e5": 1.0}, "blue"),
        ({"#2e7d32": 1.0}, "green"),
        ({"#6d4c41": 1.0}, "brown"),
        ({"#8e24aa": 1.0}, "purple"),
        ({"#f48fb1": 1.0}, "pink"),
        ({"#fb8c00": 1.0}, "orange"),
        ({"#808080": 1.0}, "grey"),
        ({"#f2f2f2": 1.0}, "white"),
        ({"#111111": 1.0}, "black"),
        ({"#fcea2b": 0.7, "#000000": 0.3}, "yellow"),  # black is the outline
        ({"#e53935": 0.5, "#1e88e5": 0.5}, None),
        ({"#ffdbac": 1.0}, None),  # skin
    ],
)
def test_the_main_colour_in_a_word_where_it_is_plain(script, shares, word):
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[..., :3] = (0, 200, 0)  # transparent green does not count
    row = 0
    for colour, share in shares.items():
        pixels[row : row + round(10 * share)] = (*bytes.fromhex(colour[1:]), 255)
        row += round(10 * share)
    assert part(script, "colours").main_colour(pixels) == word


@pytest.mark.parametrize(
    ("name", "subgroup", "colour", "phrase"),
    [
        ("automobile", "transport-ground", "blue", "a blue automobile"),
        ("automobile", "transport-ground", "orange", "an orange automobile"),
        ("grapes", "food-fruit", "purple", "purple grapes"),
        ("broccoli", "food-vegetable", "green", "green broccoli"),
        ("red apple", "food-fruit", "red", None),  # says it already
        ("green apple", "food-fruit", "yellow", None),
        ("dark coffee", "drink", "brown", None),
        ("one o'clock", "time", "white", None),
        ("farmer", "person-role", "green", None),  # clothes
        ("flag of Norway", "country-flag", "red", None),
        ("automobile", "transport-ground", None, None),
    ],
)
def test_a_colour_is_said_where_it_reads_well(script, name, subgroup, colour, phrase):
    assert part(script, "names").with_colour(name, subgroup, colour) == phrase


def everything(splits):
    return {(row["hexcode"], row["style"]): row for rows in splits.values() for row in rows}


def test_captions_say_style_and_colour_and_keep_those_of_the_first_release(script, source):
    rows = everything(script.build_large(source, 64, STYLES)[0])
    berry = rows["1F353", "emojione"]
    assert berry["colour"] == "red" and berry["text"][:2] == [
        "a strawberry, emojione", "a red strawberry, emojione"
    ]  # fmt: skip
    apple = rows["1F34E", "noto"]
    assert apple["colour"] == "red" and not any("red red" in text for text in apple["text"])
    for row in rows.values():
        style = row["style"]
        key = f"{script.plain(row['hexcode'])} {style}"
        first = script.captions(row["name"], row["subgroup"], row["keywords"], style, key)
        assert row["text"][-len(first) :] == first or set(first) < set(row["text"])
        assert len(set(row["text"])) == len(row["text"]) >= 4
        assert row["licence"] == {"noto": "Apache-2.0", "emojione": "CC-BY-4.0"}[style] and row["attribution"]


def test_every_size_has_the_same_rows_and_is_the_area_mean_of_the_largest(script, source):
    large, middle, small = (script.build_large(source, size, STYLES)[0] for size in (256, 128, 64))
    for split, rows in large.items():
        for size, others in ((128, middle[split]), (64, small[split])):
            for row, other in zip(rows, others, strict=True):
                assert {**row, "image": None} == {**other, "image": None}
                scale = 256 // size
                means = pixels(row).reshape(size, scale, size, scale, 3).mean((1, 3))
                assert np.abs(means - pixels(other)).max() <= 1
    assert (pixels(large["train"][0])[:40] == 255).all()  # over white


def test_splits_are_those_of_the_hash_twins_and_empty_drawings_are_left_out(
    script, source, monkeypatch, capsys
):
    splits, dropped = script.build_large(source, 64, STYLES)
    for split, rows in splits.items():
        assert all(script.split_of(row["hexcode"], row["style"]) == split for row in rows)
    assert "rat, emojione" in capsys.readouterr().out and ("1F400", "emojione") not in everything(splits)
    monkeypatch.setattr(script, "split_of", lambda code, style: "test" if code == "1F1F3-1F1F4" else "train")
    splits, dropped = script.build_large(source, 64, ("noto",))
    assert dropped == 2  # two more flags are Norway's here
    assert not {"1F1E7-1F1FB", "1F1F9-1F1F7"} & {row["hexcode"] for row in splits["train"]}


def test_the_command_writes_what_training_reads(script, source, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(script.build_large, "__defaults__", (STYLES,))
    splits = {"1F600": "test", "1F431": "test_pairs"}
    monkeypatch.setattr(script, "split_of", lambda code, style: splits.get(code, "train"))
    chosen = {style: script.LARGE_STYLES[style] for style in STYLES}
    card = part(script, "card")
    write = card.write_card
    monkeypatch.setattr(script, "write_card", lambda out, src, styles, *rest: write(out, src, chosen, *rest))
    monkeypatch.setattr(card, "_COUNTS", {2: "two"})
    output = tmp_path / "large"
    run(script, "--source", source, "--output", output, "--size", 128)
    config = DataConfig(path=str(output), split="train", resolution=128, cache_dir=str(tmp_path / "cache"))
    data = ImageTextDataset(config)
    assert data.shape == (3, 128, 128) and data.captions([0], [0])[0]
    text = (output / "README.md").read_text()
    assert "128x128" in text and "@iconify-json/emojione@" in text and "EmojiTwo" in text
    assert "by/4.0" in (output / "LICENCES" / "emojione.txt").read_text()


@pytest.mark.skipif(not RESVG, reason="resvg (the extra data) is not installed")
def test_svg_is_drawn_once(script, source):
    sources = part(script, "sources")
    emoji = sources.read_emoji(source)
    folder = source / "drawn" / "@iconify-json+noto@1.2.9"
    for path in folder.iterdir():
        path.unlink()
    drawn = np.asarray(next(sources.large_pictures(source, "noto", emoji))[1])
    assert drawn.shape == (256, 256, 4) and tuple(drawn[128, 128]) == (255, 0, 0, 255)
    assert (drawn[:64, :, 3] == 0).all() and (drawn[192:, :, 3] == 0).all()
    Image.new("RGBA", (256, 256), "blue").save(folder / "1F600.png")
    assert tuple(np.asarray(next(sources.large_pictures(source, "noto", emoji))[1])[0, 0]) == (0, 0, 255, 255)


@pytest.mark.skipif(RESVG, reason="resvg is installed")
def test_without_resvg_the_error_says_what_to_install(script):
    with pytest.raises(ImportError, match=r"pip install guided-diffusers\[data\]"):
        part(script, "sources").drawn("<svg/>")
