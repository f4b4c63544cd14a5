"""`guided-diffusers evaluate` and `sweep`, in this process: other people's images, and our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tiny import tiny_unet
from tiny_data import SLICE, small_slice

from guided_diffusers.evaluation import Judge, JudgeConfig, save_judge

pytestmark = pytest.mark.filterwarnings("ignore:.*biased upwards")


@pytest.fixture
def judge(tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDED_DIFFUSERS_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_judge(Judge(JudgeConfig(image_size=16, width=4)).eval(), tmp_path / "judge.safetensors")
    return tmp_path / "judge.safetensors"


def folder_of(path, count, size, seed):
    path.mkdir()
    pixels = torch.randint(0, 256, (count, size, size), generator=torch.Generator().manual_seed(seed))
    for number, image in enumerate(pixels.to(torch.uint8)):
        Image.fromarray(image.numpy()).save(path / f"{number:03d}.png")
    return path


def test_pngs_of_another_model_against_real_pngs(run, tmp_path, judge):
    theirs, real = folder_of(tmp_path / "theirs", 20, 16, 0), folder_of(tmp_path / "real", 30, 16, 1)
    code, output, _ = run("evaluate", theirs, "--real", real, "--features", judge, "--json")
    assert code == 0
    results = json.loads(output)
    assert (results["images"], results["real_images"]) == (20, 30)
    assert {"FD-judge", "KD-judge", "precision", "recall", "density", "coverage"} == set(results["figures"])
    again = json.loads(run("evaluate", theirs, "--real", real, "--features", judge, "--json")[1])
    assert again == results  # from the cached reference


def test_copies_of_training_images_are_found_and_shown(run, tmp_path, judge):
    theirs, real = folder_of(tmp_path / "theirs", 20, 16, 0), folder_of(tmp_path / "real", 30, 16, 1)
    picture = tmp_path / "pairs.png"
    arguments = ("--features", judge, "--training", theirs, "--picture", picture, "--json")
    figures = json.loads(run("evaluate", theirs, "--real", real, *arguments)[1])["figures"]
    assert figures["copies_of_training_images"]["value"] == 1
    assert figures["nearest_training_image_ratio"]["value"] == 0
    assert Image.open(picture).width > 100


def test_a_checkpoint_is_drawn_and_measured(run, tmp_path, tiny_folder, judge, small):
    arguments = ("--real", small, "--checkpoint", tiny_folder, "--num-images", 8, "--steps", 2)
    options = ("--features", judge, "--judge", judge, "--device", "cpu", "--format", "png", "--json")
    code, output, errors = run("evaluate", tmp_path / "drawn", *arguments, *options)
    assert code == 0, errors
    results = json.loads(output)
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 8
    assert {"agreement", "diversity-judge"} <= set(results["figures"])
    assert results["compute"]["forwards"]["unet"] == 4  # two steps, guided
    assert json.loads(run("evaluate", tmp_path / "drawn", *arguments, *options)[1]) == results


@pytest.fixture
def small(tmp_path):
    """The slice of real data at the tiny pipeline's 16 x 16 pixels."""
    return small_slice(tmp_path / "small.parquet")


@pytest.fixture
def sweep(tmp_path, judge, small):
    """Writes the file of a sweep of a checkpoint: eight images in two steps, unless told otherwise."""

    def write(checkpoint, arms, **more):
        spec = {"checkpoint": str(checkpoint), "data": str(small), "features": str(judge), "images": 8}
        spec = {**spec, "steps": [2], "arms": arms, **more}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        return tmp_path / "sweep.yaml"

    return write


