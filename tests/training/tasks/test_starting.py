"""Training that starts from a pipeline: of whole networks, or of a LoRA that the stock pipeline loads."""

import json

import pytest
import torch
import training_scripts
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from tiny import LATENT, stable_diffusion_schedule, tiny_components
from training_scripts import BRIEF, assert_goes_on_to_the_same_bits, load, read, weights

from guided_diffusers import TextToImagePipeline

LORA = "--lora.rank 2 --lora.alpha 3 --lora.dropout 0.1"
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A folder of StableDiffusionPipeline that predicts v on betas of its own."""
    folder = tmp_path_factory.mktemp("stock")
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=LATENT[0],
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    scheduler = stable_diffusion_schedule(DDIMScheduler, prediction_type="v_prediction", clip_sample=False)
    parts = tiny_components(vae=autoencoder, scheduler=scheduler)
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **none).save_pretrained(folder)
    return folder


@pytest.fixture
def words(images, tmp_path, tmp_path_factory):
    """The command line of a short run from a pipeline."""

    def line(name, start, more=""):
        brief = {f"--training.{key}": json.dumps(value) for key, value in BRIEF.items()}
        paths = {"--data.path": images, "--cache_dir": tmp_path_factory.getbasetemp() / "cache"}
        given = {**brief, **paths, "--pretrained": start, "--output_dir": tmp_path / name}
        given |= {"--resolution": 16, "--channels": 1, "--validate_every_images": 0}
        return [word for pair in given.items() for word in map(str, pair)] + more.split()

    return line


def drawn(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("a dark square", num_inference_steps=3, output_type="latent", generator=generator).images


def test_everything_of_a_stock_pipeline_is_taken_and_trained(stock, words, tmp_path):
    training_scripts.train(load("train_text_to_image"), *words("run", stock))
    began, ended = StableDiffusionPipeline.from_pretrained(stock), tmp_path / "run" / "final"
    pipelines = [cls.from_pretrained(ended) for cls in (StableDiffusionPipeline, TextToImagePipeline)]
    theirs = pipelines[0]
    assert dict(theirs.scheduler.config).items() >= dict(began.scheduler.config).items()
    assert theirs.tokenizer.get_vocab() == began.tokenizer.get_vocab()
    assert type(theirs.vae) is AutoencoderKL and theirs.vae.config == began.vae.config
    for part, changes in (("unet", True), ("text_encoder", True), ("vae", False)):
        pairs = zip(getattr(theirs, part).parameters(), getattr(began, part).parameters(), strict=True)
        assert any(not torch.equal(one, other) for one, other in pairs) == changes, part
    generator = torch.Generator().manual_seed(0)
    given = {"guidance_scale": 2.0, "num_inference_steps": 3, "output_type": "latent"}
    latents = [
        pipe("a dark square", generator=generator.manual_seed(0), **given).images for pipe in pipelines
    ]
    torch.testing.assert_close(*latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoder", ["joint", "frozen"])
def test_a_lora_is_all_that_is_trained_and_the_stock_pipeline_reads_it(stock, words, tmp_path, encoder):
    line = words(
        "run", stock, f"{LORA} --lora.merged true --text.encoder {encoder} --snapshot_fractions [0.5]"
    )
    training_scripts.train(load("train_text_to_image"), *line)
    run = tmp_path / "run"
    last = max((run / "checkpoints").iterdir())
    assert all("lora_" in name for part in ("modules", "averaged") for name in weights(last / part))
    assert {path.name for path in (run / "final").iterdir()} == {FILE, "merged"}
    assert [path.name for path in (run / "snapshots" / "24").iterdir()] == [FILE]
    with safe_open(run / "final" / FILE, "pt") as file:
        parts = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118 (no mapping)
    assert parts == {"unet", *(["text_encoder"] if encoder == "joint" else [])}
    plain = drawn(StableDiffusionPipeline.from_pretrained(stock))
    latents = []
    for cls in (StableDiffusionPipeline, TextToImagePipeline):
        pipeline = cls.from_pretrained(stock)
        pipeline.load_lora_weights(run / "final")
        latents.append(drawn(pipeline))
        latents.append(drawn(cls.from_pretrained(run / "final" / "merged")))
    assert (latents[0] - plain).abs().max() > 1e-3, "it changes nothing"
    for other in latents[2:]:
        torch.testing.assert_close(other, latents[0], rtol=0, atol=1e-4)


def test_a_stopped_lora_goes_on_to_the_same_bits(stock, words, tmp_path):
    def run(name, *more):
        training_scripts.train(load("train_text_to_image"), *words(name, stock, LORA), *more)
        return tmp_path / name

    assert_goes_on_to_the_same_bits(run, 24)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--autoencoder y", "autoencoder is 'y' and pretrained 'x', a pipeline that has its own: leave out"),
        ("--unet.layers_per_block 2", "unet is {'layers_per_block': 2} and pretrained 'x'"),
        ("--scheduler DDPMScheduler", "scheduler is 'DDPMScheduler' and pretrained 'x'"),
        ("--text.pretrained y", "text.pretrained is 'y' and pretrained 'x'"),
        ("--pretrained null", "autoencoder is None; allowed: a trained one, or `pretrained`"),
        (
            "--pretrained null --autoencoder y --lora.rank 2",
            "lora.rank is 2; allowed: 0 without `pretrained`",
        ),
        ("--lora.rank -1", "lora.rank is -1"),
    ],
)
def test_what_contradicts_a_start_is_named(line, message, capsys):
    given = ["--data.path", "x", "--output_dir", "x", "--pretrained", "x", *line.split()]
    with pytest.raises(SystemExit):
        read(load("train_text_to_image"), *given)
    assert message in capsys.readouterr().err


def test_a_target_that_no_layer_has_is_named(stock, words):
    line = words("run", stock, "--lora.rank 2 --lora.targets [to_q,to_qq]")
    with pytest.raises(
        ValueError, match=r"lora.targets is \['to_q', 'to_qq'\]; allowed: ends of layers' names"
    ):
        training_scripts.train(load("train_text_to_image"), *line)
