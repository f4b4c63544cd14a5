"""`guided-diffusers convert-adm` and `convert-ldm`, in this process, on the golden checkpoints."""

import json
import pickle

import pytest
import torch
from convert.published import golden
from diffusers import UNet2DModel
from safetensors.torch import save_file

from guided_diffusers import NoiseAwareClassifier, VariationalAutoencoder


@pytest.fixture
def published(tmp_path):
    """A published checkpoint as a pickle, and its flags."""

    def published(name):
        config, weights, values = golden(name)
        torch.save(weights, tmp_path / "model.pt")
        (tmp_path / "flags.json").write_text(json.dumps(config))
        return tmp_path / "model.pt", tmp_path / "flags.json", values

    return published


@torch.no_grad()
def test_a_denoiser_of_a_pickle(run, published, tmp_path):
    checkpoint, flags, values = published("adm_unet_legacy_order")
    options = ("--kind", "unet", "--flags", flags, "--output", tmp_path / "out")
    code, _, errors = run("convert-adm", checkpoint, *options)
    assert code == 1 and "--allow-pickle" in errors and not (tmp_path / "out").exists()
    code, output, errors = run("convert-adm", checkpoint, *options, "--allow-pickle")
    assert code == 0, errors
    count = sum(weight.numel() for weight in golden("adm_unet_legacy_order")[1].values())
    assert output == f"{tmp_path / 'out'}: UNet2DModel, {count:,} parameters\n"
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".safetensors"}
    model = UNet2DModel.from_pretrained(tmp_path / "out")
    output = model(values["sample"], values["timesteps"], values["class_labels"]).sample
    torch.testing.assert_close(output, values["output"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_classifier_of_safetensors_and_yaml(run, tmp_path):
    config, weights, values = golden("adm_classifier_attention")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "flags.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in config.items()))
    options = ("--kind", "classifier", "--flags", tmp_path / "flags.yaml", "--output", tmp_path / "out")
    code, output, errors = run("convert-adm", tmp_path / "model.safetensors", *options, "--json")
    assert code == 0, errors
    assert json.loads(output) | {"parameters": 0} == {
        "path": str(tmp_path / "out"),
        "class": "NoiseAwareClassifier",
        "parameters": 0,
    }
    logits = NoiseAwareClassifier.from_pretrained(tmp_path / "out")(values["sample"], values["timesteps"])
    torch.testing.assert_close(logits, values["logits"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_autoencoder_of_a_training_checkpoint(run, tmp_path):
    config, weights, values = golden("ldm_autoencoder_kl")
    beside = {"loss.logvar": torch.zeros(())}
    torch.save({"epoch": 3, "state_dict": {**weights, **beside}}, tmp_path / "model.ckpt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ("--config", tmp_path / "config.json", "--output", tmp_path / "out", "--allow-pickle")
    code, _, errors = run("convert-ldm", tmp_path / "model.ckpt", *options)
    assert code == 0, errors
    model = VariationalAutoencoder.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(model(values["sample"]).sample, values["reconstruction"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        ((), 2, "--kind"),
        (("--kind", "gan"), 2, "gan"),
        (("--kind", "unet"), 2, "give one of --preset and --flags"),
        (("--kind", "unet", "--preset", "64", "--flags", "FLAGS"), 2, "give one of --preset and --flags"),
        (("--kind", "classifier", "--preset", "64-to-256"), 2, "is none of 64, 128, 256, 512"),
        (("--kind", "unet", "--preset", "128"), 1, "does not fit the configuration"),
        (("--kind", "unet", "--flags", "WORD"), 1, "a mapping of names"),
        (("--kind", "unet", "--flags", "BROKEN"), 1, "does not read as"),
        (
            ("--kind", "unet", "--flags", "TYPO"),
            1,
            "keys of config is ['num_chanels']; allowed: attention_resolutions",
        ),
    ],
)
def test_what_cannot_be_converted_is_one_line(run, published, tmp_path, options, code, reason):
    checkpoint, flags, _ = published("adm_unet_new_order")
    files = {"FLAGS": flags}
    for name, text in (("WORD", '"64"'), ("BROKEN", "{"), ("TYPO", '{"num_chanels": 32}')):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(text)
    options = [files.get(option, option) for option in options]
    found, output, errors = run(
        "convert-adm", checkpoint, *options, "--output", tmp_path / "out", "--allow-pickle"
    )
    assert (found, output) == (code, "") and reason in " ".join(errors.replace("│", " ").split())
    assert code == 2 or len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


class Opened:
    def __reduce__(self):
        return (open, ("touched-by-a-pickle", "w"))


@pytest.mark.parametrize("content", [{"a": Opened()}, {"a": 3}, [1, 2]])
def test_a_pickle_of_more_than_tensors_is_refused_and_runs_nothing(run, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with open("model.pt", "wb") as file:
        pickle.dump(content, file, protocol=2)
    options = ("--kind", "unet", "--preset", "64", "--output", "out", "--allow-pickle")
    code, _, errors = run("convert-adm", "model.pt", *options)
    assert code == 1 and len(errors.splitlines()) == 1 and "model.pt" in errors
    assert not (tmp_path / "touched-by-a-pickle").exists()
