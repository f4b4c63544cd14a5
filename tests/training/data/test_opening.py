"""Opening data: columns by their types, files by their kinds, and one sentence for what does not open."""

import io
import os
import sys
import tarfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, LargeList, List, Value
from datasets import Image as ImageFeature
from tiny_data import Terminal, png

from guided_diffusers.evaluation import efficientnet, reference
from guided_diffusers.store.files import cache_folder
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset, load_image_text

CELL = {"bytes": png(), "path": None}


@pytest.fixture
def opened(tmp_path):
    """The data of a parquet file of given columns, each (type, cells)."""

    def open_it(columns, **options):
        columns = {"image": (ImageFeature(), [CELL] * 2), **columns}
        features = Features({name: kind for name, (kind, _) in columns.items()})
        rows = {name: cells for name, (_, cells) in columns.items()}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
        defaults = {"resolution": 8, "channels": 1, "cache_dir": str(tmp_path / "cache")}
        return ImageTextDataset(DataConfig(path=str(tmp_path), **{**defaults, **options}))

    return open_it


TEXTS = {
    "strings": (Value("string"), ["a", "b"], ["a", "b"]),
    "large strings": (Value("large_string"), ["a", "b"], ["a", "b"]),
    "lists": (List(Value("string")), [["a", "c"], ["b"]], ["a", "b", "c"]),
    "large lists": (LargeList(Value("large_string")), [["a", "c"], ["b"]], ["a", "b", "c"]),
    "lists of one length": (List(Value("string"), length=2), [["a", "c"], ["b", None]], ["a", "b", "c"]),
    "classes": (ClassLabel(names=["cat", "dog"]), [1, 0], ["cat", "dog"]),
    "lists of classes": (List(ClassLabel(names=["cat", "dog", "owl"])), [[1, 2], [0]], ["cat", "dog", "owl"]),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_files_of_other_columns_beside_those_that_are_read(tmp_path, stream, kind):
    for number, more in enumerate([{"width": [8]}, {"source": ["a page"], "height": [8]}]):
        columns = {**more, "image": [png()], "text": pa.array([f"picture {number}"], kind)}
        pq.write_table(pa.table(columns), tmp_path / f"train-{number}.parquet")
    for path in (tmp_path, tmp_path / "train-*.parquet"):
        config = DataConfig(path=str(path), resolution=8, channels=1, stream=stream)
        rows = list(load_image_text(config))
        assert [row["text"] for row in rows] == ["picture 0", "picture 1"]
        assert [sorted(row) for row in rows] == [["image", "text"]] * 2
    with pytest.raises(ValueError, match="caption_column is 'source'; allowed: .*'image', 'text'"):
        load_image_text(DataConfig(path=str(tmp_path), resolution=8, caption_column="source"))


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_captions(opened, name):
    kind, cells, expected = TEXTS[name]
    assert opened({"text": (kind, cells)}).all_captions() == expected


def test_a_class_is_its_name_and_none_is_no_caption(opened):
    data = opened({"text": (ClassLabel(names=["cat", "dog"]), [1, -1])})
    assert data.captions([0], [0]) == ["dog"]
    with pytest.raises(ValueError, match="row 1 has no caption in column 'text'"):
        data.captions([1], [0])


NO_TEXTS = {
    "int64": (Value("int64"), [5, 7]),
    "binary": (Value("binary"), [b"a cat", b"a dog"]),
    "bool": (Value("bool"), [True, False]),
    "timestamp": (Value("timestamp[s]"), [0, 1]),
    "en": ({"en": Value("string"), "de": Value("string")}, [{"en": "a", "de": "b"}] * 2),
    "raw": (List({"raw": Value("string")}), [[{"raw": "a"}]] * 2),
    "Value..int64..": (List(Value("int64")), [[1, 2], [3]]),
    "List.List": (List(List(Value("string"))), [[["a"]], [["b"]]]),
    "Image": (ImageFeature(), [CELL] * 2),
}


@pytest.mark.parametrize("told", NO_TEXTS)
def test_other_columns_are_no_captions(opened, told):
    columns = {"text": NO_TEXTS[told], "alt": (Value("string"), ["a", "b"])}
    message = (
        rf"caption_column is 'text', which in .* is of type .*{told}.*; allowed: texts, .*would do: \['alt'\]"
    )
    with pytest.raises(ValueError, match=message):
        opened(columns)
    with pytest.raises(ValueError, match="no column would do"):
        opened({"text": NO_TEXTS[told]})


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        (List(ImageFeature()), [[CELL]] * 2),
        (List(Value("uint8")), [[1, 2]] * 2),
        (Value("int64"), [1, 2]),
        ({"url": Value("string")}, [{"url": "x"}] * 2),
    ],
)
def test_other_columns_are_no_images(opened, kind, cells):
    for on_corrupt in ("raise", "skip"):
        with pytest.raises(
            ValueError, match=r"image_column is 'photo', which .*allowed: .*would do: \['image'\]"
        ):
            opened({"photo": (kind, cells)}, image_column="photo", caption_column=None, on_corrupt=on_corrupt)


