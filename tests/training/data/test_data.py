"""Image-text data: every kind of source, exact pixels, captions by position, and errors that name the row."""

import io
import json
import logging
import zipfile
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from tiny_data import SLICE, fashion, png

from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset, load_image_text
from guided_diffusers.training.data.decoding import decode_image


@pytest.fixture
def open_slice(tmp_path):
    return partial(fashion, tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """A folder of five 8x8 images, one grey level each, with a metadata.jsonl."""
    images = tmp_path / "images"
    images.mkdir()
    lines = []
    for number in range(5):
        Image.fromarray(np.full((8, 8, 3), 50 * number, np.uint8)).save(images / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"level {number}"}))
    (images / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return images


def open_folder(folder, **arguments):
    cache = str(folder.parent / "cache")
    return ImageTextDataset(DataConfig(path=str(folder), resolution=8, cache_dir=cache, **arguments))


def test_pixels_are_the_files_bytes_in_the_range(open_slice):
    data = open_slice()
    pixels = data.pixels(range(len(data)))
    assert pixels.shape == (64, 1, 32, 32) and pixels.dtype == torch.float32 and data.shape == (1, 32, 32)
    assert pixels.min() == -1 and pixels.max() == 1
    source = load_image_text(data.config)
    for row in (0, 17, 63):
        original = np.asarray(Image.open(io.BytesIO(source[row]["image"]["bytes"])))
        assert np.array_equal(((pixels[row, 0] + 1) * 127.5).round().numpy(), original)


def test_grey_images_as_three_channels_are_equal_channels(open_slice):
    rgb, grey = open_slice(channels=3).pixels([4, 9]), open_slice().pixels([4, 9])
    assert torch.equal(rgb, grey.expand(-1, 3, -1, -1))


def test_rows_do_not_depend_on_the_batch(open_slice):
    data = open_slice()
    together = data.pixels([5, 40, 5])
    assert torch.equal(together[0], together[2]) and torch.equal(together[1], data.pixels([40])[0])


def test_mirror_images_are_rows_of_their_own(open_slice):
    data, plain = open_slice(mirror=True), open_slice()
    assert len(data) == 2 * len(plain)
    assert torch.equal(data.pixels(range(64)), plain.pixels(range(64)))
    assert torch.equal(data.pixels(range(64, 128)), plain.pixels(range(64)).flip(-1))
    assert data.captions([70], [3]) == plain.captions([6], [3])
    assert data.fingerprint != plain.fingerprint and data.all_captions() == plain.all_captions()


def test_row_numbers_beyond_the_end_are_an_error(open_slice):
    with pytest.raises(IndexError, match=r"\[0, 64\)"):
        open_slice().pixels([0, 64])


def test_every_caption_of_a_row_is_drawn_equally_often(open_slice):
    data = open_slice()
    options = load_image_text(data.config)[0]["text"]
    drawn = Counter(data.captions([0] * 6000, range(6000), seed=3))
    assert set(drawn) == set(options)
    assert all(abs(count - 1000) < 150 for count in drawn.values())  # 5 standard deviations


def test_captions_depend_on_seed_and_position_alone(open_slice):
    data = open_slice()
    indices, positions = list(range(30)), list(range(1000, 1030))
    together = data.captions(indices, positions, seed=1)
    assert together == [data.captions([i], [p], seed=1)[0] for i, p in zip(indices, positions, strict=True)]
    assert together != data.captions(indices, positions, seed=2)
    assert together != data.captions(indices, range(30), seed=1)


def test_all_captions_are_the_distinct_ones(open_slice):
    data = open_slice()
    every = [text for texts in load_image_text(data.config)["text"] for text in texts]
    assert data.all_captions() == sorted(set(every)) and len(data.all_captions()) == 60


def test_images_are_decoded_once(open_slice, monkeypatch):
    first = open_slice().pixels([1, 2])

    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("guided_diffusers.training.data.decoding.decode_image", fail)
    assert torch.equal(open_slice().pixels([1, 2]), first)
    with pytest.raises(ValueError, match="decoded again"):
        open_slice(resolution=16)


def test_a_changed_source_is_decoded_anew(folder):
    before = open_folder(folder).pixels([2])
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(folder / "2.png")
    after = open_folder(folder).pixels([2])
    assert before.max() < 1 and after.min() == 1


def test_an_image_folder(folder):
    data = open_folder(folder)
    levels = (data.pixels(range(5)).mean((1, 2, 3)) + 1) * 127.5
    assert torch.allclose(levels, torch.arange(5) * 50.0)
    assert data.captions(range(5), range(5)) == [f"level {number}" for number in range(5)]


def test_a_folder_and_a_pattern_of_parquet_files(tmp_path):
    source = Dataset.from_parquet(str(SLICE), cache_dir=str(tmp_path / "datasets"))
    (tmp_path / "parts").mkdir()
    for part in range(2):
        source.shard(2, part, contiguous=True).to_parquet(tmp_path / "parts" / f"train-{part}.parquet")
    whole = ImageTextDataset(DataConfig(path=str(SLICE), channels=1, cache_dir=str(tmp_path / "cache")))
    for path in (tmp_path / "parts", tmp_path / "parts" / "train-*.parquet"):
        data = ImageTextDataset(DataConfig(path=str(path), channels=1, cache_dir=str(tmp_path / "cache")))
        assert torch.equal(data.pixels(range(64)), whole.pixels(range(64)))


def test_parquet_files_that_are_written_anew_are_read_anew(tmp_path):
    """A card that lists the files, as our scripts write it, must not freeze what they once held."""
    files = "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.parquet}\n"
    (tmp_path / "README.md").write_text(f"---\n{files}---\n")
    for count in (3, 5):
        rows = {"image": [{"bytes": png(0), "path": None}] * count}
        features = Features(image=ImageFeature())
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
        assert len(load_image_text(DataConfig(path=str(tmp_path), caption_column=None))) == count


def test_a_part_of_a_split(open_slice):
    data = open_slice(split="train[10:20]")
    assert torch.equal(data.pixels(range(10)), open_slice().pixels(range(10, 20)))


def test_a_corrupt_file_stops_and_is_named(folder):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"row 3 .*corrupt image.*3\.png.*on_corrupt"):
        open_folder(folder)