def test_a_sweep_runs_and_its_winner_is_adopted(run, tmp_path, tiny_folder, judge, sweep):
    checkpoint = shutil.copytree(tiny_folder, tmp_path / "checkpoint")
    arms = {
        "plain": {"guidance": [{"term": "ClassifierFreeGuidance"}], "scales": [1.5, 2]},
        "zero": {"guidance": [{"term": "CFGZeroStar"}], "scales": [2]},
    }
    finals = {"baseline": "plain", "arms": 1, "steps": [2], "images": 10}
    file = sweep(checkpoint, arms, judge=str(judge), seed_sets=2, resamples=10, finals=finals)
    arguments = ("--output", tmp_path / "sweep", "--device", "cpu", "--adopt", checkpoint)
    code, output, errors = run("sweep", file, *arguments)
    assert code == 0, errors
    assert "1/3 plain 1.5, 2 steps: KD-judge" in output
    code, answer, _ = run("sweep", file, *arguments, "--json")  # nothing is left to do
    assert code == 0 and answer.startswith("{") and '"verdict"' in json.dumps(json.loads(answer))
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    index = json.loads((checkpoint / "model_index.json").read_text())
    assert index["default_guidance"] == results["verdict"]["winner"]["guidance"]


def image_pipelines():
    """Checkpoints that draw for no text, in the latents of a 16 x 16 autoencoder, and in pixels."""
    from diffusers import DDPMPipeline, DDPMScheduler
    from tiny import tiny_autoencoder
    from tiny_classifier import tiny_image_unet, tiny_noise_aware_classifier

    from guided_diffusers import ClassifierGuidedPipeline, GuidedDDPMScheduler, ImagePipeline, VAEPipeline

    scheduler, vae, pixels = GuidedDDPMScheduler(), tiny_autoencoder(), tiny_image_unet()
    pixels.register_to_config(sample_size=16)
    classifier = tiny_noise_aware_classifier(scheduler, in_channels=2, num_classes=10)
    return {
        "classifier": ClassifierGuidedPipeline(tiny_image_unet(2), scheduler, classifier, vae),
        "classes": ImagePipeline(tiny_image_unet(2, num_class_embeds=10), scheduler, vae),
        "pixels": DDPMPipeline(pixels, DDPMScheduler()),
        "autoencoder": VAEPipeline(tiny_autoencoder(latent="vector", likelihood="gaussian")),
    }


BY_CLASS = {"by class": {"guidance": [{"term": "ClassifierGuidance"}], "scales": [0, 2]}, "plain": {}}


@pytest.mark.parametrize(
    ("name", "arms", "changes", "answer"),
    [
        ("classifier", BY_CLASS, {}, "2/3 by class 2, 2 steps: KD-judge"),
        ("classes", {"plain": {}}, {}, "1/1 plain, 2 steps: KD-judge"),
        ("classes", BY_CLASS, {}, "arm by class has guidance, and ImagePipeline takes none"),
        ("pixels", {"plain": {}}, {}, "draws for no class that a judge could find: leave it out"),
        ("pixels", {"plain": {}}, {"judge": None}, "1/1 plain, 2 steps: KD-judge"),
        ("autoencoder", {"plain": {}}, {}, "holds the pipeline VAEPipeline"),
    ],
)
def test_a_sweep_of_any_pipeline(run, tmp_path, judge, sweep, name, arms, changes, answer):
    image_pipelines()[name].save_pretrained(tmp_path / "checkpoint")
    more = {"judge": str(judge), "resamples": 10, "schedulers": ["ddpm"], **changes}
    options = ("--output", tmp_path / "sweep", "--device", "cpu")
    code, output, errors = run("sweep", sweep(tmp_path / "checkpoint", arms, **more), *options)
    assert answer in (errors if code else output) and code == (0 if "KD" in answer else 1)
    if code == 0:
        results = json.loads((tmp_path / "sweep" / "results.json").read_text())
        assert all(("agreement" in r["figures"]) == (name != "pixels") for r in results["points"])
        assert [r["compute"]["backwards"] for r in results["points"]] == (
            [{}, {"classifier": 2.0}, {}] if arms is BY_CLASS else [{}]
        )