def test_bytes_and_paths_are_images(opened, tmp_path):
    (tmp_path / "a [1].png").write_bytes(png(255))
    paths = (Value("string"), [str(tmp_path / "a [1].png")] * 2)
    for name, kind in (("bytes", (Value("binary"), [png(255)] * 2)), ("path", paths)):
        data = opened({name: kind}, image_column=name, caption_column=None)
        assert data.pixels([0, 1]).min() == 1


RAMP = np.arange(64).reshape(8, 8)
ARRAYS = {
    "lists of 8 bits": (List(List(Value("uint8"))), RAMP.tolist()),
    "lists of JSON": (List(List(Value("int64"))), RAMP.tolist()),
    "lists of colours": (List(List(List(Value("int64")))), np.stack([RAMP] * 3, 2).tolist()),
    "an array": (Array2D((8, 8), "int64"), RAMP),
    "lists of 16 bits": (List(List(Value("uint16"))), (RAMP * 257).tolist()),
    "floating point": (List(List(Value("float64"))), (RAMP / 255).tolist()),
    "a struct with more": ({"bytes": Value("binary"), "width": Value("int64")}, {"bytes": None, "width": 8}),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_pixels_are_images(opened, name):
    kind, cell = ARRAYS[name]
    if isinstance(cell, dict):
        cell["bytes"] = png(RAMP.astype(np.uint8))
    data = opened({"array": (kind, [cell] * 2)}, image_column="array", caption_column=None)
    assert np.array_equal(((data.pixels([1])[0, 0] + 1) * 127.5).round(), RAMP)


@pytest.mark.parametrize(
    ("kind", "cell", "allowed"),
    [
        ("int64", RAMP * 1000, "0 to 255"),
        ("int64", RAMP - 9, "0 to 255"),
        ("uint16", RAMP, "of 16 bits some above 255, or the type uint8"),
    ],
)
def test_arrays_without_a_range_are_refused(opened, kind, cell, allowed):
    cells = (List(List(Value(kind))), [cell.tolist()] * 2)
    with pytest.raises(
        ValueError, match=f"image_column 'array' of .* does not read as images: .*allowed: {allowed}"
    ):
        opened({"array": cells}, image_column="array", caption_column=None)


def test_web_addresses_are_named_by_row(opened):
    addresses = (Value("string"), ["nowhere://example.invalid/a.png"] * 2)
    with pytest.raises(ValueError, match="row 0 of .* has an image that cannot be read, nowhere://"):
        opened({"url": addresses}, image_column="url", caption_column=None)
    with pytest.raises(ValueError, match="no image of .* can be decoded; the first: row 0 .*nowhere://"):
        opened({"url": addresses}, image_column="url", caption_column=None, on_corrupt="skip")


def test_categories_of_pandas_are_texts_and_classes(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b", "a"], "kind": ["x", "y", "x"]}).astype("category")
    table = pa.Table.from_pandas(frame).append_column("image", pa.array([png()] * 3))
    pq.write_table(table, tmp_path / "train.parquet")
    data = ImageTextDataset(DataConfig(path=str(tmp_path), resolution=8, cache_dir=str(tmp_path)))
    assert data.first_captions() == ["a", "b", "a"] and data.column("kind") == ["x", "y", "x"]


def test_a_pattern_of_tar_files(tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as file:
            for name, content in (
                (f"{number}.png", png(255 * number)),
                (f"{number}.txt", b"text %d" % number),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    columns = {"image_column": "png", "caption_column": "txt"}
    columns |= {"resolution": 8, "cache_dir": str(tmp_path / "c")}
    data = ImageTextDataset(DataConfig(path=str(tmp_path / "*.tar"), **columns))
    assert data.first_captions() == ["text 0", "text 1"]
    assert torch.equal(data.pixels([0, 1])[:, 0, 0, 0], torch.tensor([-1.0, 1.0]))
    os.truncate(tmp_path / "1.tar", 1024)  # behind the picture, where tarfile sees no harm
    with pytest.raises(ValueError, match=r"1\.tar breaks off"):
        load_image_text(DataConfig(path=str(tmp_path / "*.tar"), **columns))


def test_a_pattern_of_pictures(tmp_path):
    for number in (1, 2, 10):
        (tmp_path / f"test {number}.png").write_bytes(png(number))
    dataset = load_image_text(DataConfig(path=str(tmp_path / "*.png"), caption_column=None))
    assert [cell["path"].rpartition(" ")[2] for cell in dataset["image"]] == ["1.png", "10.png", "2.png"]


@pytest.mark.parametrize(
    ("files", "pattern", "message"),
    [
        ({"train.parquet": b"no parquet"}, "", "train.parquet does not read as parquet"),
        ({"a.parquet": b"no parquet"}, "a.parquet", "a.parquet does not read as parquet"),
        ({"a.tar": b"no archive"}, "*.tar", "does not open"),
        ({"a.tar": b"", "b.csv": b""}, "*.*", "kinds '.csv', '.tar'; allowed: pictures, or one of"),
        ({"a.pdf": b""}, "a.pdf", "kinds '.pdf'; allowed"),
        (
            {"a.csv": b"text,image\na red, round one,1.png\n"},
            "a.csv",
            "has more values in its lines than names",
        ),
        ({"a.csv": b"text\ncaf\xe9\n"}, "a.csv", "a.csv, line 2: the byte 0xe9 is not UTF-8"),
        (
            {"train.csv": b"text\ncaf\xe9\n", "test.csv": b"text\n"},
            "",
            "train.csv, line 2: the byte 0xe9 is not",
        ),
    ],
)
def test_files_that_do_not_open_are_named(tmp_path, files, pattern, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_image_text(DataConfig(path=str(tmp_path / pattern) if pattern else str(tmp_path)))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_data_files_that_are_left_out_are_told(tmp_path, caplog):
    for name in ("steam train", "cats"):
        pq.write_table(pa.table({"image": [png()], "text": [name]}), tmp_path / f"{name}.parquet")
    assert load_image_text(DataConfig(path=str(tmp_path)))["text"] == ["steam train"]
    assert "cats.parquet left out" in caplog.text


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_decoding_shows_its_progress_on_a_terminal(opened, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    opened({}, caption_column=None, on_corrupt="skip")
    assert ("decoding" in stream.getvalue()) == stream.isatty()
    assert "2/2" in stream.getvalue() or not stream.isatty()


def test_training_and_evaluation_have_one_cache(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDED_DIFFUSERS_CACHE", str(tmp_path / "kept"))
    opened({}, caption_column=None, cache_dir=None)
    assert list((tmp_path / "kept").glob("pixels-*"))
    assert reference.cache_folder is efficientnet.cache_folder is cache_folder
    assert cache_folder() == tmp_path / "kept" and cache_folder(tmp_path) == tmp_path
    monkeypatch.delenv("GUIDED_DIFFUSERS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "guided_diffusers"
