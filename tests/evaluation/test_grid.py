import numpy as np
import torch

from guided_diffusers.evaluation.grid import labelled_grid, to_pictures

LABELS_WIDE, GAP, HEADER = 190, 4, 23


def test_column_labels_stand_above_and_the_corner_beside_them():
    picture = np.asarray(
        labelled_grid([to_pictures(torch.ones(2, 1, 32, 32))], ["row"], 32, ["A", ""], "corner")
    )
    header = (picture[: HEADER + GAP] < 128).any(axis=(0, 2))
    first = slice(LABELS_WIDE + GAP, LABELS_WIDE + GAP + 32)
    assert header[:LABELS_WIDE].any() and header[first].any()
    assert not header[first.stop :].any()


def test_colour_floats_and_bytes_become_pictures():
    image = torch.tensor([-2.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert to_pictures(image)[0].getpixel((0, 0)) == (0, 128, 255)
    assert to_pictures(torch.full((1, 1, 2, 2), 7, dtype=torch.uint8))[0].getpixel((1, 1)) == 7
