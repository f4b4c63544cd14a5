"""What training's tests share: a tiny real task for the engine, and tiny text-to-image runs of the script."""

import pytest
import torch
from tiny import shallow_unet
from tiny_data import captioned
from training_scripts import TRAINING, load

from guided_diffusers.core.randomness import randn_for
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.log import ByBin
from guided_diffusers.training.engine.trainer import make_optimizer, train


class Denoising:
    """Thirty-six random images; noise that depends on the position."""

    num_samples = 36
    averaged = ("unet",)

    def __init__(self, config, dropout=0.1, crash_at=None):
        torch.manual_seed(config.seed)
        unet = shallow_unet(dropout=dropout)
        self.modules = {"unet": unet}
        self.optimizers = {"unet": make_optimizer(config, unet.parameters())}
        self.crash_at = crash_at
        self.seen = []

    def batch(self, indices, positions):
        self.seen.append((indices, positions))
        if self.crash_at in positions:
            raise RuntimeError("a crash")
        return {"x": randn_for(1, indices, (1, 8, 8)), "noise": 0.5 * randn_for(2, positions, (1, 8, 8))}

    def losses(self, batch):
        noisy = batch["x"] + batch["noise"]
        output = self.modules["unet"](noisy, torch.zeros(len(noisy)), return_dict=False)[0]
        each = (output - batch["noise"]).square().flatten(1).mean(1)
        yield "unet", each.mean(), {"parity": ByBin(each.detach(), torch.arange(len(each)) % 2, 2)}

    def validate(self, images_seen, modules, folder):
        (folder / f"{images_seen}.txt").write_text("drawn")
        return {"answer": 42.0}

    def save(self, folder, modules):
        modules["unet"].save_pretrained(folder / "unet")


@pytest.fixture
def denoising():
    """The task's class."""
    return Denoising


@pytest.fixture
def run(tmp_path):
    """Train the task in a folder of the test's, with a short configuration; gives the task and the folder."""

    def run_task(name="run", crash_at=None, dropout=0.1, **overrides):
        defaults = {
            "output_dir": str(tmp_path / name),
            "num_images": 160,
            "batch_size": 8,
            "warmup_images": 16,
            "ema_half_life_images": 40.0,
            "checkpoint_every_images": 64,
            "validate_every_images": 80,
            "log_every_images": 40,
        }
        config = TrainingConfig(**{**defaults, **overrides})
        task = Denoising(config, dropout, crash_at)
        train(task, config)
        return task, tmp_path / name

    return run_task


@pytest.fixture(scope="module")
def script():
    """train_text_to_image.py as a module."""
    return load("train_text_to_image")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty grey images with a caption each, as an image folder."""
    return captioned(tmp_path_factory.mktemp("images"), ["a dark square", "a bright square"] * 10)


@pytest.fixture
def arguments(images, tiny_folder, tmp_path_factory):
    """The command line of a tiny text-to-image run in a folder."""
    cache = tmp_path_factory.getbasetemp() / "cache"

    def command_line(folder, *more):
        paths = {
            "config": TRAINING / "configs" / "tiny_text_to_image.yaml",
            "data.path": images,
            "data.cache_dir": cache,
            "autoencoder": tiny_folder / "vae",
            "output_dir": folder,
        }
        return [word for name, value in paths.items() for word in (f"--{name}", str(value))] + list(more)

    return command_line
