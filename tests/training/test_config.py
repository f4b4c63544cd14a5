"""Configuration: YAML, overrides, errors that name the key, a dry run."""

import json
from dataclasses import dataclass, field

import pytest

from guided_diffusers.training.config import TrainingConfig, build_config, option, parse_config, to_json


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
        (["--training.batch_size", "many"], ["training.batch_size", "int", "many"]),
        (["--training.batch_size", "0"], ["batch_size", "positive", "0"]),
        (["--warmup_images", "-1"], ["warmup_images", "0 or more", "-1"]),
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


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"training": {"output_dir": "a", "batchsize": 8}}, "training.batchsize.*training.batch_size"),
        ({"trainin": {}}, "trainin.*training"),
        ({}, "training.output_dir is required"),
        ({"training": 3}, "training must be a mapping"),
        ({"training": {"output_dir": "a", "seed": 1.5}}, "training.seed must be int, got 1.5"),
        ({"training": {"output_dir": "a", "seed": True}}, "training.seed must be int, got True"),
        ({"training": {"output_dir": "a", "channels_last": "yes"}}, "channels_last must be bool, got 'yes'"),
    ],
)
def test_a_bad_yaml_tree_is_refused(tree, words):
    with pytest.raises(ValueError, match=words):
        build_config(Script, tree)


def test_an_optional_field_takes_null_and_its_type():
    for value in (None, 64):
        tree = {"training": {"output_dir": "a", "stop_at_images": value}}
        assert build_config(Script, tree).training.stop_at_images == value
