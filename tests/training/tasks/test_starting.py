"""Training that starts from a pipeline: of whole networks, or of a LoRA that the stock pipeline loads."""

import json

import pytest
import torch
import training_scripts
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from tiny import LATENT, stable_diffusion_schedule, tiny_components, tiny_unet
from training_scripts import BRIEF, TEXT_MODEL, assert_goes_on_to_the_same_bits, load, read, records, weights

from guided_diffusers import TextToImagePipeline

LORA = "--lora.rank 2 --lora.alpha 3 --lora.dropout 0.1"
PRIOR = ["--prior.images", "4", "--prior.prompt", "[a boot, a bag]", "--drawing.num_inference_steps", "2"]
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
def run(stock, images, tmp_path, tmp_path_factory):
    """Train from that pipeline for three steps; gives the run's folder."""

    def train(name, *more):
        brief = {f"--training.{key}": json.dumps(value) for key, value in BRIEF.items()}
        given = {**brief, "--num_images": 24, "--resolution": 16, "--channels": 1, "--pretrained": stock}
        given |= {"--data.path": images, "--cache_dir": tmp_path_factory.getbasetemp() / "cache"}
        given |= {"--output_dir": tmp_path / name, "--validate_every_images": 0}
        words = [word for pair in given.items() for word in pair]
        training_scripts.train(load("train_text_to_image"), *words, *more)
        return tmp_path / name

    return train


def drawn(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    given = {"guidance_scale": 2.0, "num_inference_steps": 3, "output_type": "latent"}
    return pipeline("a dark square", generator=torch.Generator().manual_seed(0), **given).images


def assert_two_losses(folder):
    """A run with PRIOR has drawn its pictures, and its loss is the sum of theirs and of the data's."""
    said = records(folder)[-1]
    assert said["prior"] > 0 and said["denoiser"] == pytest.approx(said["own"] + said["prior"], rel=1e-5)
    assert len(list((folder / "prior").glob("*.png"))) == 4


def test_everything_of_a_stock_pipeline_is_taken_and_trained(stock, run):
    ended = run("run") / "final"
    began = StableDiffusionPipeline.from_pretrained(stock)
    theirs, ours = (cls.from_pretrained(ended) for cls in (StableDiffusionPipeline, TextToImagePipeline))
    assert dict(theirs.scheduler.config).items() >= dict(began.scheduler.config).items()
    assert type(theirs.scheduler) is DDIMScheduler and type(theirs.vae) is AutoencoderKL
    assert theirs.tokenizer.get_vocab() == began.tokenizer.get_vocab()
    for part, changes in (("unet", True), ("text_encoder", True), ("vae", False)):
        pairs = zip(getattr(theirs, part).parameters(), getattr(began, part).parameters(), strict=True)
        assert any(not torch.equal(one, other) for one, other in pairs) == changes, part
    torch.testing.assert_close(drawn(theirs), drawn(ours), rtol=0, atol=1e-5)


def test_a_pipeline_of_pixels_is_taken_without_an_autoencoder(run, tmp_path):
    unet = tiny_unet(in_channels=1, out_channels=1, sample_size=16)
    TextToImagePipeline(**tiny_components(vae=None, unet=unet), pixels=True).save_pretrained(
        tmp_path / "began"
    )
    ended = TextToImagePipeline.from_pretrained(run("run", "--pretrained", tmp_path / "began") / "final")
    assert ended.vae is None and drawn(ended).shape == (1, 1, 16, 16)
    pairs = zip(ended.unet.parameters(), unet.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_a_lora_is_all_that_is_trained_and_the_stock_pipeline_reads_it(stock, run):
    folder = run("run", *LORA.split(), "--lora.merged", "true", "--snapshot_fractions", "[0.5]", *PRIOR)
    last = max((folder / "checkpoints").iterdir())
    assert all("lora_" in name for part in ("modules", "averaged") for name in weights(last / part))
    assert {path.name for path in (folder / "final").iterdir()} == {FILE, "merged"}
    assert [path.name for path in (folder / "snapshots" / "16").iterdir()] == [FILE]
    assert {name.partition(".")[0] for name in load_file(folder / "final" / FILE)} == {"unet", "text_encoder"}
    plain = drawn(StableDiffusionPipeline.from_pretrained(stock))
    latents = []
    for cls in (StableDiffusionPipeline, TextToImagePipeline):
        pipeline = cls.from_pretrained(stock)
        pipeline.load_lora_weights(folder / "final")
        latents += [drawn(pipeline), drawn(cls.from_pretrained(folder / "final" / "merged"))]
    assert (latents[0] - plain).abs().max() > 1e-3, "it changes nothing"
    for other in latents[1:]:
        torch.testing.assert_close(other, latents[0], rtol=0, atol=1e-4)
    assert_two_losses(folder)


def test_a_stopped_lora_with_frozen_text_and_a_prior_goes_on_to_the_same_bits(run):
    frozen = [*LORA.split(), "--text.encoder", "frozen", *PRIOR]
    whole, parts = assert_goes_on_to_the_same_bits(run, 16, *frozen)
    assert {name.partition(".")[0] for name in load_file(whole / "final" / FILE)} == {"unet"}
    with pytest.raises(
        ValueError, match=r"prior is '4 of a boot'; allowed: that of the pictures in .*parts/prior"
    ):
        run("parts", *frozen, "--prior.prompt", "a boot")
    file = parts / "frozen.json"
    file.write_text('{"unet": "those of another"}')
    with pytest.raises(
        ValueError, match="frozen weights of unet are not those that the run in .*parts was begun"
    ):
        run("parts", *frozen)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--autoencoder y", "autoencoder is 'y' and pretrained 'x', a pipeline that has its own: leave out"),
        ("--unet.layers_per_block 2", "unet is {'layers_per_block': 2} and pretrained 'x'"),
        ("--scheduler DDPMScheduler", "scheduler is 'DDPMScheduler' and pretrained 'x'"),
        ("--text.pretrained y", "text.pretrained is 'y' and pretrained 'x'"),
        (
            "--pretrained null --autoencoder y --lora.rank 2",
            "lora.rank is 2; allowed: 0 without `pretrained`",
        ),
        ("--lora.rank -1", "lora.rank is -1"),
        ("--prior.images 8", "prior.prompt is ()"),
    ],
)
def test_what_contradicts_a_start_is_named(line, message, capsys):
    given = ["--data.path", "x", "--output_dir", "x", "--pretrained", "x", *line.split()]
    with pytest.raises(SystemExit):
        read(load("train_text_to_image"), *given)
    assert message in capsys.readouterr().err


