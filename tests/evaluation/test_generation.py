"""Generation in chunks: resumable, split over processes, never half an image."""

from dataclasses import dataclass

import pytest
import torch

from guided_diffusers.evaluation.generation import generate_images, generated_images


@dataclass(frozen=True)
class Process:
    process_index: int
    num_processes: int

    def wait_for_everyone(self):
        pass


def draw(indices):
    """Image i is filled with i."""
    return torch.tensor(list(indices), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 5).clone()


def run(folder, count=10, drawing=draw, **kwargs):
    generate_images(drawing, count, folder, settings={"what": "test"}, batch_size=3, **kwargs)
    return generated_images(folder, count)


@pytest.mark.parametrize("image_format", ["npz", "png"])
def test_images_come_back_in_order(tmp_path, image_format):
    assert torch.equal(run(tmp_path, image_format=image_format), draw(range(10)))


def test_processes_share_the_chunks_and_make_the_same_images(tmp_path):
    drawn = []

    def counting(indices):
        drawn.append(list(indices))
        return draw(indices)

    for rank in range(2):
        arguments = {"settings": {"what": "test"}, "batch_size": 3, "processes": Process(rank, 2)}
        generate_images(counting, 10, tmp_path, **arguments)
    assert sorted(drawn) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert torch.equal(generated_images(tmp_path, 10), draw(range(10)))


@pytest.mark.parametrize("image_format", ["npz", "png"])
def test_what_was_killed_goes_on_where_it_was(tmp_path, image_format):
    def dying(indices):
        if 6 in indices:
            raise KeyboardInterrupt
        return draw(indices)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, drawing=dying, image_format=image_format)
    drawn = []

    def counting(indices):
        drawn.extend(indices)
        return draw(indices)

    assert torch.equal(run(tmp_path, drawing=counting, image_format=image_format), draw(range(10)))
    assert drawn == [6, 7, 8, 9]


def test_a_larger_count_goes_on_with_the_images_that_are_there(tmp_path):
    run(tmp_path, count=4)
    assert torch.equal(run(tmp_path, count=11), draw(range(11)))
    assert torch.equal(generated_images(tmp_path, 5), draw(range(5)))


def test_images_of_other_settings_are_not_mixed(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="another what: 'test', now 'other'"):
        generate_images(draw, 10, tmp_path, settings={"what": "other"}, batch_size=3)


def test_a_drawer_that_draws_the_wrong_thing_is_told(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        run(tmp_path, drawing=lambda indices: torch.zeros(len(indices), 1, 4, 4))
