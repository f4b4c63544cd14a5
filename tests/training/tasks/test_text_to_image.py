"""Text-to-image training through its script, on tiny real components and data."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from guided_diffusers import GuidedDDIMScheduler, TextToImagePipeline
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.tasks.text_to_image import (
    DenoisingConfig,
    DrawingConfig,
    FrozenText,
    JointText,
    TextToImageTask,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(script, arguments, tmp_path, monkeypatch):
    """Run the script's main in this process; gives the run's folder."""

    def run_script(name, *more):
        monkeypatch.setattr(sys, "argv", ["train_text_to_image.py", *arguments(tmp_path / name, *more)])
        script.main()
        return tmp_path / name

    return run_script


def weights(folder):
    files = sorted(path for path in folder.rglob("*.safetensors"))
    return {f"{path.relative_to(folder)}/{k}": v for path in files for k, v in load_file(path).items()}


def test_a_run_ends_in_a_pipeline_that_generates(run):
    folder = run("run", "--export_dtype", "float16")
    pipeline = TextToImagePipeline.from_pretrained(folder / "final")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a dark square", num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (1, 1, 16, 16) and drawn.isfinite().all()
    assert pipeline.config.default_guidance[0]["scale"] == 2.0
    assert pipeline.tokenizer.model_max_length == 8
    stored = weights(folder / "final")
    dtypes = {name.split("/")[0]: value.dtype for name, value in stored.items()}
    assert dtypes == {"unet": torch.float16, "vae": torch.float16, "text_encoder": torch.float32}
    assert sorted(int(path.name) for path in (folder / "snapshots").iterdir()) == [
        8,
        16,
        32,
    ]  # 1/16 and 1/8 in one
    assert {path.name for path in (folder / "snapshots" / "32").iterdir()} == {"unet", "text_encoder"}
    assert Image.open(folder / "validation" / "000000000064.png").size == (32, 32)
    record = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert len(record["loss_by_noise"]) == 4 and record["denoiser"] > 0
    start, end = (
        load_file(folder / "snapshots" / n / "text_encoder" / "model.safetensors") for n in ("8", "32")
    )
    assert any(not torch.equal(start[name], end[name]) for name in start)  # it is trained too


def test_the_same_command_goes_on_to_the_same_bits(run):
    bare = ("--num_images", "32", "--validate_every_images", "0", "--snapshot_fractions", "[]")
    whole = weights(run("whole", *bare) / "final")
    run("parts", "--stop_at_images", "16", *bare)
    parts = weights(run("parts", *bare) / "final")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_frozen_text_encoder_stays_as_it_is_and_is_asked_once(run, tiny_folder, tmp_path_factory):
    frozen = ("--text.encoder", "frozen", "--text.pretrained", str(tiny_folder), "--num_images", "16")
    folder = run("frozen", *frozen)
    before = load_file(tiny_folder / "text_encoder" / "model.safetensors")
    after = load_file(folder / "final" / "text_encoder" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (folder / "snapshots" / "16" / "text_encoder").exists()
    caches = {
        path: path.stat().st_mtime_ns for path in (tmp_path_factory.getbasetemp() / "cache").glob("*.npy")
    }
    assert any(path.name.startswith("embeddings") for path in caches)
    run("again", *frozen)
    assert {path: path.stat().st_mtime_ns for path in caches} == caches


@pytest.mark.parametrize(
    "more",
    [
        ("--scheduler_arguments.prediction_type", "epsilon", "--gradient_checkpointing"),
        ("--scheduler_arguments.prediction_type", "sample", "--levels", "cosine", "--weighting", "uniform"),
        (
            "--scheduler",
            "FlowMatchEulerDiscreteScheduler",
            "--scheduler_arguments",
            "{}",
            "--levels",
            "log_normal",
        ),
    ],
    ids=["epsilon", "sample", "flow"],
)
def test_every_prediction_type_trains_and_generates(run, more):
    folder = run("run", "--num_images", "16", "--snapshot_fractions", "[]", *more)
    pipeline = TextToImagePipeline.from_pretrained(folder / "final")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a dark square", num_inference_steps=2, output_type="pt").images.isfinite().all()


def test_the_recipe_resolves(script, capsys):
    recipe = ROOT / "training" / "configs" / "fashion_text_to_image.yaml"
    with pytest.raises(SystemExit) as exit:
        script.parse_config(script.TextToImageConfig, ["--config", str(recipe), "--dry_run"])
    assert exit.value.code == 0
    assert json.loads(capsys.readouterr().out)["scheduler_arguments"]["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--text.encoder", "frozen"), "text.pretrained"),
        (("--caption_dropout", "1.5"), "caption_dropout must lie in"),
        (("--min_snr_gamma", "0"), "min_snr_gamma must be positive"),
        (("--denoising.weighting", "snr"), "{uniform,min_snr}, got 'snr'"),
    ],
)
def test_bad_options_are_named_before_anything_is_loaded(script, arguments, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit):
        script.parse_config(script.TextToImageConfig, arguments(tmp_path, *more))
    assert words in capsys.readouterr().err


def test_an_unknown_scheduler_is_named(run):
    with pytest.raises(ValueError, match="scheduler is 'DDXMScheduler'"):
        run("run", "--scheduler", "DDXMScheduler")


class Moments:
    """Latents without a file: means 0, deviations 1."""

    def __len__(self):
        return 50

    def sample(self, indices, noise):
        return noise


def make_task(pipeline, captions, **options):
    components = {name: pipeline.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet")}
    components["scheduler"] = GuidedDDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    return TextToImageTask(
        components,
        ("unet", "text_encoder"),
        torch.optim.SGD(pipeline.unet.parameters(), lr=0.1),
        Moments(),
        lambda indices, positions: [captions[index % len(captions)] for index in indices],
        JointText(pipeline.tokenizer, ["", *captions]),
        DenoisingConfig(**options),
        DrawingConfig(),
        TrainingConfig(output_dir="unused", seed=3),
    )


def test_a_batch_is_made_of_its_positions_alone(tiny_pipeline):
    task = make_task(tiny_pipeline, ["a", "b"], caption_dropout=0.5)
    whole = task.batch(list(range(8)), list(range(100, 108)))
    part = task.batch([5, 2], [105, 102])
    for name in ("latents", "noise", "timestep", "bins", "text"):
        assert torch.equal(part[name], whole[name][[5, 2]]), name
    assert not torch.equal(whole["latents"], whole["noise"])  # two draws


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_captions_are_dropped_to_the_empty_prompt_in_their_share(tiny_pipeline, share):
    task = make_task(tiny_pipeline, ["abc"], caption_dropout=share)
    rows = task.batch([0] * 1000, list(range(1000)))["text"]
    empty = task.text.rows([""])
    tokenized = tiny_pipeline.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(empty, tokenized)  # what the pipeline encodes as the null condition
    assert (rows == empty).all(1).double().mean() == pytest.approx(share, abs=0.05)


def test_equal_captions_are_encoded_once_to_the_same_embeddings(tiny_pipeline):
    encoder, calls = tiny_pipeline.text_encoder, []
    text = JointText(tiny_pipeline.tokenizer, ["", "abc", "xyz"])
    rows = text.rows(["abc", "", "abc", "abc"])
    hook = encoder.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    embeds = text.embed(rows, encoder)
    hook.remove()
    assert calls == [2]
    torch.testing.assert_close(embeds, encoder(rows)[0])
    expected = tiny_pipeline.encode_prompt(["abc", ""], "cpu", do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(embeds[:2], expected)


def test_frozen_embeddings_are_looked_up(tiny_pipeline):
    table = torch.randn(2, 4, 8).half()
    text = FrozenText(["", "abc"], table)
    rows = text.rows(["abc", "", "abc"])
    assert torch.equal(text.embed(rows, None), table[[1, 0, 1]].float())


def test_the_loss_trains_both_networks_and_is_that_of_the_formula(tiny_pipeline):
    task = make_task(tiny_pipeline, ["abc", "xyz"], weighting="uniform")
    batch = task.batch([0, 1, 2, 3], [0, 1, 2, 3])
    ((name, loss, metrics),) = task.losses(batch)
    assert name == "denoiser"
    alpha, sigma = (v.float().view(-1, 1, 1, 1) for v in (batch["level"].alpha, batch["level"].sigma))
    x0, noise = batch["latents"], batch["noise"]
    embeds = tiny_pipeline.text_encoder(batch["text"])[0]
    output = tiny_pipeline.unet(alpha * x0 + sigma * noise, batch["timestep"], embeds).sample
    torch.testing.assert_close(loss, (output - (alpha * noise - sigma * x0)).square().mean())
    torch.testing.assert_close(metrics["loss_by_noise"].values.mean(), loss.detach())
    loss.backward()
    for module in (tiny_pipeline.unet, tiny_pipeline.text_encoder):
        assert sum(p.grad.abs().sum() for p in module.parameters() if p.grad is not None) > 0


def test_a_pretrained_text_encoder_may_be_trained_further(run, tiny_folder):
    folder = run(
        "run", "--text.pretrained", str(tiny_folder), "--num_images", "16", "--snapshot_fractions", "[]"
    )
    before, after = (weights(path / "text_encoder") for path in (tiny_folder, folder / "final"))
    assert before.keys() == after.keys() and any(
        not torch.equal(before[name], after[name]) for name in before
    )
