"""Configuration: YAML, overrides, errors that name the key, a dry run."""

import json
from dataclasses import dataclass, field

import pytest
from diffusers import UNet2DModel

from guided_diffusers.training.engine.config import (
    TrainingConfig,
    arguments,
    build_config,
    option,
    parse_config,
    to_json,
)
from guided_diffusers.training.engine.script import run_main
from guided_diffusers.training.engine.setup import make_scheduler


@dataclass(frozen=True, kw_only=True)
class Script:
    """A script's configuration."""

    training: TrainingConfig
    widths: tuple[int, ...] = option((64, 128), "channels")
    network: dict = field(default_factory=dict)


@pytest.fixture
def yaml_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "training: {output_dir: runs/a, learning_rate: 1e-3, batch_size: 8, mixed_precision: no}\n"
        "network: {layers: 2, act: silu}\n"
    )
    return str(path)


@dataclass(frozen=True, kw_only=True)
class Network:
    network: dict[str, object] = arguments("UNet2DModel's arguments", UNet2DModel)


def test_the_command_line_overrides_yaml_which_overrides_defaults(yaml_file):
    argv = ["--config", yaml_file, "--training.batch_size", "16", "--seed=3", "--widths", "[1, 2]"]
    config = parse_config(
        Script, [*argv, "--network.layers", "4", "--network.dropout=0.5", "--channels_last"]
    )
    assert (config.training.batch_size, config.training.seed, config.training.output_dir) == (16, 3, "runs/a")
    assert config.training.learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as a string
    assert config.training.mixed_precision == "no"  # and a bare `no` as False
    assert config.training.channels_last is True
    assert config.widths == (1, 2)
    assert config.network == {"layers": 4, "act": "silu", "dropout": 0.5}


def test_dry_run_prints_json_that_builds_the_same_configuration(yaml_file, capsys):
    with pytest.raises(SystemExit) as exit:
        parse_config(Script, ["--config", yaml_file, "--dry_run"])
    printed = json.loads(capsys.readouterr().out)
    assert exit.value.code == 0
    assert build_config(Script, printed) == parse_config(Script, ["--config", yaml_file])
    assert json.loads(to_json(build_config(Script, printed))) == printed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--learning_rte", "1"], ["learning_rte", "learning_rate"]),
        (["--training.sed", "1"], ["training.sed", "training.seed"]),
        (["--training.batch_size", "many"], ["training.batch_size", "integer", "many"]),
        (["--training.batch_size", "0"], ["batch_size is 0", "at least 1"]),
        (["--warmup_images", "-1"], ["warmup_images is -1", "at least 0"]),
        (["--snapshot_fractions", "[0.5, 2]"], ["snapshot_fractions", "2"]),
        (["--learning_rate_schedule", "cosin"], ["learning_rate_schedule", "cosine", "cosin"]),
        (["--gradient_accumulation", "3"], ["gradient_accumulation", "multiple"]),
        (["--betas", "[0.9]"], ["betas", "[0.9]"]),
        (["--network.layers"], ["network.layers", "needs a value"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_a_bad_key_or_value_is_named(yaml_file, capsys, argv, words):
    with pytest.raises(SystemExit) as exit:
        parse_config(Script, ["--config", yaml_file, *argv])
    message = capsys.readouterr().err.splitlines()[-1]
    assert exit.value.code == 2
    assert all(word in message for word in words), message


def test_an_argument_that_a_model_does_not_have_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        parse_config(Network, ["--network.sampel_size", "8", "--dry_run"])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert "'network.sampel_size': did you mean 'network.sample_size'? (arguments of UNet2DModel)" in line
    assert build_config(Network, {"network": {"sample_size": 8}}).network == {"sample_size": 8}


def test_a_scheduler_s_unknown_argument_is_named():
    with pytest.raises(ValueError, match="scheduler_arguments.beta_strat.*did you mean.*beta_start"):
        make_scheduler("GuidedDDPMScheduler", {"beta_strat": 0.1})


def test_a_script_ends_in_one_line(monkeypatch, capsys):
    def main():
        raise ValueError("no such\nfolder")

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert (end.value.code, capsys.readouterr().err) == (1, "error: no such folder\n")
    monkeypatch.setenv("GUIDED_DIFFUSERS_DEBUG", "1")
    with pytest.raises(ValueError, match="no such"):
        run_main(main)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"training": {"output_dir": "a", "batchsize": 8}}, "training.batchsize.*training.batch_size"),
        ({"trainin": {}}, "trainin.*training"),
        ({}, "training.output_dir is required"),
        ({"training": 3}, "training is 3; allowed: a mapping"),
        ({"training": {"output_dir": "a", "seed": 1.5}}, "training.seed is 1.5; allowed: an integer"),
        ({"training": {"output_dir": "a", "seed": True}}, "training.seed is True; allowed: an integer"),
        (
            {"training": {"output_dir": "a", "channels_last": "yes"}},
            "channels_last is 'yes'; allowed: 'auto', True, False",
        ),
        ({"training": {"output_dir": "a", "channels_last": 1}}, "channels_last is 1; allowed: 'auto'"),
        (
            {"training": {"output_dir": "a", "mixed_precision": True}},
            "is True; allowed: 'auto', 'no'",
        ),
    ],
)
def test_a_bad_yaml_tree_is_refused(tree, words):
    with pytest.raises(ValueError, match=words):
        build_config(Script, tree)


def test_precision_and_layout_are_chosen_by_the_machine_unless_they_are_said():
    for said, meant in (("auto", "auto"), (True, True), (False, False), ("no", "no"), ("bf16", "bf16")):
        key = "channels_last" if isinstance(said, bool) else "mixed_precision"
        assert getattr(build_config(TrainingConfig, {"output_dir": "a", key: said}), key) == meant
    default = TrainingConfig(output_dir="a")
    assert (default.mixed_precision, default.channels_last) == ("auto", "auto")


def test_an_optional_field_takes_null_and_its_type():
    for value in (None, 64):
        tree = {"training": {"output_dir": "a", "stop_at_images": value}}
        assert build_config(Script, tree).training.stop_at_images == value
