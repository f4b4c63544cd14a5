"""Reading images: folders, npz, parquet, and what is wrong with them."""

import json

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from tiny_data import SLICE

from guided_diffusers.evaluation import read_images, stratified_prompts


def png(path, size=(8, 6), mode="L", color=7):
    Image.new(mode, size, color).save(path)


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for number in (2, 0, 1):
        png(tmp_path / f"{number}.png", color=number)
    images = read_images(tmp_path).images
    assert images.shape == (3, 1, 6, 8) and images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert len(read_images(tmp_path, limit=2)) == 2


def test_transparent_pixels_are_white_and_grey_joins_colour(tmp_path):
    png(tmp_path / "a.png", mode="RGBA", color=(10, 20, 30, 0))
    png(tmp_path / "b.png", mode="L", color=5)
    images = read_images(tmp_path).images
    assert images[0].unique().tolist() == [255]
    assert images.shape[1] == 3 and images[1].unique().tolist() == [5]


def test_metadata_gives_order_captions_and_labels(tmp_path):
    for name in ("a", "b"):
        png(tmp_path / f"{name}.png", color=ord(name))
    rows = [
        {"file_name": "b.png", "text": "bee", "label": 1},
        {"file_name": "a.png", "text": "ay", "label": 0},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = read_images(tmp_path)
    assert data.images[:, 0, 0, 0].tolist() == [ord("b"), ord("a")]
    assert data.captions == [["bee"], ["ay"]] and data.labels.tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(3, 1, 4, 5), (3, 4, 5, 3), (3, 4, 5, 1)])
def test_npz_with_channels_first_or_last(tmp_path, shape):
    np.savez(tmp_path / "x.npz", images=np.zeros(shape, np.uint8))
    assert read_images(tmp_path / "x.npz").images.shape[2:] == (4, 5)


def test_the_data_sets_parquet():
    data = read_images(SLICE)
    assert data.images.shape[1:] == (1, 32, 32) and len(data.captions) == len(data)
    assert data.labels.max() < len(data.names)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "holds no images"),
        (lambda folder: (folder / "x.png").write_bytes(b"no image"), "x.png is no readable image"),
        (lambda folder: (png(folder / "a.png"), png(folder / "b.png", (5, 5))), "b.png is 5 x 5"),
        (lambda folder: (png(folder / "a.png"), png(folder / "grid.png", (5, 5))), "draw with --no-grid"),
        (
            lambda folder: (folder / "metadata.jsonl").write_bytes(b'\n{"text": "caf\xe9"}'),
            "metadata.jsonl, line 2: the byte 0xe9 is not UTF-8",
        ),
        (
            lambda folder: (folder / "metadata.jsonl").write_text('{"text": "a"}'),
            "file_name of .*metadata.jsonl, line 1, is None",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_images(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "x.parquet does not read as parquet"),
        ([{"bytes": None, "path": "a.png"}], "x.parquet, row 0, is None; allowed: the bytes"),
        ([None], "x.parquet, row 0, is None"),
        ([{"bytes": b"no image", "path": None}], "x.parquet, row 0 is no readable image"),
    ],
)
def test_what_is_wrong_with_a_parquet_file_is_said(tmp_path, rows, message):
    path = tmp_path / "x.parquet"
    if rows is None:
        path.write_bytes(b"no parquet")
    else:
        cell = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        parquet.write_table(pyarrow.table({"image": pyarrow.array(rows, cell)}), path)
    with pytest.raises(ValueError, match=message):
        read_images(path)


def test_names_are_taken_literally_and_every_kind_of_picture_is_seen(tmp_path):
    folder = tmp_path / "a [1] *#"
    folder.mkdir()
    for number, name in enumerate(("[1].png", "a#.TIFF", "b*?.gif", "\u732b.ppm")):
        Image.new("L", (4, 4), number).save(folder / name)
    (folder / "._[1].png").write_bytes(b"what macOS leaves beside files")
    assert read_images(folder).images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_images(tmp_path / "nothing")


def test_prompts_are_in_the_proportions_of_the_classes_and_the_same_every_time():
    data = read_images(SLICE)
    prompts = stratified_prompts(data, 2 * len(data))
    assert torch.equal(prompts.labels.bincount(), 2 * data.labels.bincount())
    for text, label in zip(prompts.texts, prompts.labels, strict=True):
        assert any(text in data.captions[row] for row in (data.labels == label).nonzero().flatten().tolist())
    assert stratified_prompts(data, 5).texts == stratified_prompts(data, 5).texts