def test_a_checkpoint_of_classes_is_drawn_for_the_classes_of_the_data(run, tmp_path, judge, small):
    image_pipelines()["classifier"].save_pretrained(tmp_path / "checkpoint")
    arguments = ("--real", small, "--checkpoint", tmp_path / "checkpoint", "--steps", 2)
    options = ("--num-images", 8, "--features", judge, "--judge", judge, "--device", "cpu", "--json")
    code, output, errors = run("evaluate", tmp_path / "drawn", *arguments, *options)
    assert code == 0, errors
    results = json.loads(output)
    assert results["figures"]["agreement"]["count"] == 8
    assert results["compute"]["backwards"] == {"classifier": 2.0}  # the classifier at scale 1, its default


@pytest.mark.parametrize("patches", [False, True])
def test_a_winner_by_autoguidance_is_adopted_with_its_weak_network(tmp_path, tiny_folder, patches):
    from guided_diffusers import PatchedUNet2DConditionModel, TextToImagePipeline
    from guided_diffusers.cli.sweep import _adopt
    from guided_diffusers.guidance import AutoGuidance

    checkpoint = shutil.copytree(tiny_folder, tmp_path / "checkpoint")
    guidance = [{"term": "AutoGuidance", "null": True, "scale": 2.5}]
    results = {"spec": {"weak": "weak_unet"}, "verdict": {"winner": {"guidance": guidance}}}
    with pytest.raises(ValueError, match="bring it in a folder weak_unet"):
        _adopt(results, checkpoint)
    shutil.copytree(checkpoint / "unet", checkpoint / "weak_unet")
    if patches:
        config = {**tiny_unet().config, "patch_size": 2}
        weak = PatchedUNet2DConditionModel(**{n: each for n, each in config.items() if n[0] != "_"})
        weak.save_pretrained(checkpoint / "weak_unet")
    _adopt(results, checkpoint)
    pipeline = TextToImagePipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    term = AutoGuidance(pipeline.weak_denoiser, 2.5, null=True)
    drawn = [
        pipeline("a", generator=torch.Generator().manual_seed(1), output_type="pt", **options).images
        for options in ({"num_inference_steps": 2}, {"num_inference_steps": 2, "guidance": term})
    ]
    assert drawn[0].equal(drawn[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "nothing", "--real", SLICE), "no folder or file of images at nothing"),
        (("evaluate", SLICE, "--real", SLICE, "--features", "resnet"), "features are 'resnet'"),
    ],
)
def test_mistakes_are_one_line(run, judge, arguments, message):
    arguments = arguments if "--features" in arguments else (*arguments, "--features", judge)
    code, _, errors = run(*arguments)
    assert code == 1 and message in errors and len(errors.strip().splitlines()) == 1


LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"],
    "accelerate": [Path(sys.executable).with_name("accelerate"), "launch", "--cpu", "--num_processes"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "launcher"), [("evaluate", "torchrun"), ("sweep", "accelerate"), ("generate", "accelerate")]
)
def test_two_processes_give_the_images_and_figures_of_one(
    tmp_path, tiny_folder, judge, small, sweep, command, launcher
):
    arms = {"plain": {"guidance": [{"term": "ClassifierFreeGuidance"}], "scales": [1, 2, 3]}}
    file = sweep(tiny_folder, arms, images=20, batch_size=6)
    drawing = ["--checkpoint", tiny_folder, "--steps", 2, "--batch-size", 6]
    measuring = ["--real", small, "--num-images", 20, "--features", judge, "--format", "png"]
    outputs, files = [], []
    for processes in (1, 2):
        folder = tmp_path / f"of{processes}"
        words = {
            "evaluate": [folder, *drawing, *measuring, "--json"],
            "sweep": [file, "--output", folder, "--device", "cpu"],
            "generate": ["a bag", "a coat", "--num-images", 10, "--output", folder, *drawing],
        }[command]
        launch = [*LAUNCHERS[launcher], processes, "-m", "guided_diffusers", command, *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(list(map(str, launch)), capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        started = f"torch's launcher starts {processes}" in done.stderr
        assert started == (launcher == "accelerate" and processes > 1)
        outputs.append(done.stdout.replace(str(folder), "FOLDER"))
        files.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")})
    assert files[0] == files[1] and len(files[0]) >= 10
    if command != "sweep":  # which tells each point as it is there
        assert outputs[0] == outputs[1]
