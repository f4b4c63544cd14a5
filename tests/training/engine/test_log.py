"""The log: means over samples and bins, lines that stay JSON, records dropped when a run goes back."""

import json

import torch

from guided_diffusers.training.engine.log import ByBin, JsonLines, Meter, flatten, in_words


def test_means_are_over_samples_since_the_last_reading():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "each": torch.tensor([1.0, 2.0, 3.0]), "plain": 4.0})
    meter.add({"loss": torch.tensor(2.0), "each": torch.tensor([6.0])})
    assert meter.read() == {"loss": 1.5, "each": 3.0, "plain": 4.0}
    meter.add({"loss": torch.tensor(5.0)})
    assert meter.read() == {"loss": 5.0}


def test_bins_have_means_of_their_own_and_an_empty_one_has_none():
    meter = Meter()
    meter.add({"by": ByBin(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3)})
    meter.add({"by": ByBin(torch.tensor([8.0]), torch.tensor([0]), 3)})
    assert meter.read() == {"by": [4.0, None, 5.0]}


def test_sums_are_added_up_over_processes_before_dividing():
    meter = Meter()
    meter.add({"each": torch.tensor([1.0, 3.0])})
    other_process = torch.tensor([8.0, 2.0])  # a sum of 8 over 2 samples
    assert meter.read(lambda sums: sums + other_process) == {"each": 3.0}


def test_every_line_is_json_even_when_a_value_is_not_finite(tmp_path):
    lines = JsonLines(tmp_path / "log.jsonl")
    lines.write(8, {"norm": float("inf"), "bins": [float("nan"), 1.0], "rate": {"net": 0.5}})
    record = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=lambda word: 1 / 0)
    assert record["norm"] is None and record["bins"] == [None, 1.0] and record["images"] == 8


def test_going_back_drops_later_records_and_a_line_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"images": 8, "seconds": 100.0}\n{"images": 16, "seconds": 200.0}\n{"images": 24, "sec')
    lines = JsonLines(path, images_seen=8)
    lines.write(16, {})
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["images"] == 8 and second["images"] == 16
    assert 100.0 <= second["seconds"] < 200.0  # wall time goes on from the record that was kept


def test_flat_names_for_trackers():
    record = {"loss": 1.0, "by": [2.0, None], "rate": {"net": 0.5}}
    assert flatten(record) == {"loss": 1.0, "by/0": 2.0, "rate/net": 0.5}


def test_a_record_in_words_says_what_is_left():
    record = {
        "loss": 0.9029555805,
        "by": [1.0, None],
        "learning_rate": {"unet": 1e-3},
        "images_per_second": 50.0,
    }
    words = "loss 0.903, by/0 1, learning_rate/unet 0.001, images_per_second 50"
    assert in_words(record, 1000, 7000, 50.0) == f"1,000 of 7,000 images, 2 min left: {words}"
    assert in_words({}, 6000, 7000, 50.0) == "6,000 of 7,000 images, 20 s left: "
    assert in_words({}, 0, 7000, 0.0) == "0 of 7,000 images, inf min left: "