def test_a_truncated_image_stops_and_is_named(folder):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (folder / "1.png").write_bytes(png(noise)[:6000])
    with pytest.raises(ValueError, match=r"row 1 .*corrupt image.*1\.png"):
        open_folder(folder)


def test_corrupt_files_are_skipped_with_a_warning_and_a_count(folder, caplog):
    (folder / "1.png").write_bytes(b"no image")
    (folder / "3.png").unlink()
    with caplog.at_level(logging.WARNING):
        data = open_folder(folder, on_corrupt="skip")
    assert len(data) == 3 and data.rows.tolist() == [0, 2, 4]
    assert data.captions([1], [0]) == ["level 2"]
    assert torch.allclose((data.pixels([1]).mean() + 1) * 127.5, torch.tensor(100.0))
    assert "1.png" in caplog.text and "3.png" in caplog.text and "skipped 2 of" in caplog.text


def test_a_row_without_an_image_is_named(tmp_path):
    image = {"bytes": png(0), "path": None}
    features = Features(image=ImageFeature(), text=Value("string"))
    rows = Dataset.from_dict({"image": [image, None], "text": ["a", "b"]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    config = DataConfig(path=str(tmp_path / "rows.parquet"), resolution=8, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"row 1 .*has no image"):
        ImageTextDataset(config)
    assert not list(tmp_path.glob("pixels-*"))  # nothing half written


def test_a_dataset_of_nothing_but_corrupt_images_is_an_error(folder):
    for number in range(5):
        (folder / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no image of .* can be decoded; the first: row 0"):
        open_folder(folder, on_corrupt="skip")


def test_missing_captions_matter_to_text_training_only(tmp_path):
    image = {"bytes": png(0), "path": None}
    features = Features(image=ImageFeature(), text=List(Value("string")))
    texts = [["a", None], [], None]
    Dataset.from_dict({"image": [image] * 3, "text": texts}, features=features).to_parquet(
        tmp_path / "a.parquet"
    )
    data = ImageTextDataset(
        DataConfig(path=str(tmp_path / "a.parquet"), resolution=8, cache_dir=str(tmp_path))
    )
    assert data.pixels([0, 1, 2]).shape == (3, 3, 8, 8)
    assert set(data.captions([0] * 20, range(20))) == {"a"}
    with pytest.raises(ValueError, match="row 1 .*no caption"):
        data.all_captions()
    for row in (1, 2):
        with pytest.raises(ValueError, match=f"row {row} .*no caption in column 'text'"):
            data.captions([row], [0])


def test_an_empty_caption_is_a_caption(tmp_path):
    image = {"bytes": png(0), "path": None}
    features = Features(image=ImageFeature(), text=Value("string"))
    Dataset.from_dict({"image": [image], "text": [""]}, features=features).to_parquet(tmp_path / "a.parquet")
    data = ImageTextDataset(
        DataConfig(path=str(tmp_path / "a.parquet"), resolution=8, cache_dir=str(tmp_path))
    )
    assert data.captions([0], [0]) == [""]


@pytest.mark.parametrize("argument", ["image_column", "caption_column"])
def test_a_missing_column_names_those_there_are(argument):
    with pytest.raises(ValueError, match=rf"{argument} is 'nothing'.*'image', 'label', 'name', 'text'"):
        load_image_text(DataConfig(path=str(SLICE), **{argument: "nothing"}))


def test_no_caption_column_is_needed_for_pixels(open_slice):
    data = open_slice(caption_column=None)
    assert data.pixels([0]).shape == (1, 1, 32, 32)
    with pytest.raises(ValueError, match="caption_column is None"):
        data.captions([0], [0])


@pytest.mark.parametrize("path", ["./my_image", "data/my/images", "/nowhere/images"])
def test_what_can_only_be_a_folder_is_not_sought_on_the_hub(path):
    with pytest.raises(FileNotFoundError, match=f"path '{path}' is no folder, nor the name"):
        load_image_text(DataConfig(path=path))


def test_a_name_that_the_hub_does_not_give_may_have_been_a_folders():
    with pytest.raises(OSError, match="path 'my_image' is no folder here; on the Hub: "):
        load_image_text(DataConfig(path="my_image"))


def test_errors_that_take_more_than_a_message_are_told_too(monkeypatch):
    class ServerError(OSError):
        def __init__(self, message: str, *, response: object) -> None:
            super().__init__(message)

    def unreachable(*_: object, **__: object) -> None:
        raise ServerError("the server has a bad day", response=object())

    monkeypatch.setattr("guided_diffusers.training.data.opening.load_dataset", unreachable)
    with pytest.raises(FileNotFoundError, match="no folder here; on the Hub: the server has a bad day"):
        load_image_text(DataConfig(path="you/images"))


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none-\*\.parquet' matches no parquet file"):
        load_image_text(DataConfig(path=str(tmp_path / "none-*.parquet")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2}, "channels is 2"),
        ({"on_corrupt": "x"}, "on_corrupt"),
        ({"resolution": 0}, "resolution"),
    ],
)
def test_bad_configurations_name_the_field(arguments, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(path="anything", **arguments)


def test_decoding_resizes_the_shorter_side_and_keeps_the_middle():
    pixels = np.zeros((16, 48), np.uint8)
    pixels[:, 16:32] = 200  # the middle third
    assert (decode_image(png(pixels), 16, 1) == 200).all()
    assert decode_image(png(pixels), 8, 3).shape == (3, 8, 8)


def test_decoding_lays_transparency_over_white():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255  # black above, transparent below
    decoded = decode_image(png(pixels), 4, 3)
    assert (decoded[:, :2] == 0).all() and (decoded[:, 2:] == 255).all()


def test_decoding_keeps_the_range_of_sixteen_bits():
    pixels = np.array([[0, 65535], [32768, 256]], np.uint16)
    assert decode_image(png(pixels), 2, 1)[0].tolist() == [[0, 255], [128, 1]]


def test_decoding_applies_the_orientation():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    pixels = np.array([[10, 20], [30, 40]], np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG", exif=exif)
    assert decode_image(buffer.getvalue(), 2, 1)[0].tolist() == [[40, 30], [20, 10]]


def test_images_inside_an_archive(folder, tmp_path):
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(5):
            file.write(folder / f"{number}.png", f"{number}.png")
    paths = [f"zip://{number}.png::{archive}" for number in range(5)]
    features = Features(image=ImageFeature(), text=Value("string"))
    rows = [{"bytes": None, "path": path} for path in paths]
    source = Dataset.from_dict({"image": rows, "text": ["a"] * 5}, features=features)
    source = source.cast_column("image", ImageFeature(decode=False))
    config = DataConfig(path="in memory", resolution=8, cache_dir=str(tmp_path / "cache"))
    data = ImageTextDataset(config, source)
    assert torch.equal(data.pixels(range(5)), open_folder(folder).pixels(range(5)))
