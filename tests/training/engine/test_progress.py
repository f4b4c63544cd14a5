"""What a terminal shows of a run: an early line, a bar, and lines that the bar does not tear."""

import io
import logging

import pytest
from tiny_data import Terminal
from training_scripts import records

from guided_diffusers.training.engine import progress

SPEED = "images_per_second"


def lines(caplog):
    return [text for text in caplog.messages if " of 160 images, " in text]


def test_the_first_line_does_not_wait_for_the_first_record(run, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "EARLY_SECONDS", 0.0)
    _, folder = run(log_every_images=100_000)
    first, last = lines(caplog)
    assert first.startswith("8 of 160 images, ") and " left: images_per_second " in first
    assert last.startswith("160 of 160 images, ")
    assert [record["images"] for record in records(folder) if SPEED in record] == [160]


def test_a_record_that_comes_first_is_the_first_line(run, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "EARLY_SECONDS", 0.0)
    run(log_every_images=8)
    assert [text.split(" of ")[0] for text in lines(caplog)] == [str(images) for images in range(8, 161, 8)]


def test_a_quick_run_has_its_records_alone(run, caplog):
    caplog.set_level("INFO")
    run(log_every_images=80)
    assert [text.split(" of ")[0] for text in lines(caplog)] == ["80", "160"]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO], ids=["terminal", "file"])
def test_a_terminal_has_a_bar_and_whole_lines(run, monkeypatch, stream):
    shown = stream()
    monkeypatch.setattr("sys.stderr", shown)
    handler, root = logging.StreamHandler(shown), logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(root, "level", logging.INFO)
    run(stop_at_images=40)
    run(log_every_images=40)
    text = shown.getvalue()
    assert ("160/160" in text) == (stream is Terminal) == ("\r" in text)
    for images in (40, 80, 120, 160):
        parts = text.replace("\n", "\r").split("\r")
        (whole,) = [part for part in parts if part.startswith(f"{images} of 160")]
        assert f"{whole}\n" in text
    assert root.handlers == [handler]
