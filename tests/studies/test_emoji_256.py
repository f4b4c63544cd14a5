"""The study of emoji-256: captions that differ from a scene's in one matter."""

import pytest
import torch


@pytest.fixture
def measure(load_script):
    return load_script("studies/emoji_256/measure")


@pytest.mark.parametrize(
    ("caption", "matter", "others"),
    [
        (
            "a cat to the left of a tree, noto emoji",
            "place",
            [f"a cat {place} a tree, noto emoji" for place in ("to the right of", "above", "below")],
        ),
        ("two apples, twemoji", "count", ["three apples, twemoji", "four apples, twemoji"]),
        ("a big fox above a small cup, openmoji", "size", ["a small fox above a small cup, openmoji"]),
        ("a twofold thing, twemoji", "count", None),
    ],
)
def test_what_is_exchanged_in_a_caption(measure, caption, matter, others):
    expected = [] if others is None else [caption, *others]
    assert measure.exchanged(caption, measure.OTHERS[matter]) == expected


def test_pictures_are_averaged_by_area(measure):
    images = torch.tensor([[0, 100, 50, 50], [0, 100, 150, 150]], dtype=torch.uint8)[None, None]
    torch.testing.assert_close(measure.averaged(images, 2), images.new_tensor([[[[50, 100]]]]))