def test_a_target_that_no_layer_has_is_named(run):
    with pytest.raises(
        ValueError, match=r"lora.targets is \['to_q', 'to_qq'\]; allowed: ends of layers' names"
    ):
        run("run", "--lora.rank", "2", "--lora.targets", "[to_q, to_qq]")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["frozen", "joint"])
def test_a_transformers_pipeline_is_taken_and_its_lora_read(run, images, tiny_folder, tmp_path, encoder):
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "pos_embed_max_size": 8}
    network = {"class": "SD3Transformer2DModel", "arguments": heads}
    given = {"--denoiser." + key: json.dumps(value) for key, value in network.items()}
    given |= {"--scheduler": "FlowMatchEulerDiscreteScheduler", "--scheduler_arguments.shift": 2.0}
    given |= {"--pretrained": "null", "--autoencoder": tiny_folder / "vae", "--text.vocabulary_size": 600}
    given |= {"--text.context_length": 12, "--text.model": json.dumps(TEXT_MODEL), "--num_images": 8}
    base = run("base", *(word for pair in given.items() for word in pair)) / "final"
    more = [*LORA.split(), "--text.encoder", encoder, "--lora.merged", "true", *PRIOR]
    more += ["--lora.targets", "[to_q, proj_out]"]  # what begins as the identity has no use for attention yet
    if encoder == "joint":
        with pytest.raises(
            ValueError, match="StableDiffusion3Pipeline reads no LoRA of text_encoder_3: use text"
        ):
            run("run", "--pretrained", str(base), *more)
        assert_two_losses(run("whole", "--pretrained", str(base), *PRIOR))
        return
    final = run("run", "--pretrained", str(base), *more) / "final"
    assert_two_losses(final.parent)
    whole, merged = (StableDiffusion3Pipeline.from_pretrained(path) for path in (base, final / "merged"))
    assert whole.scheduler.config.shift == merged.scheduler.config.shift == 2.0
    plain = drawn(whole)
    whole.load_lora_weights(final)
    assert (drawn(whole) - plain).abs().max() > 1e-3, "it changes nothing"
    torch.testing.assert_close(drawn(merged), drawn(whole), rtol=0, atol=1e-4)
