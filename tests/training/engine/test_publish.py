"""Pushing while training where there is no Hub: a line for each failure, and the same weights."""

import errno
import os
import shutil

import torch

from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.publish import Publisher


def test_a_run_without_the_hub_says_so_and_ends_with_the_same_weights(run, caplog):
    quiet, _ = run("quiet")
    task, folder = run("pushing", export_every_images=80, push_to_hub="alice/run")
    for name, weight in quiet.modules["unet"].state_dict().items():
        assert torch.equal(weight, task.modules["unet"].state_dict()[name])
    lines = [record.getMessage() for record in caplog.records if "push" in record.getMessage()]
    assert any("push to alice/run after 160 images failed" in line and "offline" in line for line in lines)
    assert f"again: guided-diffusers push {folder / 'final'} alice/run" in lines[-1]
    assert all("\n" not in line for line in lines)
    assert not (folder / ".publishing").exists()


def test_a_newer_export_takes_the_place_of_one_that_waits_and_both_are_copies(tmp_path):
    config = TrainingConfig(output_dir=str(tmp_path), push_to_hub="alice/run", push_wait_seconds=30)
    publisher = Publisher(config)
    export = tmp_path / "final"
    export.mkdir()
    (export / "config.json").write_text("{}")
    with publisher._changed:  # the thread can take nothing
        for images in (8, 16, 24):
            publisher.offer(export, images)
        assert [path.name for path in publisher.staging.iterdir()] == ["24"]
        assert (publisher.staging / "24" / "config.json").samefile(export / "config.json")
    assert publisher.finish() is False
    assert not publisher.staging.exists()


def test_push_every_counts_exports(run, caplog):
    run("some", export_every_images=16, push_every=3, push_to_hub="alice/run", num_images=80)
    images = [record.args[1] for record in caplog.records if record.msg.startswith("push to")]
    assert set(images) <= {"48 images", "80 images"} and images[-1] == "80 images"


def test_an_export_that_cannot_be_copied_is_not_pushed_and_does_not_stop_training(run, caplog, monkeypatch):
    def full(source, target, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "copytree", full)
    _, folder = run("pushing", num_images=16, push_to_hub="alice/run")
    assert (folder / "final").exists() and not (folder / ".publishing").exists()
    (line,) = [record.getMessage() for record in caplog.records if "no push" in record.getMessage()]
    assert "No space left on device" in line and "\n" not in line
