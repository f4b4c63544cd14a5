"""Training of denoisers through their scripts, with text, by class or of neither, on tiny real components."""

import json
import subprocess
import sys
from functools import partial

import datasets
import pytest
import torch
import training_scripts
import yaml
from diffusers import DDPMPipeline, DiffusionPipeline
from PIL import Image
from tiny_data import SLICE
from tiny_upsampler import tiny_upsampler
from training_scripts import BRIEF, assert_goes_on_to_the_same_bits, load, records, same, weights

from guided_diffusers import (
    CascadePipeline,
    Condition,
    GuidedDDPMScheduler,
    ModelDenoiser,
    TextToImagePipeline,
    sampling_loop,
)
from guided_diffusers.guidance import ClassifierFreeGuidance

IMAGES = {
    "training": BRIEF,
    "data": {"path": str(SLICE), "caption_column": None, "crop": 28, "resolution": 14, "channels": 1},
    "unet": {"block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4}
    | {"add_attention": False, "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]},
    "scheduler": {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"},
    "validation": {"images": 4, "num_inference_steps": 2, "split": "train"},
}


HYBRID = "--scheduler.variance_type learned_range --objective.loss hybrid"
BOUND = (
    "--scheduler.variance_type learned_range --loss bound --timesteps importance "
    "--scheduler.num_train_timesteps 3"
)
TEXT_HYBRID = f"--scheduler GuidedDDPMScheduler {HYBRID}"
SHORT = "--num_images 32 --validate_every_images 0 --snapshot_fractions []"


@pytest.fixture
def run(arguments, tmp_path, tmp_path_factory):
    """Run a script in this process, `text` or `images`; gives the run's folder."""
    (tmp_path / "images.yaml").write_text(yaml.safe_dump(IMAGES))

    def run_script(kind, line, name="run", *more):
        folder = tmp_path / name
        if kind == "text":
            words = line.replace("--scheduler.", "--scheduler_arguments.").split()
            training_scripts.train(load("train_text_to_image"), *arguments(folder), *words, *more)
            return folder
        cache = tmp_path_factory.getbasetemp() / "cache"
        paths = ("--config", tmp_path / "images.yaml", "--data.cache_dir", cache, "--output_dir", folder)
        training_scripts.train(load("train_unconditional"), *paths, *line.split(), *more)
        return folder

    return run_script


def loaded(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder / "final")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_run_with_text_ends_in_a_pipeline_that_generates(run):
    folder = run("text", "--export_dtype float16")
    pipeline = TextToImagePipeline.from_pretrained(folder / "final")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a dark square", num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (1, 1, 16, 16) and drawn.isfinite().all()
    assert pipeline.config.default_guidance[0]["scale"] == 2.0
    assert pipeline.tokenizer.model_max_length == 8
    dtypes = {name.split("/")[0]: value.dtype for name, value in weights(folder / "final").items()}
    assert dtypes == {"unet": torch.float16, "vae": torch.float16, "text_encoder": torch.float32}
    # 1/16 and 1/8 in one
    assert sorted(int(path.name) for path in (folder / "snapshots").iterdir()) == [8, 16, 32]
    assert {path.name for path in (folder / "snapshots" / "32").iterdir()} == {"unet", "text_encoder"}
    assert Image.open(folder / "validation" / "000000000064.png").size == (32, 32)
    assert len(records(folder)[-1]["loss_by_noise"]) == 4 and records(folder)[-1]["denoiser"] > 0
    start, end = (weights(folder / "snapshots" / n / "text_encoder") for n in ("8", "32"))
    assert any(not torch.equal(start[name], end[name]) for name in start)  # it is trained too


@pytest.mark.slow
def test_a_run_of_pixels_ends_in_a_pipeline_of_diffusers_that_draws_in_a_fresh_process(run):
    folder = run("images", f"{HYBRID} --validation.bound_images 4 --bound_draws 3")
    assert Image.open(folder / "validation" / "000000000048.png").size == (56, 14)
    assert records(folder)[-1]["validation"]["bits_per_dim"] > 0
    step = records(folder)[-2]
    assert step["denoiser"] > 0
    assert all(len(step[f"{name}_by_noise"]) == 4 for name in ("loss", "simple", "bound"))
    index = json.loads((folder / "final" / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
    assert index["scheduler"] == ["guided_diffusers", "GuidedDDPMScheduler"]
    code = (
        "import sys, torch, guided_diffusers; from diffusers import DDPMPipeline\n"
        "pipeline = DDPMPipeline.from_pretrained(sys.argv[1])\n"
        "images = pipeline(2, torch.Generator().manual_seed(0), 3, output_type='pt').images\n"
        "torch.save(images, sys.argv[2])"
    )
    drawn = folder / "drawn.pt"
    subprocess.run([sys.executable, "-c", code, folder / "final", drawn], check=True)
    images = torch.load(drawn, weights_only=True)
    pipeline = DDPMPipeline.from_pretrained(folder / "final")
    again = pipeline(2, torch.Generator().manual_seed(0), 3, output_type="pt").images
    assert images.shape == (2, 1, 14, 14) and images.std() > 0.01
    torch.testing.assert_close(images, again, rtol=0, atol=1e-5)  # where weights lie in memory rounds sums
    assert pipeline.unet.config.out_channels == 2
    assert pipeline.scheduler.config.variance_type == "learned_range"


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("text", ""),
        ("text", f"{TEXT_HYBRID} --timesteps importance --scheduler.num_train_timesteps 3"),
        pytest.param("images", "", marks=pytest.mark.slow),
        pytest.param("images", HYBRID, marks=pytest.mark.slow),
        pytest.param("images", BOUND, marks=pytest.mark.slow),
        ("images", "--label_column label --class_dropout 0.3 --levels log_normal --weighting min_snr"),
    ],
)
def test_the_same_command_goes_on_to_the_same_bits(run, kind, line):
    whole, _ = assert_goes_on_to_the_same_bits(partial(run, kind, line), 16, *SHORT.split())
    tensors = weights(whole / "checkpoints" / "000000000032")
    counts = [value for name, value in tensors.items() if name.endswith("timesteps.safetensors/counts")]
    assert [int(count.sum()) for count in counts] == ([32] if "importance" in line else [])


@pytest.mark.parametrize(
    ("kind", "task", "newer"),
    [
        ("text", "TextToImageTask", "objective"),
        pytest.param("images", "UnconditionalTask", "denoising", marks=pytest.mark.slow),
    ],
)
def test_a_run_of_an_older_version_goes_on_without_a_word(run, caplog, kind, task, newer):
    whole = run(kind, "", "whole", *SHORT.split())
    parts = run(kind, "", "parts", *SHORT.split(), "--stop_at_images", "16")
    state = parts / "checkpoints" / "000000000016" / "state.json"
    tree = state.read_text()
    assert '"DenoisingTask"' in tree
    state.write_text(tree.replace('"DenoisingTask"', f'"{task}"'))
    config = json.loads((parts / "config.json").read_text())
    del config[newer]
    (parts / "config.json").write_text(json.dumps(config))
    parts = run(kind, "", "parts", *SHORT.split())
    changes = [text for text in caplog.messages if "another configuration" in text]
    assert [text.partition("configuration: ")[2] for text in changes] == [
        "training/stop_at_images: 16 -> None"
    ]
    assert same(weights(whole / "final"), weights(parts / "final"))


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("text", "--scheduler.prediction_type epsilon --gradient_checkpointing"),
        ("text", "--scheduler.prediction_type sample --levels cosine --weighting uniform"),
        ("text", "--scheduler FlowMatchEulerDiscreteScheduler --scheduler_arguments {} --levels log_normal"),
        ("text", TEXT_HYBRID),
        ("text", f"{TEXT_HYBRID.replace('hybrid', 'bound')} --weighting uniform --timesteps importance"),
        ("images", "--scheduler.prediction_type v_prediction"),
        ("images", "--scheduler.prediction_type sample --levels cosine"),
        ("images", f"--label_column label --levels log_normal --weighting min_snr {HYBRID}"),
    ],
)
def test_every_objective_trains_and_draws(run, kind, line):
    folder = run(kind, line, "run", "--num_images", "16", *SHORT.split()[2:])
    pipeline = loaded(folder)
    learned = "learned_range" in line
    assert pipeline.unet.config.out_channels == pipeline.unet.config.in_channels * (1 + learned)
    if learned:
        assert isinstance(pipeline.scheduler, GuidedDDPMScheduler)
        assert pipeline.scheduler.config.variance_type == "learned_range"
    told = {"prompt": "a dark square"} if kind == "text" else {"batch_size": 1}
    told |= {"class_labels": 3} if "label_column" in line else {}
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline(**told, generator=generator, num_inference_steps=2, output_type="pt").images
    assert drawn.isfinite().all()


def test_a_frozen_text_encoder_stays_as_it_is_and_is_asked_once(run, tiny_folder, tmp_path_factory):
    frozen = f"--text.encoder frozen --text.pretrained {tiny_folder} --num_images 16"
    folder = run("text", frozen)
    assert same(*(weights(path / "text_encoder") for path in (tiny_folder, folder / "final")))
    assert not (folder / "snapshots" / "16" / "text_encoder").exists()
    cache = (tmp_path_factory.getbasetemp() / "cache").glob("*.npy")
    caches = {path: path.stat().st_mtime_ns for path in cache}
    assert any(path.name.startswith("embeddings") for path in caches)
    run("text", frozen, "again")
    assert {path: path.stat().st_mtime_ns for path in caches} == caches


def test_a_pretrained_text_encoder_may_be_trained_further(run, tiny_folder):
    folder = run("text", f"--text.pretrained {tiny_folder} --num_images 16 --snapshot_fractions []")
    before, after = (weights(path / "text_encoder") for path in (tiny_folder, folder / "final"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_classes_are_those_of_the_column_and_change_what_is_drawn(run):
    line = "--label_column label --num_images 16 --validate_every_images 16 --validation.bound_images 3"
    pipeline = loaded(run("images", f"{line} --bound_draws 2"))
    assert type(pipeline).__name__ == "ImagePipeline" and pipeline.unet.config.num_class_embeds == 10

    def drawn(labels):
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        return pipeline(2, labels, generators, 2, output_type="pt").images

    images = drawn([1, 3])
    assert images.shape == (2, 1, 14, 14) and not torch.equal(images[0], images[1])
    torch.testing.assert_close(drawn(1)[0], images[0])
    with pytest.raises(ValueError, match="class_labels is None"):
        drawn(None)
    with pytest.raises(ValueError, match="3 classes for 2 images"):
        drawn([1, 2, 3])


def test_names_may_be_the_classes(run):
    """Another run with the numbers that the names stand for has the same weights."""
    brief = "--num_images 16 --validation.images 0"
    named = run("images", f"--label_column name {brief}", "named")
    rows = datasets.Dataset.from_parquet(str(SLICE), cache_dir=str(named / "cache"))
    names = sorted(set(rows["name"]))
    numbered = rows.map(lambda row: {"label": names.index(row["name"])}, load_from_cache_file=False)
    numbered.to_parquet(named / "numbered.parquet")
    line = f"--label_column label {brief} --data.path {named / 'numbered.parquet'}"
    folders = (named, run("images", line, "numbered"))
    one, two = (weights(folder / "final" / "unet") for folder in folders)
    assert len(one["diffusion_pytorch_model.safetensors/class_embedding.weight"]) == 10 and same(one, two)


def test_latents_of_an_autoencoder(run, tiny_folder):
    line = f"--autoencoder {tiny_folder / 'vae'} --crop null --resolution 16 --num_images 16"
    pipeline = loaded(run("images", f"{line} --validate_every_images 16"))
    assert pipeline.unet.config.in_channels == 2 and pipeline.unet.config.sample_size == 8
    drawn = pipeline(2, num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (2, 1, 16, 16) and drawn.isfinite().all()
    with pytest.raises(ValueError, match="class_labels is 1"):
        pipeline(1, 1)


def test_a_dropped_class_is_the_last_one_and_guides(run):
    line = "--label_column label --class_dropout 0.5 --num_images 16 --validate_every_images 16"
    pipeline = loaded(run("images", line))
    assert pipeline.unet.config.num_class_embeds == 11
    labels, null = (torch.full((2,), index) for index in (3, 10))
    condition = Condition({"class_labels": labels}, {"class_labels": null})
    denoiser = ClassifierFreeGuidance(2.0)(ModelDenoiser(pipeline.unet, "epsilon"))
    noise = torch.randn(2, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    assert sampling_loop(denoiser, pipeline.scheduler, noise, condition, 2).isfinite().all()


def test_an_unknown_scheduler_is_named(run):
    with pytest.raises(ValueError, match="scheduler is 'DDXMScheduler'"):
        run("text", "--scheduler DDXMScheduler")


def test_a_run_with_text_in_pixels_is_the_base_of_a_cascade(run, tmp_path):
    line = f"{SHORT} --autoencoder null --data.resolution 16 --unet.patch_size 2"
    folder = run("text", line)
    pipeline = loaded(folder)
    assert type(pipeline) is TextToImagePipeline and pipeline.vae is None and pipeline.config.pixels
    call = {"num_inference_steps": 2, "output_type": "pt", "guidance_scale": 2.0}
    drawn = pipeline("a dark square", generator=torch.Generator().manual_seed(1), **call).images
    assert drawn.shape == (1, 1, 16, 16)
    CascadePipeline([pipeline, tiny_upsampler(image_size=64)]).save_pretrained(tmp_path / "cascade")
    cascade = DiffusionPipeline.from_pretrained(tmp_path / "cascade")
    cascade.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    assert cascade("a dark square", generator=generator, **call).images.shape == (1, 1, 64, 64)
