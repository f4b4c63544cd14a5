"""Training without text through its script, on tiny real components: every kind of model, and resuming."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from guided_diffusers import GuidedDDPMScheduler, VariationalAutoencoder, pretrained
from guided_diffusers.store.checkpoints import component_source
from guided_diffusers.training.data.dataset import DataConfig, ImageTextDataset
from guided_diffusers.training.data.labels import class_labels
from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.tasks.unconditional import ObjectiveConfig, UnconditionalTask, ValidationConfig

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "training" / "train_unconditional.py"
SLICE = ROOT / "tests" / "data" / "fashion_slice.parquet"
BLOCKS = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
UNET = {"block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4, "add_attention": False}
TINY = {
    "training": {
        "num_images": 48,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_images": 0,
        "ema_half_life_images": 8,
        "snapshot_fractions": [],
        "checkpoint_every_images": 16,
        "validate_every_images": 48,
        "log_every_images": 16,
    },
    "data": {
        "path": str(SLICE),
        "caption_column": None,
        "crop": 28,
        "resolution": 14,
        "channels": 1,
    },
    "unet": {**UNET, **BLOCKS},
    "scheduler": {"num_train_timesteps": 20, "beta_schedule": "squaredcos_cap_v2"},
    "validation": {"images": 4, "num_inference_steps": 2, "split": "train"},
}
HYBRID = ("--scheduler.variance_type", "learned_range", "--objective.loss", "hybrid")
IMPORTANCE = (
    *HYBRID[:2],
    "--loss",
    "bound",
    "--timesteps",
    "importance",
    "--scheduler.num_train_timesteps",
    "3",
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_unconditional", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, tmp_path, tmp_path_factory, monkeypatch):
    """Run the script's main in this process; gives the run's folder."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    cache = str(tmp_path_factory.getbasetemp() / "cache")

    def run_script(name, *more):
        paths = ("--config", str(tmp_path / "tiny.yaml"), "--data.cache_dir", cache)
        output = ("--output_dir", str(tmp_path / name))
        monkeypatch.setattr(sys, "argv", ["train_unconditional.py", *paths, *output, *more])
        script.main()
        return tmp_path / name

    return run_script


def weights(folder):
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{path.relative_to(folder)}/{k}": v for path in files for k, v in load_file(path).items()}


def test_a_run_ends_in_a_pipeline_of_diffusers_that_draws_in_a_fresh_process(run):
    folder = run("run", *HYBRID, "--validation.bound_images", "4", "--bound_draws", "3")
    assert Image.open(folder / "validation" / "000000000048.png").size == (56, 14)
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert records[-1]["validation"]["bits_per_dim"] > 0
    assert len(records[-2]["bound_by_noise"]) == 4 and records[-2]["denoiser"] > 0
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


@pytest.mark.parametrize("more", [(), HYBRID, IMPORTANCE], ids=["simple", "hybrid", "importance"])
def test_the_same_command_goes_on_to_the_same_bits(run, more):
    more = (*more, "--validate_every_images", "0")
    whole = run("whole", *more)
    run("parts", "--stop_at_images", "24", *more)
    parts = run("parts", *more)
    for part in ("final", "checkpoints/000000000048"):
        expected, found = weights(whole / part), weights(parts / part)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    counts = [expected[name] for name in expected if name.endswith("timesteps.safetensors/counts")]
    assert [int(count.sum()) for count in counts] == ([48] if more[:-2] == IMPORTANCE else [])
    assert all((count >= 10).all() for count in counts)  # every history is full: its weights were in use


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_every_prediction_type_trains_and_draws(run, kind):
    folder = run(
        "run", "--scheduler.prediction_type", kind, "--num_images", "16", "--validate_every_images", "0"
    )
    pipeline = DDPMPipeline.from_pretrained(folder / "final")
    drawn = pipeline(1, torch.Generator().manual_seed(0), 2, output_type="pt").images
    assert pipeline.scheduler.config.prediction_type == kind and drawn.isfinite().all()


