"""The Fashion-MNIST script: IDX files in, an image-text dataset out."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from data_scripts import load, run
from datasets import load_dataset
from PIL import Image
from tiny_data import SLICE

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def script():
    return load("fashion_mnist")


def write_idx(path, values):
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture
def source(tmp_path):
    """A folder with four small IDX files of random images, and their pixels and labels by split."""
    generator = np.random.default_rng(0)
    made = {}
    for split, prefix, rows in (("train", "train", 12), ("test", "t10k", 3)):
        images = generator.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        labels = (np.arange(rows) % 10).astype(np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
        made[split] = images, labels
    return tmp_path, made


def test_pixels_and_labels_survive_the_way_through_the_command(script, source, tmp_path):
    folder, made = source
    output = tmp_path / "out"
    run(script, "--source", folder, "--output", output)
    for split, (images, labels) in made.items():
        dataset = load_dataset(str(output), split=split, cache_dir=str(tmp_path / "cache"))
        assert dataset["label"][:] == labels.tolist()
        for row, image in zip(dataset, images, strict=True):
            assert row["image"].mode == "L" and row["image"].size == (32, 32)
            assert np.array_equal(np.asarray(row["image"]), np.pad(image, 2))
            assert row["name"] == dataset.features["label"].int2str(row["label"])
            assert len(row["text"]) >= 6 and all(row["name"] in text for text in row["text"])
    card = (output / "README.md").read_text()
    assert "license: mit" in card and "Zalando" in card and "12 training and 3 test" in card


def test_articles(script):
    assert "a photo of an ankle boot" in script.captions("ankle boot")
    assert "a photo of trousers" in script.captions("trousers")
    assert "a photo of a sandal" in script.captions("sandal")
    for name in script.CLASSES:
        texts = script.captions(name)
        assert len(set(texts)) == len(texts)
        for text in texts:
            assert "a ankle" not in text and "a an " not in text and "a trousers" not in text


def test_a_missing_file_is_named(script, tmp_path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte.gz"):
        script.build(tmp_path, "train")


def test_a_truncated_file_is_named(script, source):
    folder, _ = source
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(ValueError, match="train-labels.*announces.*12.*holds 11"):
        script.build(folder, "train")


def test_a_file_of_another_kind_is_named(script, source):
    folder, _ = source
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match="train-images.*not a gzipped IDX"):
        script.build(folder, "train")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_committed_slice_is_the_start_of_the_real_data(script):
    real = script.build(DEBIAN, "train", rows=64)
    committed = load_dataset("parquet", data_files=str(SLICE), split="train")
    assert committed["label"][:] == real["label"][:] and committed["text"][:] == real["text"][:]
    for ours, theirs in zip(committed["image"], real["image"], strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_the_slice_holds_every_class(script):
    rows = load_dataset("parquet", data_files=str(SLICE), split="train")
    assert set(rows["name"]) == set(script.CLASSES)
    first = np.asarray(Image.open(io.BytesIO(rows.with_format("arrow")[0]["image"][0].as_py()["bytes"])))
    assert first[:2].max() == 0 and first[2:30, 2:30].max() > 200  # a black border around clothing
