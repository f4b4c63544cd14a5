"""Figures at validation: of the same rows and noise each time, as evaluation has them; pictures a prompt."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from processes import by_two, forked
from tiny_data import classed
from training_scripts import load, read, records, train

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


def test_processes_share_the_drawing_and_the_first_one_has_it_all(arguments, images, tmp_path, judge):
    script = load("train_text_to_image")
    words = ["--measures.features", str(judge), "--measures.images", "20"]
    words += ["--measures.split", "train+train"]  # 40 rows: more than are drawn at once
    words += ["--drawing.prompts", "[a dark square, 'A <bright> square']", "--drawing.images_per_prompt", "3"]

    def validate(rank: int, name: str = "two") -> dict[str, torch.Tensor]:
        config = read(script, *arguments(tmp_path / "run", *words))
        task, rows = script.make_task(config, torch.device("cpu")), []
        unet = task.modules["unet"].eval()
        unet.register_forward_hook(lambda module, inputs, output: rows.append(len(output[0])))
        figures = task.validate(0, task.modules, tmp_path / name)
        return {"rows": torch.tensor(sum(rows)), "figures": torch.tensor(list(figures.values()))}

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = validate(0, "one"), by_two(validate, tmp_path)
    pictures = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(pictures) == 3 and pictures == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in pictures:
        ours, theirs = (np.asarray(Image.open(tmp_path / run / name), int) for run in ("one", "two"))
        assert np.abs(ours - theirs).max() <= 1
    assert sum(part["rows"] for part in two) == one["rows"] and two[1]["rows"] < two[0]["rows"] < one["rows"]
    torch.testing.assert_close(two[0]["figures"], one["figures"], rtol=1e-3, atol=1e-6)
    assert not len(two[1]["figures"])


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "parameters"])
def test_runs_of_two_processes_validate_as_one_does(arguments, tmp_path, judge, sharding):
    words = ["--measures.images", "6", "--measures.split", "train", "--measures.features", str(judge)]
    words += ["--num_images", "32", "--validate_every_images", "16", "--learning_rate", "1e-4"]
    words += ["--mixed_precision", "no", "--channels_last", "false", "--timeout_minutes", "1"]
    found = {}
    for count, kind in ((1, "none"), (2, sharding)):
        line = arguments(tmp_path / str(count), *words, "--sharding", kind)
        assert forked(count, lambda rank, line=line: train(load("train_text_to_image"), *line)) == [0] * count
        logged = records(tmp_path / str(count))
        pictures = sorted(path.name for path in (tmp_path / str(count) / "validation").iterdir())
        found[count] = ([record["validation"] for record in logged if "validation" in record], pictures)
    (one, names), (two, others) = found[1], found[2]
    assert len(one) == len(two) == 2 and names == others
    assert all(
        ours == pytest.approx(theirs, rel=1e-2, abs=1e-5) for ours, theirs in zip(one, two, strict=True)
    )


def test_what_a_figure_needs_is_asked_for_by_name(images, judge):
    data = DataConfig(path=str(images), resolution=16, channels=1, caption_column=None)
    assert make_measures(MeasuresConfig(), data, 0) is None
    for wrong, name in (
        ({"judge": str(judge)}, "measures.label_column"),
        ({"clip": "x"}, "data.caption_column"),
    ):
        with pytest.raises(ValueError, match=f"{name} is None; allowed: given, with measures"):
            make_measures(MeasuresConfig(images=4, **wrong), data, 0)


@pytest.mark.parametrize("way", [{"stream": True}, {"buckets": 8}], ids=str)
def test_rows_are_the_same_however_training_reads_them(way, judge, tmp_path):
    config = MeasuresConfig(images=4, split="train", features=str(judge))
    data = DataConfig(path=str(classed(tmp_path / "data", "abcd")), resolution=16, channels=1)
    data = replace(data, caption_column=None, cache_dir=str(tmp_path / "cache"))
    kept, other = (make_measures(config, each, 0).real for each in (data, replace(data, **way)))
    assert torch.equal(kept.sort(dim=0).values, other.sort(dim=0).values) and len(kept) == 4
