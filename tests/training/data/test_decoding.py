"""The crop before resizing: what was padded comes back to the bit; and other columns of the data."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from tiny_data import fashion, png

from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.data.decoding import decode_image

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)])
def test_a_padded_image_comes_back_to_the_bit(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    padded = np.pad(pixels, [(2, 2), (2, 2), *[(0, 0)] * (len(shape) - 2)])
    decoded = decode_image(png(padded), 28, 3 if len(shape) == 3 else 1, crop=28)
    assert np.array_equal(decoded.transpose(1, 2, 0).reshape(shape), pixels)


def test_what_is_cropped_is_then_resized():
    pixels = np.zeros((32, 32), np.uint8)
    pixels[8:24, 8:24] = 200
    assert (decode_image(png(pixels), 8, 1, crop=16) == 200).all()


def test_an_image_smaller_than_the_crop_is_named(tmp_path):
    with pytest.raises(ValueError, match="row 0 .* 32x32, which is less than crop = 40"):
        fashion(tmp_path, crop=40)
    with pytest.raises(ValueError, match="crop is 0"):
        DataConfig(path="anything", crop=0)


def test_a_crop_is_decoded_apart_and_none_leaves_old_caches(tmp_path):
    whole, cut = fashion(tmp_path), fashion(tmp_path, crop=28, resolution=28)
    assert cut.shape == (1, 28, 28)
    assert np.array_equal(cut.pixels(range(64)), whole.pixels(range(64))[..., 2:-2, 2:-2])
    resized = fashion(tmp_path, resolution=28)
    assert resized.fingerprint != cut.fingerprint
    assert not np.array_equal(resized.pixels([0]), cut.pixels([0]))


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_cropped_images_are_the_published_ones(tmp_path):
    data = gzip.decompress((DEBIAN / "train-images-idx3-ubyte.gz").read_bytes())
    published = np.frombuffer(data, np.uint8, offset=16, count=64 * 784).reshape(64, 1, 28, 28)
    pixels = fashion(tmp_path, crop=28, resolution=28).pixels(range(64))
    assert np.array_equal(((pixels + 1) * 127.5).round().numpy().astype(np.uint8), published)


def test_another_column_by_row(tmp_path):
    data = fashion(tmp_path, mirror=True)
    labels = data.column("label")
    assert len(labels) == len(data) == 128 and labels[:64] == labels[64:] and set(labels) == set(range(10))
    with pytest.raises(ValueError, match="column of .* is 'class'; allowed: .*'label'"):
        data.column("class")