def test_classes_are_those_of_the_column_and_change_what_is_drawn(run):
    from diffusers import DiffusionPipeline

    options = ("--label_column", "label", "--num_images", "16", "--validate_every_images", "16")
    folder = run("run", *options, "--validation.bound_images", "3", "--bound_draws", "2")
    pipeline = DiffusionPipeline.from_pretrained(folder / "final")
    assert type(pipeline).__name__ == "ImagePipeline" and pipeline.unet.config.num_class_embeds == 10
    pipeline.set_progress_bar_config(disable=True)

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
    options = ("--num_images", "16", "--validation.images", "0")
    named = run("named", "--label_column", "name", *options)
    rows = datasets.Dataset.from_parquet(str(SLICE), cache_dir=str(named / "cache"))
    names = sorted(set(rows["name"]))
    numbered = rows.map(lambda row: {"label": names.index(row["name"])}, load_from_cache_file=False)
    numbered.to_parquet(named / "numbered.parquet")
    path = ("--data.path", str(named / "numbered.parquet"))
    weights = [
        load_file(folder / "final" / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (named, run("numbered", "--label_column", "label", *options, *path))
    ]
    assert len(weights[0]["class_embedding.weight"]) == 10
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        (datasets.Value("int64"), [0, 1, -1], "row 2 has -1, which is no class in label_column 'kind' of"),
        (datasets.ClassLabel(names=["cat", "dog"]), [0, 1, None], "row 2 has None in label_column 'kind' of"),
        (datasets.Value("float64"), [0.5, 1.0, 0.0], "row 0 has 0.5 in label_column 'kind' of"),
        (datasets.Value("string"), ["cat", None, "dog"], "row 1 has None in label_column 'kind' of"),
    ],
)
def test_a_row_without_a_class_is_named(script, tmp_path, kind, labels, message):
    image = {"bytes": (ROOT / "docs" / "images" / "fashion-32-loss.png").read_bytes(), "path": None}
    features = datasets.Features(image=datasets.Image(), kind=kind)
    rows = datasets.Dataset.from_dict({"image": [image] * 3, "kind": labels}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    config = DataConfig(path=str(tmp_path), caption_column=None, resolution=8, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        class_labels(ImageTextDataset(config), "kind")


def test_a_split_that_numbers_its_classes_otherwise_is_read_by_name(script, tmp_path):
    image = {"bytes": (ROOT / "docs" / "images" / "fashion-32-loss.png").read_bytes(), "path": None}
    found, names = [], None
    for split, classes in (("train", ["cat", "dog", "owl"]), ("test", ["owl", "cat"])):
        features = datasets.Features(image=datasets.Image(), kind=datasets.ClassLabel(names=classes))
        rows = {"image": [image] * len(classes), "kind": list(range(len(classes)))}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
        options = {"caption_column": None, "resolution": 8, "cache_dir": str(tmp_path)}
        config = DataConfig(path=str(tmp_path), split=split, **options)
        labels, names = class_labels(ImageTextDataset(config), "kind", names)
        found.append(labels.tolist())
    assert found == [[0, 1, 2], [2, 0]] and names == ["cat", "dog", "owl"]


def test_latents_of_an_autoencoder(run, tiny_folder):
    from diffusers import DiffusionPipeline

    options = ("--autoencoder", str(tiny_folder / "vae"), "--crop", "null", "--resolution", "16")
    folder = run("run", *options, "--num_images", "16", "--validate_every_images", "16")
    pipeline = DiffusionPipeline.from_pretrained(folder / "final")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.in_channels == 2 and pipeline.unet.config.sample_size == 8
    drawn = pipeline(2, num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (2, 1, 16, 16) and drawn.isfinite().all()
    with pytest.raises(ValueError, match="class_labels is 1"):
        pipeline(1, 1)


def test_a_dropped_class_is_the_last_one_and_guides(run):
    from guided_diffusers import Condition, ModelDenoiser, sampling_loop
    from guided_diffusers.guidance import ClassifierFreeGuidance

    options = ("--label_column", "label", "--class_dropout", "0.5", "--num_images", "16")
    folder = run("run", *options, "--validate_every_images", "16")
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder / "final")
    assert pipeline.unet.config.num_class_embeds == 11
    labels, null = (torch.full((2,), index) for index in (3, 10))
    condition = Condition({"class_labels": labels}, {"class_labels": null})
    denoiser = ClassifierFreeGuidance(2.0)(ModelDenoiser(pipeline.unet, "epsilon"))
    noise = torch.randn(2, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    assert sampling_loop(denoiser, pipeline.scheduler, noise, condition, 2).isfinite().all()


def test_labels_are_dropped_at_the_share_asked_for_by_position_alone():
    task = make_task(labels=torch.arange(50) % 4, classes=5, class_dropout=0.25)
    positions = list(range(2000))
    kept = task.kept(torch.arange(2000) % 4, positions)
    dropped = kept == 4
    assert torch.equal(kept[~dropped], (torch.arange(2000) % 4)[~dropped])
    assert abs(dropped.double().mean() - 0.25) < 0.03  # three standard errors
    assert torch.equal(task.kept(torch.tensor([1, 1]), [7, 9]) == 4, dropped[[7, 9]])


@pytest.mark.parametrize(
    "name", ["fashion_unconditional", "fashion_latent_unconditional", "fashion_latent_class"]
)
def test_every_recipe_resolves_to_networks_that_fit(script, name):
    recipe = ROOT / "training" / "configs" / f"{name}.yaml"
    config = script.parse_config(script.UnconditionalConfig, ["--config", str(recipe)])
    classes = 10 if config.label_column else None
    vae = None
    if config.autoencoder is not None:
        vae = VariationalAutoencoder.from_pretrained(component_source(config.autoencoder))
        shipped = GuidedDDPMScheduler.from_pretrained(pretrained("fashion-32") / "scheduler").config
        assert {**shipped, **config.scheduler} == dict(shipped)
    unet = script.make_unet(config, vae, config.scheduler.get("variance_type") == "learned_range", classes)
    assert unet.config.num_class_embeds == (11 if classes else None)
    size = unet.config.sample_size
    output = unet(torch.zeros(1, unet.config.in_channels, size, size), 1, classes and torch.tensor([10]))
    assert output.sample.shape == (1, unet.config.out_channels, size, size)
    assert 1.5e6 < sum(parameter.numel() for parameter in unet.parameters()) < 4e6


def test_the_recipe_resolves(script, capsys):
    recipe = ROOT / "training" / "configs" / "fashion_unconditional.yaml"
    with pytest.raises(SystemExit) as exit:
        script.parse_config(script.UnconditionalConfig, ["--config", str(recipe), "--dry_run"])
    assert exit.value.code == 0
    config = json.loads(capsys.readouterr().out)
    assert config["data"]["crop"] == config["data"]["resolution"] == 28 and not config["data"]["mirror"]
    assert len(SCRIPT.read_text().splitlines()) < 150


class Noise:
    """Images without a file."""

    def __len__(self):
        return 50

    def sample(self, indices, noise):
        return torch.tensor(indices).view(-1, 1, 1, 1) + 0 * noise


def make_task(out_channels=2, variance_type="learned_range", labels=None, classes=None, **objective):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": out_channels,
            "num_class_embeds": classes,
        }
        unet = UNet2DModel(**sizes, **UNET, **BLOCKS)
    scheduler = GuidedDDPMScheduler(num_train_timesteps=50, variance_type=variance_type)
    training = TrainingConfig(output_dir="unused", seed=3)
    objective = ObjectiveConfig(**{"loss": "hybrid", **objective})
    return UnconditionalTask(unet, scheduler, Noise(), objective, ValidationConfig(), training, labels=labels)


def test_a_batch_is_made_of_its_positions_alone():
    task = make_task(labels=torch.arange(50) % 10, classes=10)
    whole, part = task.batch(list(range(8)), list(range(100, 108))), task.batch([5, 2], [105, 102])
    for name in ("images", "noise", "uniform"):
        assert torch.equal(part[name], whole[name][[5, 2]]), name
    assert part["condition"]["class_labels"].tolist() == [5, 2]


def test_uniform_timesteps_reach_both_ends():
    timesteps, weight = make_task().timesteps(torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert timesteps.tolist() == [0, 25, 49] and (weight == 1).all()


@pytest.mark.parametrize("loss", ["hybrid", "bound"])
def test_the_stop_gradient_is_the_hybrids(loss):
    task = make_task(loss=loss, bound_weight=1e6)
    batch = task.batch(list(range(8)), list(range(8)))
    batch["images"] = batch["images"].clamp(-1, 1)
    (_, value, _) = next(task.losses(batch))
    value.backward()
    mean, variance = task.unet.conv_out.weight.grad  # of the two channels
    assert variance.abs().max() > 0
    assert (mean.abs().max() > 1e-3 * variance.abs().max()) == (loss == "bound")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"out_channels": 1}, "out_channels is 1; .* needs 2"),
        ({"variance_type": "fixed_small", "out_channels": 1}, "'hybrid' with variance_type 'fixed_small'"),
        ({"loss": "simple"}, "'simple' with variance_type 'learned_range'"),
        ({"classes": 10}, "both label_column and unet.num_class_embeds"),
        ({"bound_weight": 0.0}, "bound_weight must be positive"),
        ({"class_dropout": 1.5}, "class_dropout must lie in"),
        ({"class_dropout": 0.1}, "class_dropout needs classes"),
        (
            {"class_dropout": 0.1, "classes": 4, "labels": torch.arange(50) % 4},
            "num_class_embeds is 4; class_dropout needs 5",
        ),
        ({"classes": 3, "labels": torch.arange(50) % 4}, "num_class_embeds is 3, .* labels up to 3"),
    ],
)
def test_parts_that_do_not_suit_each_other_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_task(**arguments)
