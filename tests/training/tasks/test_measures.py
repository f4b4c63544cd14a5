"""Figures at validation: of the same rows and noise each time, as evaluation has them; pictures a prompt."""

import numpy as np
import pytest
import torch
from PIL import Image
from training_scripts import load, records, train

from guided_diffusers import TextToImagePipeline
from guided_diffusers.core.randomness import Stream, generator_for, seed_for
from guided_diffusers.evaluation import JudgeConfig, kernel_distance, save_judge
from guided_diffusers.evaluation.features import extract_features, feature_network
from guided_diffusers.evaluation.judge import Judge
from guided_diffusers.training.data.dataset import DataConfig
from guided_diffusers.training.tasks.measures import MeasuresConfig, make_measures


@pytest.fixture
def judge(tmp_path):
    """The file of a classifier of two classes, of random weights."""
    torch.manual_seed(0)
    save_judge(Judge(JudgeConfig(in_channels=1, image_size=16, num_classes=2, width=4)), tmp_path / "judge")
    return tmp_path / "judge"


def test_a_run_with_prompts_measures_and_draws_each(arguments, images, tmp_path, judge):
    words = ["--measures.images", "6", "--measures.split", "train", "--measures.features", str(judge)]
    prompts = ["--drawing.prompts", "[a dark square, 'A <bright> square']", "--num_images", "32"]
    folder = tmp_path / "run"
    train(load("train_text_to_image"), *arguments(folder, *words, *prompts, "--validate_every_images", "32"))
    figures = {k: v for record in records(folder) for k, v in record.get("validation", {}).items()}
    names = [f"{32:012d}{kind}.png" for kind in ("-00-a-dark-square", "-01-a-bright-square", "")]
    assert [path.name for path in sorted((folder / "validation").iterdir())] == names
    rows = np.concatenate([np.asarray(Image.open(folder / "validation" / name)) for name in names[:2]])
    assert np.array_equal(rows, np.asarray(Image.open(folder / "validation" / names[2])))

    pipeline = TextToImagePipeline.from_pretrained(folder / "final")  # the averaged weights of 32 images
    pipeline.set_progress_bar_config(disable=True)
    seed = seed_for(0, Stream.PROMPTS_DRAWN)
    captions = ["a dark square", "a bright square"] * 3
    options = {"num_inference_steps": 2, "generator": [generator_for(seed, row) for row in range(6)]}
    drawn = pipeline(captions, output_type="pt", **options).images
    network = feature_network(judge)
    measures = make_measures(
        MeasuresConfig(images=6, split="train", features=str(judge)),
        DataConfig(
            path=arguments(folder)[arguments(folder).index("--data.path") + 1], resolution=16, channels=1
        ),
        seed=0,
    )
    expected = kernel_distance(measures.real, extract_features(network, (255 * drawn).round().byte()))
    assert figures == {"KD-judge": pytest.approx(expected, rel=1e-3, abs=1e-6)}


def test_what_a_figure_needs_is_asked_for_by_name(images, judge):
    data = DataConfig(path=str(images), resolution=16, channels=1, caption_column=None)
    assert make_measures(MeasuresConfig(), data, 0) is None
    for wrong, name in (
        ({"judge": str(judge)}, "measures.label_column"),
        ({"clip": "x"}, "data.caption_column"),
    ):
        with pytest.raises(ValueError, match=f"{name} is None; allowed: given, with measures"):
            make_measures(MeasuresConfig(images=4, **wrong), data, 0)
