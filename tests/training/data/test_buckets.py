"""Pictures of several shapes: which size each gets, and batches of one."""

from collections import Counter

import numpy as np
import pytest
import torch
import training_scripts
from PIL import Image
from tiny import tiny_autoencoder
from training_scripts import TRAINING, assert_goes_on_to_the_same_bits, load

from guided_diffusers.training.data.buckets import BucketedData, BucketOrder, bucket_sizes, images_of, nearest
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset

SIZES = ((8, 16), (16, 16), (16, 8))
SHAPES = [(16, 16)] * 5 + [(12, 24)] * 6 + [(40, 20)] * 3


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Pictures of (height, width), the left half dark and the right half bright; one is stored turned."""
    folder = tmp_path_factory.mktemp("shapes")
    lines = []
    for number, (height, width) in enumerate(SHAPES):
        pixels = np.full((height, width), 20 + number, np.uint8)
        pixels[:, width // 2 :] = 220
        image, exif = Image.fromarray(pixels), Image.Exif()
        if number == len(SHAPES) - 1:
            image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
        image.save(folder / f"{number:02d}.png", exif=exif)
        lines.append(f'{{"file_name": "{number:02d}.png", "text": "picture {number}"}}\n')
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def test_sizes_are_multiples_of_the_step_and_of_at_most_as_many_pixels():
    sizes = bucket_sizes(512, 64)
    assert {(512, 512), (640, 384), (384, 640)} <= set(sizes)
    assert all(h % 64 == w % 64 == 0 and h * w <= 512**2 and max(h, w) <= 2 * min(h, w) for h, w in sizes)
    assert all((w, h) in sizes for h, w in sizes) and bucket_sizes(16, 32) == []
    assert sizes[nearest(sizes, 480, 640)] == (448, 576) and sizes[nearest(sizes, 100, 5000)] == (384, 640)


def test_rows_are_those_of_the_nearest_size_as_a_data_set_of_that_size_has_them(shapes, tmp_path):
    config = DataConfig(path=str(shapes), channels=1, buckets=SIZES, cache_dir=str(tmp_path))
    data = BucketedData(config)
    assert [(bucket.shape[1:], len(bucket)) for bucket in data.buckets] == [
        ((8, 16), 6),
        ((16, 16), 5),
        ((16, 8), 3),
    ]
    images = images_of(data, None, batch_size=2)
    wide, tall = images.at([0, 1], [0, 1], None), images.at([12, 13], [0, 1], None)
    assert wide.shape == (2, 1, 8, 16) and tall.shape == (2, 1, 16, 8) == (2, *images.shape_of([12, 13]))
    for pixels in (wide, tall):  # nothing but the middle of a side is cut, and turned pictures are turned
        half = pixels.shape[-1] // 2
        assert pixels[..., : half - 2].max() < -0.6 and pixels[..., half + 2 :].min() > 0.6
    assert data.captions([0, 13], [0, 1]) == ["picture 5", "picture 13"] and len(data.all_captions()) == 14
    with pytest.raises(ValueError, match="allowed: those of one bucket"):
        images.at([0, 13], [0, 1], None)
    with pytest.raises(ValueError, match=r"data.buckets is \(\(8, 16\).*allowed: null where this is trained"):
        ImageTextDataset(config)
    with pytest.raises(ValueError, match=r"data.buckets is 20; allowed: a step"):
        BucketedData(DataConfig(path=str(shapes), channels=1, resolution=16, buckets=20))


def test_a_batch_is_of_one_bucket_and_an_epoch_has_every_row():
    sizes, batch = (7, 12, 3), 4
    order, firsts = BucketOrder(sizes, batch), (0, 7, 19, 22)
    epoch = batch * (2 + 3 + 1)
    rows = order(5, range(3 * epoch), 22)
    bucket = np.searchsorted(firsts, rows, side="right").reshape(-1, batch)
    assert (bucket == bucket[:, :1]).all()
    for start in range(0, len(rows), epoch):
        times = Counter(rows[start : start + epoch])
        assert set(times) == set(range(22)) and max(times.values()) <= 2
    assert rows[:epoch] != rows[epoch : 2 * epoch] and rows != order(6, range(3 * epoch), 22)
    # of two processes, and of one that goes on: a function of the position alone
    assert [order(5, [position], 22)[0] for position in (5, 70, 11)] == [rows[5], rows[70], rows[11]]


def test_a_run_in_buckets_of_latents_goes_on_to_the_same_bits(shapes, tiny_folder, tmp_path):
    def run(name, *more):
        config = TRAINING / "configs" / "tiny_text_to_image.yaml"
        given = {
            "config": config,
            "data.path": shapes,
            "cache_dir": tmp_path / "cache",
            "output_dir": tmp_path / name,
        }
        given |= {
            "autoencoder": tiny_folder / "vae",
            "buckets": str(list(map(list, SIZES))),
            "batch_size": 4,
            "num_images": 16,
        }
        given |= {"checkpoint_every_images": 4, "validate_every_images": 0}
        words = [word for key, value in given.items() for word in (f"--{key}", value)]
        training_scripts.train(load("train_text_to_image"), *words, *more)
        return tmp_path / name

    assert_goes_on_to_the_same_bits(run, 8)
    cached = {np.load(path).shape[3:] for path in (tmp_path / "cache").glob("latents-*.npy")}
    assert cached == {(4, 8), (8, 8), (8, 4)}


def test_sizes_that_an_autoencoder_cannot_make_smaller_are_named(shapes, tmp_path):
    config = DataConfig(path=str(shapes), channels=1, buckets=((15, 15),), cache_dir=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"data.buckets is \[15, 15\]; allowed: sides that are multiples of 2"
    ):
        images_of(BucketedData(config), tiny_autoencoder(), batch_size=2)
    assert torch.is_tensor(images_of(BucketedData(config), None, 2).at([0], [0], None))
