"""What accelerate's trackers really get: their own files, read back."""

import pytest
from PIL import Image

from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.trainer import make_accelerator, train


@pytest.fixture
def tracked(denoising, tmp_path):
    """A run that reports to a tracker and draws a picture at validation; its folder."""

    def run(tracker):
        class Drawing(denoising):
            def validate(self, images_seen, modules, folder):
                Image.new("RGB", (4, 2), "red").save(folder / f"{images_seen:012d}-00-a-fox.png")
                return super().validate(images_seen, modules, folder)

        config = TrainingConfig(
            output_dir=str(tmp_path / "run"),
            num_images=16,
            batch_size=8,
            log_every_images=8,
            validate_every_images=16,
            report_to=(tracker,),
        )
        train(Drawing(config), config, accelerator=make_accelerator(config))
        return tmp_path / "run"

    return run


def test_tensorboard_has_scalars_and_pictures(tracked):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tracked("tensorboard")
    (file,) = [path for path in folder.rglob("events.out.*") if path.parent == folder / "run"]
    events = EventAccumulator(str(file))
    events.Reload()
    assert [point.step for point in events.Scalars("unet")] == [8, 16]
    assert events.Scalars("validation/answer")[0].value == 42
    (picture,) = events.Images("validation/00-a-fox")
    assert (picture.step, picture.width, picture.height) == (16, 4, 2)


@pytest.mark.slow
def test_weights_and_biases_offline_has_scalars_and_pictures(tracked, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracked("wandb")
    (file,) = tmp_path.rglob("run-*.wandb")
    assert all(word in file.read_bytes() for word in (b"unet_gradient_norm", b"validation/00-a-fox"))
    assert len(list(tmp_path.rglob("media/images/validation/*.png"))) == 1
