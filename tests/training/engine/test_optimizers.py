"""Optimizers of 8 bits, where bitsandbytes is installed, and what is said where it is not."""

import importlib.util

import pytest
import torch
from torch import nn
from training_scripts import same, weights

from guided_diffusers.training.engine.config import TrainingConfig
from guided_diffusers.training.engine.setup import make_accelerator, make_optimizer
from guided_diffusers.training.engine.trainer import train

EIGHT = "adamw_8bit"
SETTINGS = {"optimizer": EIGHT, "num_images": 80, "batch_size": 8, "warmup_images": 16}
SETTINGS |= {"validate_every_images": 0, "keep_checkpoints": 1}


def test_a_package_that_is_missing_is_named_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = TrainingConfig(output_dir=str(tmp_path / "run"), optimizer=EIGHT)
    told = r"adamw_8bit needs bitsandbytes: pip install 'guided-diffusers\[8bit\]' brings it"
    for make in (make_accelerator, lambda config: make_optimizer(config, [])):
        with pytest.raises(ImportError, match=told):
            make(config)
    assert not (tmp_path / "run").exists()


def test_an_eight_bit_run_goes_on_bit_equal(denoising, tmp_path):
    pytest.importorskip("bitsandbytes")

    def run(name, **overrides):
        config = TrainingConfig(**{**SETTINGS, "output_dir": str(tmp_path / name), **overrides})
        task = denoising(config)
        if config.optimizer == EIGHT:
            task.optimizers["unet"].args.min_8bit_size = 100  # small parameters keep whole states
        train(task, config)
        return task, tmp_path / name

    task, whole = run("whole")
    kinds = {state["state1"].dtype for state in task.optimizers["unet"].state.values()}
    assert kinds == {torch.uint8, torch.float32}
    run("stopped", stop_at_images=40)
    assert same(weights(run("stopped")[1]), weights(whole))
    with pytest.raises(ValueError, match=r"is of AdamW8bit of \d+ parameters, this run's is AdamW of"):
        run("stopped", optimizer="adamw")


def test_eight_bits_learn_as_all_do(tmp_path):
    pytest.importorskip("bitsandbytes")
    losses = []
    for optimizer in ("adamw", EIGHT):
        torch.manual_seed(0)
        network, inputs = nn.Linear(128, 128), torch.randn(64, 128)
        config = TrainingConfig(output_dir=str(tmp_path), optimizer=optimizer)
        stepped = make_optimizer(config, network.parameters())
        for _ in range(100):
            loss = (network(inputs) - inputs).square().mean()
            loss.backward()
            stepped.step()
            stepped.zero_grad()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_states_that_are_split_are_torchs(denoising, tmp_path):
    pytest.importorskip("bitsandbytes")
    config = TrainingConfig(output_dir=str(tmp_path), optimizer=EIGHT, sharding="parameters")
    with pytest.raises(ValueError, match="optimizer is 'adamw_8bit'; allowed: adamw, with sharding"):
        train(denoising(config), config)
