"""Training of upsamplers: their script in every mode, and that training sees what sampling sees."""

import pytest
import torch
import training_scripts
import yaml
from PIL import Image
from tiny_data import SLICE
from training_scripts import BRIEF, TEXT_MODEL, assert_goes_on_to_the_same_bits, load, read

from guided_diffusers import UpsamplePipeline
from guided_diffusers.models.super_resolution import LOW_RES, area_averaged, scaled_up
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.tasks.upsampler import AugmentationConfig

BLOCKS = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
PLAIN = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
CROSS = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 2,
}
CONFIG = {
    "training": BRIEF,
    "data": {"path": str(SLICE), "resolution": 32, "channels": 1, "caption_column": None},
    "scale": 4,
    "crop": 16,
    "unet": {**BLOCKS, **PLAIN},
    "scheduler_arguments": {"prediction_type": "v_prediction"},
    "drawing": {"split": "train", "images": 4, "num_inference_steps": 2},
}
CAPTIONS = {
    "told": "captions",
    "data": {**CONFIG["data"], "caption_column": "text"},
    "text": {"vocabulary_size": 600, "context_length": 8, "model": TEXT_MODEL},
    "unet": {**BLOCKS, **CROSS},
}
MODES = {
    "pixels": {},
    "captions": CAPTIONS,
    "latents": {**CAPTIONS, "autoencoder": "fashion-32/vae"},
    "classes": {"told": "classes", "label_column": "label", "denoising": {"caption_dropout": 0.2}},
    "without augmentation": {"augmentation": {"max_level": 0, "blur": 0.5}, "crop": None}
    | {"unet": {**BLOCKS, **PLAIN, "patch_size": 2}},
}


@pytest.fixture
def words(tmp_path, tmp_path_factory):
    """The command line of a mode."""

    def of(mode, name="run", *more):
        path, cache = tmp_path / f"{mode}.yaml", tmp_path_factory.getbasetemp() / "cache"
        path.write_text(yaml.safe_dump({**CONFIG, **MODES[mode]}))
        folder = tmp_path / name
        return ["--config", path, "--data.cache_dir", cache, "--output_dir", folder, *more], folder

    return of


@pytest.fixture
def run(words):
    def run_mode(mode, name="run", *more):
        line, folder = words(mode, name, *more)
        training_scripts.train(load("train_upsampler"), *line)
        return folder

    return run_mode


def task_of(words, mode, *more):
    script = load("train_upsampler")
    return script.make_task(read(script, *words(mode, "run", *more)[0]), torch.device("cpu"))


@pytest.mark.parametrize("mode", MODES)
def test_a_run_ends_in_a_pipeline_that_makes_pictures_large(run, mode):
    folder = run(mode)
    pipeline = UpsamplePipeline.from_pretrained(folder / "final")
    pipeline.set_progress_bar_config(disable=True)
    told = {"class_labels": 2} if mode == "classes" else {}
    told = {"prompt": "a bag"} if mode in ("captions", "latents") else told
    images = pipeline(torch.rand(1, 1, 8, 12), num_inference_steps=2, output_type="pt", **told).images
    assert images.shape == (1, 1, 32, 48) and images.isfinite().all()
    config = pipeline.config
    assert (config.scale, config.image_size, config.num_inference_steps) == (4, 32, 2)
    assert (pipeline.augmentation is None) == (mode == "without augmentation")
    assert pipeline.unet.config.get("patch_size") == (2 if mode == "without augmentation" else None)
    assert config.augmentation_level == (0 if mode == "without augmentation" else 50)
    if mode != "classes":
        assert Image.open(folder / "validation" / "000000000048.png").size == (128, 32)
    else:
        assert pipeline.takes_class and pipeline.channels.told and config.num_classes == 10


@pytest.mark.parametrize("mode", ["pixels", "latents"])
def test_the_same_command_goes_on_to_the_same_bits(run, mode):
    more = ("--num_images", "32", "--validate_every_images", "0")
    assert_goes_on_to_the_same_bits(lambda name, *words: run(mode, name, *more, *words), 16)


def test_a_square_is_the_one_of_the_whole_picture(words):
    """What the network sees beside a square is, to rounding, the square of what it sees of the whole."""
    task = task_of(words, "pixels", "--augmentation.max_level", "0", "--unet.class_embed_type", "null")
    indices, positions = list(range(12)), list(range(100, 112))
    batch = task.batch(indices, positions)
    data = ImageTextDataset(DataConfig(**CONFIG["data"]))
    whole = data.pixels(indices)
    seen = task.condition.inputs(batch["condition"])[LOW_RES]
    large = scaled_up(area_averaged(whole, 4), (32, 32))
    corners = task.images.corners(positions)
    assert len(set(corners)) > 5 and all(row % 4 == column % 4 == 0 for row, column in corners)
    for number, (row, column) in enumerate(corners):
        place = (number, slice(None), slice(row, row + 16), slice(column, column + 16))
        assert torch.equal(batch["images"][number], whole[place])
        torch.testing.assert_close(seen[number], large[place], atol=1e-6, rtol=0)


def test_levels_are_uniform_and_noise_is_of_their_size(words):
    task = task_of(words, "pixels", "--augmentation.max_level", "3")
    rows = task.condition.rows([0] * 400, list(range(400)), 0)
    counts = torch.bincount(rows["level"])
    assert len(counts) == 4 and counts.min() > 70
    plain = task.condition.crops.small_squares(task.condition.crops.small([0] * 400), list(range(400)))
    difference = (rows[LOW_RES] - plain).flatten(1)
    assert not difference[rows["level"] == 0].any()
    level = task.condition.augmentation.at(torch.tensor([3]))
    noise = rows[LOW_RES] - level.alpha.float() * plain
    assert abs(noise[rows["level"] == 3].std() / level.sigma - 1) < 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--crop", "18"], "crop is 18; allowed: a multiple of 4, at most 32"),
        (["--crop", "64"], "crop is 64"),
        (["--data.resolution", "30"], "data.resolution is 30"),
        (["--unet.in_channels", "4"], "unet has in_channels 4"),
        (["--augmentation.max_level", "0", "--unet.class_embed_type", "timestep"], "class_embed_type"),
        (["--augmentation.max_level", "2000"], "max_noise_level is 2000"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(words, more, message):
    with pytest.raises(ValueError, match=message):
        task_of(words, "pixels", *more)


def test_levels_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="max_level is -1"):
        AugmentationConfig(max_level=-1)
    with pytest.raises(ValueError, match="blur is 2"):
        AugmentationConfig(blur=2)
